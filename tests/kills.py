"""Kills `make repro` of a tiny suite at random moments, and at those at which DVC or a stage writes,
until the pipeline has ended; then does it again. Used by test_kills.py; by hand:

    python tests/kills.py KILLS [SEED]

Half of a kill's time is the start of make, DVC and a stage, so several at once, with other seeds, take
hardly longer than one where there are as many cores."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import psutil
from conftest import GLNET, PLAIN, ROOT, model_line, scene, write_suite
from PIL import Image
from ruamel.yaml import YAML

PREDICTED = ("results/predict.json", "results/successors.json")
MADE = (
    "checkpoints",
    "data/prepared",
    "results/tiny",
    "dvc.lock",
    "site",
    "report",
    ".dvc",
    *PREDICTED,
)
"""What `repro` makes, with the copies in DVC's cache."""
RESULTS = (
    *PREDICTED,
    "data/prepared/tiny/**/*",
    "checkpoints/*.pt",
    "checkpoints/*.pt/*.pt",
    "results/tiny/predictions/*/*.png",
    "results/tiny/evaluate/*.json",
)
HANGS_S = 600
RWLOCK = ".dvc/tmp/rwlock"
"""What DVC writes before and after each stage that it runs."""
WRITES = (
    *("dvc.lock", "dvc.lock", RWLOCK, ".dvc/cache/files/md5", "data/prepared/tiny/labels"),
    *("checkpoints", "checkpoints/partial", "results", "results/tiny", "results/tiny/evaluate"),
)
"""Files, and folders in which a file appears, that a kill waits for."""
KEPT_RUNS = {
    "deepglobe": (
        "unet2015-whole",
        "fcn8s-whole",
        "fpn-whole",
        "enet-whole",
        "glnet-collaborative",
    ),
    "deepglobe-sweep": ("fcn8s-rate0.4",),
    "deepglobe-ablation": ("global-only",),
    "inria": ("glnet-collaborative",),
    "deepglobe-successors": ("isdnet", "pointrend"),
}
"""Of the suites that `predict` and `successors` read, whose other runs take minutes."""
DATA = {
    "source": "folder",
    "settings": {
        "classes": [
            {"name": name, "colour": [200 * (name == other) for other in ("red", "green", "blue")]}
            for name in ("red", "green", "blue")
        ],
        "labels": "ids",
        "splits": {"train": ["a", "b"], "val": ["c"], "test": ["d", "e"]},
    },
}


def tiny() -> dict[str, Any]:
    """A suite with both packages of methods, one with several seeds and one with several phases."""
    spec = PLAIN | {"network": "colour", "train_on": "patch"}
    phases = ["global", "global-to-local"]
    return {
        "suite": "tiny",
        "machine": "tiny",
        "splits": ["test"],
        "compute": {"device": "cpu", "threads": 1, "jobs": 2},
        "datasets": {"tiny": DATA},
        "weights": {"nothing": {"encoder": PLAIN["encoder"], "source": "none"}},
        "models": {
            "colour": model_line("baselines/generic", spec, ["train"], 1) | {"seeds": [0, 1]},
            "glnet": model_line("glnet", GLNET | {"phases": phases}, phases, 2),
        },
        "runs": {
            "colour": {"model": "colour", "strategy": "whole"},
            "glnet": {"model": "glnet", "strategy": "global-to-local"},
        },
    }


def project(folder: Path, stages: Collection[str] = ()) -> None:
    """A checkout with the tiny suite, its images, and less for `predict` and `successors` to do.

    Args:
        stages: those that are left; none: all.
    """
    for name in ("baselines", "bench", "data", "glnet", "suites", "tests", "docs"):
        shutil.copytree(
            ROOT / name, folder / name, ignore=shutil.ignore_patterns("raw", "prepared")
        )
    for name in ("results/card", "results/fast"):
        shutil.copytree(ROOT / name, folder / name)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    yaml = YAML()
    for name, runs in KEPT_RUNS.items():
        suite = yaml.load(folder / f"suites/{name}.yaml")
        suite["runs"] = {run: suite["runs"][run] for run in runs}
        for model in suite["models"].values():
            if model["method"] == "glnet":
                model["spec"]["patch_px"] = 1800  # so that there are few
        yaml.dump(suite, folder / f"suites/{name}.yaml")
    code = folder / "bench/pipeline/predict_memory.py"
    shorter = 'GROWING = ("fpn-whole",)\n"""'
    code.write_text(re.sub(r'^GROWING = .*?\n"""', shorter, code.read_text(), flags=re.M | re.S))
    pipeline = yaml.load(ROOT / "dvc.yaml")
    for stage in list(pipeline["stages"]):
        if stages and stage not in stages:
            del pipeline["stages"][stage]
    del pipeline["plots"]
    yaml.dump(pipeline, folder / "dvc.yaml")
    write_suite(folder, tiny())
    for number, id in enumerate("abcde"):
        for kind, pixels in zip(("images", "labels"), scene(number), strict=True):
            path = folder / f"data/raw/tiny/{kind}/{id}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    anew(folder)


def anew(folder: Path) -> None:
    """Forget all results."""
    for name in MADE:
        path = folder / name
        path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)
    (folder / ".dvc").mkdir()
    (folder / ".dvc/config").write_text((ROOT / ".dvc/config").read_text() + "    no_scm = true\n")


def repro(folder: Path) -> subprocess.Popen[str]:
    """`make repro` in a group of its own, with the environment that runs this."""
    environment = {**os.environ, "DVC_SITE_CACHE_DIR": str(folder / ".dvc/site")}
    environment.pop("PYTHONPATH", None)
    with (folder / "log").open("a") as log:
        return subprocess.Popen(
            ["make", "--old-file=setup", "repro", f"VENV={sys.prefix}"],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def results(folder: Path) -> dict[str, str]:
    """SHA-256 by file of prepared data, weights, predicted labels and confusion matrices."""
    found = {}
    for path in sorted(one for pattern in RESULTS for one in folder.glob(pattern) if one.is_file()):
        content = path.read_bytes()
        if path.suffix == ".json" and path.is_relative_to(folder / "results"):
            values = json.loads(content, object_hook=without_times)["values"]
            content = json.dumps(values, sort_keys=True).encode()
        found[str(path.relative_to(folder))] = hashlib.sha256(content).hexdigest()
    return found


def without_times(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != "seconds"}


def family(started: subprocess.Popen[str]) -> list[psutil.Process]:
    """make, DVC, the stage and its workers."""
    try:
        made = psutil.Process(started.pid)
        return [made, *made.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def is_dvc(process: psutil.Process) -> bool:
    try:
        return any(Path(word).name == "dvc" for word in process.cmdline()[:3])
    except psutil.Error:
        return False


def everything(started: subprocess.Popen[str], rng: random.Random) -> list[psutil.Process]:
    """As the system does when it is shut down."""
    return family(started)


def dvc_alone(started: subprocess.Popen[str], rng: random.Random) -> list[psutil.Process]:
    return [one for one in family(started) if is_dvc(one)]


def any_one(started: subprocess.Popen[str], rng: random.Random) -> list[psutil.Process]:
    """For instance a worker."""
    return rng.sample(family(started)[1:], k=1) if len(family(started)) > 1 else []


def changed(path: Path, times: int) -> Callable[[], bool]:
    """Whether a file or folder has changed that often by now."""

    def state() -> tuple[int, int]:
        try:
            return path.stat().st_mtime_ns, path.stat().st_size
        except FileNotFoundError:
            return 0, 0

    last, left = state(), times

    def due() -> bool:
        nonlocal last, left
        if (now := state()) != last:
            last, left = now, left - 1
        return left <= 0

    return due


def later(begun: Callable[[], bool], delay_s: float) -> Callable[[], bool]:
    """Whether that many seconds have passed since something had begun."""
    end = None

    def due() -> bool:
        nonlocal end
        if end is None and begun():
            end = time.monotonic() + delay_s
        return end is not None and time.monotonic() >= end

    return due


def kill(folder: Path, rng: random.Random, mean_s: float) -> str:
    """Start `make repro` and kill it; returns what was killed when, or nothing if it had ended.

    A tenth of the kills fall anywhere from the start of make on, four tenths anywhere from DVC's
    first stage on, and the others on a write, or if it does not come, somewhat later.

    Args:
        mean_s: of the time that a stage runs before it is killed.

    Raises:
        AssertionError: it failed by itself, or did not end after the kill.
    """
    delay_s = rng.expovariate(1 / mean_s)
    aim = rng.choice(("start", *["stage"] * 4, *["write"] * 5))
    victims = rng.choice((everything, dvc_alone, *([any_one] if aim != "write" else [])))
    written = changed(folder / (where := rng.choice(WRITES)), rng.randint(1, 2))
    in_stage = later(changed(folder / RWLOCK, 1), delay_s * (3 if aim == "write" else 1))
    started, begun = repro(folder), time.monotonic()
    while started.poll() is None:
        if aim == "start" and time.monotonic() > begun + delay_s:
            break
        if in_stage() or (aim == "write" and written()):
            break
        assert time.monotonic() < begun + HANGS_S, f"`make repro` hangs: {tail(folder)}"
        time.sleep(0.0005 if aim == "write" else 0.01)
    if started.poll() is not None:
        assert started.returncode == 0, f"`make repro` failed by itself: {tail(folder)}"
        return ""
    killed = []
    for one in victims(started, rng) or everything(started, rng):
        try:
            killed.append(" ".join(one.cmdline()[-3:])[-40:])
            one.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    size = (folder / "dvc.lock").stat().st_size if (folder / "dvc.lock").exists() else None
    started.wait(HANGS_S)
    after_s = time.monotonic() - begun
    aimed = f"write of {where}" if aim == "write" and written() else aim
    return f"{aimed} after {after_s:.1f} s, dvc.lock has {size} bytes: {victims.__name__} {killed}"


def tail(folder: Path) -> str:
    return (folder / "log").read_text()[-3000:]


def survive(folder: Path, kills: int, seed: int) -> Iterator[str]:
    """Run the pipeline undisturbed, then kill it that many times; yields a line for each kill, and
    one for each time that all results were those of the first run; last a summary.

    Raises:
        AssertionError: results differ, or something had to be mended by hand.
    """
    rng = random.Random(seed)
    begun = time.monotonic()
    assert repro(folder).wait() == 0, tail(folder)
    whole_s = time.monotonic() - begun
    expected = results(folder)
    assert expected
    stages = len(YAML(typ="safe").load(folder / "dvc.lock")["stages"])
    yield f"undisturbed in {whole_s:.0f} s, {stages} stages"
    done = ends = mended = 0
    while done < kills:
        anew(folder)
        ended = False
        while not ended and done < kills:
            (folder / "log").write_text("")
            said = kill(folder, rng, mean_s=whole_s / stages / 2)
            done += bool(said)
            ended = not said
            yield f"{done}: {said or 'it ended'}"
            for line in tail(folder).splitlines():
                if line.startswith(("Ended", "Removed", "Restored")):
                    mended += 1
                    yield f"   {line}"
        if not ended:
            assert repro(folder).wait() == 0, tail(folder)
        found = results(folder)
        differing = [path for path, _ in expected.items() ^ found.items()]
        assert not differing, f"not as of the undisturbed run: {sorted({*differing})}"
        ends += 1
        yield f"all {len(expected)} results as of the undisturbed run"
    yield (
        f"{done} kills over {stages} stages in {time.monotonic() - begun:.0f} s: the pipeline ended "
        f"{ends} times, each time with all {len(expected)} results of the undisturbed run; "
        f"`make repro` mended {mended} things, nobody helped by hand"
    )


def main(kills: int, seed: int = 0) -> None:
    with tempfile.TemporaryDirectory(prefix="kills") as name:
        project(Path(name))
        for line in survive(Path(name), kills, seed):
            print(line, flush=True)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
