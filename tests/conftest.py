"""A tiny prepared data set with known contents, and small networks, for tests of everything above
the data."""

import argparse
import hashlib
import json
import multiprocessing
import multiprocessing.forkserver
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmark_table import tables
from file_server import Server
from ruamel.yaml import YAML

from bench.cli import instruction_limits

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIZE = (70, 90)  # neither square nor divisible by anything
SETTINGS = {"layout": "blocks36", "px_per_degree": 3}
SPLITS = {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]}


def scene(seed: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) of noisy coloured blocks and its label (H, W); one corner is
    unlabelled."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 3, (-(-size[0] // 10), -(-size[1] // 10)))
    label = np.kron(blocks, np.ones((10, 10), int))[: size[0], : size[1]].astype(np.uint8)
    noise = rng.integers(-25, 25, (*size, 3))
    image = np.clip(np.array(COLOURS)[label] + noise, 0, 255).astype(np.uint8)
    label[:5, :5] = 255
    return image, label


def write_dataset(root: Path, name: str = "tiny") -> Path:
    """data/prepared/NAME below `root`, in the format that `data.dataset` documents."""
    folder = root / "data/prepared" / name
    files = {}
    for number, id in enumerate(id for ids in SPLITS.values() for id in ids):
        image, label = scene(number)
        for kind, pixels in (("images", image.transpose(2, 0, 1)), ("labels", label)):
            path = folder / kind / f"{id}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, np.ascontiguousarray(pixels))
            files[f"{kind}/{id}.npy"] = hashlib.sha256(path.read_bytes()).hexdigest()
    about = {
        "name": name,
        "classes": ["red", "green", "blue"],
        "palette": COLOURS,
        "ignored": [],
        "rare": ["blue"],
        "splits": SPLITS,
        "credit": "Made by a formula.",
        "settings": SETTINGS,
        "files": files,
    }
    (folder / "dataset.json").write_text(json.dumps(about))
    return folder


SMALL: dict[str, Any] = {"encoder": "tu-mobilenetv3_small_050"}
PLAIN = {**SMALL, "size_px": 32, "overlap_px": 8, "sub_batch": 3, "decoder_width": 64, "width": 4}
GLNET = {
    **SMALL,
    "global_px": 64,
    "patch_px": 32,
    "overlap_px": 8,
    "sub_batch": 3,
    "fpn_width": 8,
    "smooth_width": 4,
    "fpn_std": None,
}
FCTL = {
    "patch_px": 32,
    "overlap_px": 2,
    "sub_batch": 3,
    "whole_px": 48,
    "width": 6,
    "head_width": 24,
    "patches_per_image": 2,
}
CASCADEPSP = {
    **SMALL,
    "base_px": 128,
    "base_width": 64,
    "width": 4,
    "side_px": 48,
    "stride_px": 48,
    "margin_px": 4,
    "crop_px": 64,
}
SGNET = {
    "encoder": "resnet18",
    "patch_px": 32,
    "context_px": 64,
    "width": 16,
    "window": 3,
    "decoder_width": 16,
}
POINTREND = {
    **SMALL,
    "fpn_width": 8,
    "head_width": 8,
    "point_width": 8,
    "crop_px": 128,
    "points": 40,
    "subdivision_points": 60,
}
MAGNET = {
    **SMALL,
    "patch_px": 40,
    "input_px": 64,
    "sub_batch": 3,
    "fpn_width": 8,
    "smooth_width": 4,
    "refine_width": 8,
    "fast_patches": 2,
    "smooth_px": 3,
    "frame_px": 4,
}
THREE_PHASES = ["global", "global-to-local", "local-to-global"]


def model_line(
    method: str, spec: dict[str, Any], phases: list[str], steps: int = 3
) -> dict[str, Any]:
    """A line of the table `models`."""
    schedule = {"steps": steps, "learning_rate": 1e-3, "batch": 2}
    return {
        "dataset": "tiny",
        "method": method,
        "start": "nothing",
        "spec": spec,
        "training": {"phases": dict.fromkeys(phases, schedule), "checkpoint_every": 1},
    }


def tiny_suite() -> dict[str, Any]:
    """A suite with every network and every strategy, small enough for a test."""
    networks = ("unet", "fpn", "pspnet", "deeplabv3plus")
    plain = {
        name: model_line(
            "baselines/generic", {**PLAIN, "network": name, "train_on": "patch"}, ["train"]
        )
        for name in networks
    }
    floor = {**PLAIN, "network": "colour", "train_on": "patch"}
    models = {
        **plain,
        "colour": model_line("baselines/generic", floor, ["train"], steps=1),
        "glnet": model_line("glnet", {**GLNET, "phases": THREE_PHASES}, THREE_PHASES),
        "glnet-local": model_line("glnet", {**GLNET, "phases": ["local"]}, ["local"]),
    }
    strategies = ("downsample", "patch", "whole")
    runs = {f"{m}-{s}": {"model": m, "strategy": s} for m in networks for s in strategies}
    for strategy in ("global", "global-to-local", "collaborative"):
        runs[f"glnet-{strategy}"] = {"model": "glnet", "strategy": strategy}
    runs["glnet-local"] = {"model": "glnet-local", "strategy": "local"}
    runs["colour"] = {"model": "colour", "strategy": "whole"}
    return {
        "suite": "tiny",
        "machine": "test-machine",
        "compute": {"device": "cpu", "threads": 1},
        "datasets": {"tiny": {"source": "earthcover", "settings": SETTINGS}},
        "weights": {"nothing": {"encoder": SMALL["encoder"], "source": "none"}},
        "models": models,
        "runs": runs,
    }


def write_suite(root: Path, suite: dict[str, Any]) -> None:
    """params.yaml below `root`."""
    with (root / "params.yaml").open("w") as file:
        YAML().dump(suite, file)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root with the tiny data set, empty start weights and the tiny suite; the current
    directory."""
    write_dataset(tmp_path)
    write_suite(tmp_path, tiny_suite())
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    for package in ("glnet", "baselines", "bench", "tests"):
        (tmp_path / package).symlink_to(ROOT / package)
    (tmp_path / "checkpoints/start").mkdir(parents=True)
    torch.save({}, tmp_path / "checkpoints/start/nothing.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests of a process: Playwright does not run twice in one."""
    from browser import launched  # what is timed loads this file too, and needs no browser

    with launched() as browser:
        yield browser


@pytest.fixture
def edit_suite(project: Path) -> Callable[[Callable[[dict[str, Any]], None]], None]:
    """Change the tiny suite in place."""

    def edit(change: Callable[[dict[str, Any]], None]) -> None:
        suite = tiny_suite()
        change(suite)
        write_suite(project, suite)

    return edit


@pytest.fixture(scope="session", autouse=True)
def _libraries_loaded_once() -> None:
    """The server that forks isolated processes loads what its first caller names. In a run of all
    tests it loads everything, or each later process would spend seconds on imports."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        from bench.pipeline.measure import PRELOAD

        multiprocessing.get_context("forkserver").set_forkserver_preload(list(PRELOAD))
        multiprocessing.forkserver.ensure_running()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small tensors are faster on one thread, and no test depends on the number of cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _same_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that a test calls would start pytest again, with the instructions of its suite."""
    monkeypatch.setattr("bench.cli.limit_instructions", lambda suite: None)


def pytest_configure(config: pytest.Config) -> None:
    """Benchmarks run with the instructions of their suite, tests with all. The libraries ask for them
    at their first operator, so torch may be imported already."""
    if not config.getoption("benchmark_disable", False):
        os.environ.update(instruction_limits())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With `--benchmark-only` other tests are left out, not listed as skipped one by one."""
    if config.getoption("benchmark_only", False):
        timed = [one for one in items if "benchmark" in getattr(one, "fixturenames", ())]
        config.hook.pytest_deselected(items=[one for one in items if one not in timed])
        items[:] = timed


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A table that people can read, in place of pytest-benchmark's own (`--benchmark-quiet`)."""
    session = getattr(config, "_benchmarksession", None)
    done = [one for one in session.benchmarks if one.stats.data] if session else []
    if done:
        terminalreporter.write_line("\n" + tables(done))


def run(*command: str, cwd: Path, ok: bool = True) -> subprocess.CompletedProcess[str]:
    """A command's outcome; with `ok` a failure shows what it printed."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if ok:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def call_command(fill: Callable[[argparse.ArgumentParser], None], *arguments: object) -> None:
    """Run one of glnet-bench's commands in this process."""
    parser = argparse.ArgumentParser()
    fill(parser)
    given = parser.parse_args([str(one) for one in arguments])
    given.work(given)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    found = Server()
    yield found
    found.server.shutdown()
    found.server.server_close()
