"""Evaluating and measuring a trained run, on the tiny data set."""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from conftest import ROOT
from PIL import Image

from bench import latency, record
from bench.config import read_suite
from bench.errors import UserError
from bench.memory.meters import measure_run
from bench.parallel import Outcome
from bench.pipeline import cache
from bench.pipeline import evaluate as stage_evaluate
from bench.pipeline import measure as measuring
from bench.pipeline.measure import measure_all
from bench.pipeline.train import PARTIAL, train
from bench.run import Run, open_run
from data.dataset import open_dataset

Edit = Callable[[Callable[[dict[str, Any]], None]], None]


@pytest.fixture
def trained(project: Path) -> Path:
    """A project whose floor and U-Net are trained."""
    for name in ("colour", "unet"):
        train(read_suite(), name)
    return project


def test_an_evaluation_holds_every_pixel_once(trained: Path) -> None:
    found = evaluate("colour")
    assert found.status == "ok"
    for split, ids in {"val": ["c"], "test": ["d", "e"]}.items():
        assert list(found.values["splits"][split]) == ids
        for id, matrix in found.values["splits"][split].items():
            assert np.sum(matrix) == 70 * 90
            assert np.sum(matrix[-1]) == 25  # the unlabelled corner
            assert found.provenance["seconds"][id] > 0
    for id in ("d", "e"):
        path = Path(f"results/tiny/predictions/colour/{id}.png")
        assert np.array(Image.open(path)).max() <= 2
    assert not Path("results/tiny/predictions/colour/c.png").exists()


def test_the_floor_finds_classes_that_differ_in_colour(trained: Path) -> None:
    matrix = np.array(evaluate("colour").values["splits"]["test"]["d"])
    assert np.trace(matrix[:-1]) == matrix[:-1].sum()


def test_every_seed_is_evaluated_and_the_first_is_shown(project: Path, edit_suite: Edit) -> None:
    alone = {}
    for seed in (4, 2):
        edit_suite(lambda suite, seed=seed: suite["models"]["unet"].update(seed=seed))
        train(read_suite(), "unet")
        alone[seed] = evaluate("unet-patch")
        assert "other_seeds" not in alone[seed].values
        assert alone[seed].settings["model"]["seed"] == seed
        assert "seeds" not in alone[seed].settings["model"]
    shown = Path("results/tiny/predictions/unet-patch/d.png")
    last = shown.read_bytes()

    edit_suite(lambda suite: suite["models"]["unet"].update(seeds=[2, 4]))
    train(read_suite(), "unet")
    found = evaluate("unet-patch")
    assert found.values["splits"] == alone[2].values["splits"]
    assert found.values["other_seeds"] == {"4": alone[4].values["splits"]}
    assert found.settings["model"]["seeds"] == (2, 4)
    assert found.provenance["seed"] == 2
    assert shown.read_bytes() == last
    run = open_run(read_suite(), "unet-patch")
    first, named = (run.network(torch.device("cpu"), seed).state_dict() for seed in (None, 2))
    assert all(torch.equal(first[key], named[key]) for key in first)


def test_runs_that_are_evaluated_at_once_are_as_they_are_alone(
    trained: Path, edit_suite: Edit
) -> None:
    few = {"colour": {"model": "colour", "strategy": "whole"}}
    few["unet"] = {"model": "unet", "strategy": "patch"}
    edit_suite(lambda suite: suite.update(runs=few))
    alone = {name: evaluate(name).values for name in few}
    two = {"device": "cpu", "threads": 2, "jobs": 2}
    edit_suite(lambda suite: suite.update(runs=few, compute=two))
    run_stage(stage_evaluate)
    for name in few:
        found = record.read(record.path_of("tiny", "evaluate", name))
        assert found.values == alone[name]
        assert found.provenance["threads"] == 1
    assert not cache.stale(read_suite(), "evaluate")

    # One that cannot be done ends the stage with its sentence; what the other found is kept.
    shutil.rmtree(record.RESULTS / "tiny/evaluate")
    Path("checkpoints/unet.pt").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"unet\.pt is not from the training of results/tiny/train"):
        run_stage(stage_evaluate)
    with pytest.raises(UserError, match=r"unet\.pt is damaged, or holds more than tensors"):
        stage_evaluate.evaluate_all(read_suite(), list(few))
    assert cache.stale(read_suite(), "evaluate") == ["unet"]


def test_an_evaluation_that_runs_out_of_memory_is_a_result(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(Run, "predict", no_memory)
    found = evaluate("unet-whole")
    assert found.status == "oom"
    assert "can't allocate" in (found.reason or "")
    assert Path("results/tiny/predictions/unet-whole").is_dir()


def test_any_other_error_is_not_taken_for_memory(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Run, "predict", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        evaluate("unet-whole")


@pytest.mark.slow
def test_a_measurement_has_every_meter_of_this_machine(trained: Path) -> None:
    paths = measure_all(read_suite(), ["unet-patch"])
    found = record.read(paths[0])
    assert found.status == "ok", found.reason
    meters = found.values["meters"]
    assert {"rss", "allocated", "predicted"} <= set(meters)
    assert all(meter["bytes"] > 0 and meter["definition"] for meter in meters.values())
    assert meters["predicted"]["bytes"] == pytest.approx(meters["allocated"]["bytes"], rel=0.02)
    alive = meters["predicted"]["timeline"]["bytes"].values()
    assert max(map(sum, zip(*alive, strict=True))) == meters["predicted"]["bytes"]
    assert (found.values["height_px"], found.values["width_px"]) == (70, 90)
    assert 0 < found.values["available_bytes"] <= psutil.virtual_memory().total
    for part, seconds in (("end-to-end", "latency_s"), ("network-alone", "network_s")):
        least, most = latency.ROUNDS[part]
        assert least <= len(found.values[seconds]) <= most
        assert min(found.values[seconds]) > 0
    # Of the same rounds.
    pairs = zip(found.values["network_s"], found.values["latency_s"], strict=True)
    assert all(network_s < latency_s for network_s, latency_s in pairs)
    assert found.values["memory_threads"] == 1
    assert found.provenance["machine"] == "test-machine"
    assert found.provenance["threads"] == 1


def test_the_networks_clock_goes_within_the_predictions(trained: Path) -> None:
    """Of one prediction, so that nothing else that a machine does can tell."""
    run = open_run(read_suite(), "unet-patch")
    network = run.network(torch.device("cpu"))
    image, _ = run.dataset.read("d")
    inside = latency.NetworkClock()
    with inside.watching(network, torch.device("cpu")):
        begun = time.perf_counter()
        run.predict(network, image)
        took = time.perf_counter() - begun
    assert 0 < inside.seconds < took


def test_a_process_that_is_lost_leaves_a_record_and_the_others_are_measured(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(work: Any, suite: Any, name: str, **_: Any) -> Outcome:
        reported = {"device": "cpu", "available_bytes": 9}
        if name == "unet-patch":
            return Outcome("failed", "the process ended with exit code 3", reported)
        return Outcome("oom", "killed by the system for memory", reported)

    monkeypatch.setattr(measuring, "run_isolated", asked)
    with pytest.raises(UserError, match=r"Measuring unet-patch failed, .* exit code 3"):
        measure_all(read_suite(), ["unet-patch", "unet-whole"])
    folder = Path("results/tiny/measure/test-machine")
    lost = record.read(folder / "unet-patch.json")
    assert (lost.status, lost.values) == ("failed", {"device": "cpu", "available_bytes": 9})
    assert record.read(folder / "unet-whole.json").status == "oom"


def test_a_run_that_ends_the_timing_of_others_is_the_only_one_without_a_latency(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = {"bytes": 7, "definition": ""}
    meters = {"allocated": meter, "predicted": {**meter, "host_bytes": 7}}
    memory = {"device": "cpu", "meters": meters}

    def asked(work: Any, suite: Any, whom: str | list[str], **_: Any) -> Outcome:
        if isinstance(whom, str):
            return Outcome(reported=memory)
        reported = {"unet-whole": {"latency_s": [0.5]}} if whom != ["unet-patch"] else {}
        status: Any = "failed" if "unet-patch" in whom else "ok"
        return Outcome(status, "the process ended with signal 11", reported)

    monkeypatch.setattr(measuring, "run_isolated", asked)
    with pytest.raises(UserError, match=r"Measuring unet-patch failed, .* signal 11"):
        measure_all(read_suite(), ["unet-patch", "unet-whole"])
    folder = Path("results/tiny/measure/test-machine")
    lost, kept = (record.read(folder / f"{name}.json") for name in ("unet-patch", "unet-whole"))
    assert (lost.status, lost.values) == ("failed", memory)
    assert (kept.status, kept.values["latency_s"]) == ("ok", [0.5])


def test_memory_is_measured_in_the_process_of_the_caller(trained: Path) -> None:
    reported: dict[str, Any] = {}
    measure_run(reported.update, read_suite(), "colour")
    assert reported["meters"]["allocated"]["bytes"] == reported["meters"]["predicted"]["bytes"]
    assert reported["flops"] == 0
    assert reported["provenance"]["device"] == "cpu"


def test_a_checkpoint_of_another_network_is_refused(trained: Path) -> None:
    Path("checkpoints/colour.pt").rename("checkpoints/unet.pt")
    run = open_run(read_suite(), "unet-patch")
    with pytest.raises(UserError, match=r"unet\.pt does not fit the network"):
        run.network(torch.device("cpu"))


def test_an_unknown_run_or_strategy_is_named(project: Path, edit_suite: Edit) -> None:
    with pytest.raises(UserError, match="has no run 'x'; it has"):
        open_run(read_suite(), "x")
    edit_suite(lambda suite: suite["runs"]["colour"].update(strategy="local"))
    with pytest.raises(UserError, match=r"runs\.colour\.strategy is 'local'"):
        open_run(read_suite(), "colour")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
            r"d\.npy is damaged",
        ),
        (lambda p: p.unlink(), r"d\.npy is missing"),
        (lambda p: np.save(p, np.zeros((70, 90))), r"d\.npy holds float64, not uint8"),
        (lambda p: np.save(p, np.zeros((70, 60), np.uint8)), "is 70 x 60 px, its image 70 x 90"),
        (
            lambda p: np.save(p, np.full((70, 90), 3, np.uint8)),
            "label 3 in 6300 px, only 0 to 2 and 255",
        ),
    ],
)
def test_a_bad_label_stops_the_evaluation(
    trained: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(open_dataset("tiny").root / "labels/d.npy")
    with pytest.raises(UserError, match=message):
        evaluate("colour")
    assert not record.path_of("tiny", "evaluate", "colour").exists()


def test_the_data_set_names_its_splits(project: Path) -> None:
    with pytest.raises(UserError, match="has no split 'crossval'; it has train, val, test"):
        open_dataset("tiny").ids("crossval")
    with pytest.raises(UserError, match="prepare@moon"):
        open_dataset("moon")
    Path("data/prepared/tiny/dataset.json").write_text("{")
    with pytest.raises(UserError, match="is damaged"):
        open_dataset("tiny")


def test_a_run_is_outstanding_until_its_record_is_of_everything_as_it_is(
    trained: Path, edit_suite: Edit
) -> None:
    def left() -> list[str]:
        return cache.stale(read_suite(), "evaluate")

    few = {"colour": {"model": "colour", "strategy": "whole"}}
    few["unet"] = {"model": "unet", "strategy": "patch"}
    edit_suite(lambda suite: suite.update(runs=few))
    for path in ("evaluate/of-yesterday.json", "predictions/of-yesterday/d.png"):
        stray = record.RESULTS / "tiny" / path
        stray.parent.mkdir(parents=True)
        stray.touch()
    run_stage(stage_evaluate, "colour")
    assert left() == ["unet"]
    assert not list((record.RESULTS / "tiny").rglob("*of-yesterday*"))

    run_stage(stage_evaluate, "--missing")
    found = record.path_of("tiny", "evaluate", "colour"), record.path_of("tiny", "evaluate", "unet")
    before = found[0].stat().st_mtime_ns
    assert left() == []
    shutil.rmtree(PARTIAL)
    train(read_suite(), "unet")  # the same weights again, but it has been trained anew
    Path("results/tiny/predictions/colour/d.png").write_bytes(b"another picture")
    assert left() == ["colour", "unet"]
    run_stage(stage_evaluate, "--missing")
    assert left() == []
    assert found[0].stat().st_mtime_ns > before

    found[1].unlink()
    assert left() == ["unet"]
    shutil.rmtree(cache.CACHE_STATE)  # a clone's records were made elsewhere
    assert left() == ["colour", "unet"]
    edit_suite(lambda suite: suite.update(runs=few, splits=["test"]))
    run_stage(stage_evaluate, "--missing")
    edit_suite(lambda suite: suite.update(runs=few))
    assert left() == ["colour", "unet"]


def test_an_edit_of_one_methods_code_makes_its_runs_stale_and_no_others(
    trained: Path, edit_suite: Edit
) -> None:
    runs = {"colour": {"model": "colour", "strategy": "whole"}}
    runs["isdnet"] = {"model": "isdnet", "strategy": "whole"}

    def two(suite: dict[str, Any]) -> None:
        line = {**suite["models"]["colour"], "method": "baselines/isdnet", "spec": {}}
        suite["models"]["isdnet"] = line
        suite["runs"] = runs

    edit_suite(two)
    shutil.copy("checkpoints/colour.pt", "checkpoints/isdnet.pt")
    folder = record.RESULTS / "tiny"
    shutil.copy(folder / "train/colour.json", folder / "train/isdnet.json")
    for folder in ("baselines", "bench"):
        Path(folder).unlink() if Path(folder).is_symlink() else shutil.rmtree(folder)
        shutil.copytree(ROOT / folder, folder)
    shared, own = Path("bench/tiling.py"), Path("baselines/isdnet/inference.py")
    for stage in ("evaluate", "measure"):
        for name in runs:
            path = record.path_of(
                "tiny", stage, name, "test-machine" if stage == "measure" else None
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("{}")

    def stale_after(edited: Path, text: str) -> dict[str, list[str]]:
        cache.code_of.cache_clear()
        found = {}
        for stage in ("evaluate", "measure"):
            edited_before = edited.read_text()
            for name in runs:
                cache.mark_fresh(read_suite(), stage, name)
            edited.write_text(edited_before + text)
            found[stage] = cache.stale(read_suite(), stage)
            edited.write_text(edited_before)
        return found

    every = list(runs)
    assert stale_after(own, "X = 1\n") == {"evaluate": ["isdnet"], "measure": ["isdnet"]}
    assert stale_after(own, "# a comment changes nothing\n") == {"evaluate": [], "measure": []}
    assert stale_after(shared, "X = 1\n") == {"evaluate": every, "measure": every}
    train_code = {
        method: cache.code_of("training_code", method) for method in ("glnet", "baselines/isdnet")
    }
    assert own in train_code["baselines/isdnet"]
    assert own not in train_code["glnet"]
    assert Path("bench/training_step.py") in train_code["glnet"]


def evaluate(name: str) -> record.Record:
    suite = read_suite()
    return stage_evaluate.evaluate(open_run(suite, name), suite)


def run_stage(module: Any, *arguments: str) -> None:
    """What `python -m MODULE ARGUMENTS` does after it has parsed them."""
    parser = argparse.ArgumentParser()
    cache.add_arguments(parser)
    module.work(parser.parse_args(arguments))
