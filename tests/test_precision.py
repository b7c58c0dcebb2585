"""Inference in lower precision: what it runs in, what records say, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scene
from PIL import Image
from test_contract import spec

from bench.config import Compute, read_suite
from bench.errors import UserError
from bench.memory.cpu_allocator import record_cpu_allocations
from bench.memory.runs import predict_run
from bench.memory.tracker import bytes_of, tensors_of
from bench.pipeline.evaluate import evaluate
from bench.pipeline.train import train
from bench.run import Run, open_run, run_of
from bench.streaming import Job, predict_file

Edit = Callable[[Callable[[dict[str, Any]], None]], None]
CLASSES = 3
PALETTE = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIZE = (101, 75)


def run_in(precision: str, network: str = "unet", strategy: str = "patch", **more: Any) -> Run:
    run = run_of("baselines/generic", strategy, spec("baselines/generic", network, **more), CLASSES)
    return replace(run, config=replace(run.config, precision=precision))


def image() -> torch.Tensor:
    return torch.from_numpy(scene(3, SIZE)[0]).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("strategy", ["downsample", "patch", "whole"])
def test_convolutions_run_in_it_and_scores_are_close(strategy: str, precision: str) -> None:
    torch.manual_seed(0)
    run, exact = run_in(precision, strategy=strategy), run_in("fp32", strategy=strategy)
    network = run.build()
    seen = set()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda _, __, out: seen.add(out.dtype))
    assert run.strategy.scores
    assert exact.strategy.scores
    with torch.inference_mode():
        lowered = run.strategy.scores(network, image(), run.spec)
        assert seen == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
        scores = exact.strategy.scores(network, image(), run.spec)
    assert torch.float32 in seen, "nothing of it stays behind"
    assert all(one.dtype == torch.float32 for one in network.parameters())
    assert not torch.equal(lowered, scores)
    torch.testing.assert_close(lowered.float(), scores, rtol=0.1, atol=0.05 * float(scores.std()))


@pytest.mark.parametrize("strategy", ["patch", "whole"])
def test_memory_is_predicted_in_it(strategy: str) -> None:
    run = run_in("bf16", strategy=strategy)
    network, pixels = run.build(), image()
    run.predict(network, pixels)
    with record_cpu_allocations() as allocations:
        run.predict(network, pixels)
    found = bytes_of([*tensors_of(network), pixels]) + allocations.peak_bytes
    predicted = predict_run(run, SIZE, "cpu")
    assert predicted.device_bytes == pytest.approx(found, rel=0.1)


def test_a_gpu_that_is_absent_holds_less_in_it() -> None:
    lowered, exact = (
        predict_run(run_in(one, strategy="whole"), (512, 512), "cuda") for one in ("bf16", "fp32")
    )
    assert lowered.weights_bytes == exact.weights_bytes
    activations = [one.device_bytes - one.weights_bytes for one in (lowered, exact)]
    assert activations[0] < 0.8 * activations[1]


@pytest.mark.parametrize("strategy", ["patch", "downsample"])
def test_large_files_get_the_same_labels(strategy: str, tmp_path: Path) -> None:
    run, path, output = run_in("bf16", strategy=strategy), tmp_path / "a.png", tmp_path / "b.png"
    job = Job(run, PALETTE, Compute(device="cpu", threads=1), 0)
    Image.fromarray(scene(3, SIZE)[0]).save(path)
    assert predict_file(path, output, job, silent=True).by_windows
    with Image.open(output) as labels:
        found = torch.from_numpy(np.array(labels))
    assert torch.equal(found, run.predict(job.network()[0], image()))
    exact = replace(job, run=run.in_float32)
    assert job.fingerprint() != exact.fingerprint(), "one does not resume the other"


def test_records_say_so_and_how_many_labels_agree(project: Path, edit_suite: Edit) -> None:
    def change(suite: dict[str, Any]) -> None:
        suite["runs"]["half"] = {**suite["runs"]["unet-patch"], "precision": "bf16"}

    edit_suite(change)
    suite = read_suite()
    train(suite, "unet")
    exact, half = (evaluate(open_run(suite, name), suite) for name in ("unet-patch", "half"))
    assert half.settings["run"]["precision"] == "bf16"
    assert exact.settings["run"]["precision"] == "fp32"
    assert "agreement" not in exact.values
    agreement = half.values["agreement"]
    assert {split: {*scenes} for split, scenes in agreement.items()} == {
        split: {*scenes} for split, scenes in half.values["splits"].items()
    }
    run, network = open_run(suite, "half"), open_run(suite, "half").network(torch.device("cpu"))
    pixels, _ = run.dataset.read("d")
    equal = run.predict(network, pixels) == run.in_float32.predict(network, pixels)
    assert agreement["test"]["d"] == pytest.approx(float(equal.sum()) / equal.numel())


@pytest.mark.parametrize("wrong", ["int8", "bf16-mixed", 16])
def test_other_precisions_are_one_sentence(wrong: object, project: Path, edit_suite: Edit) -> None:
    edit_suite(lambda suite: suite["runs"]["unet-patch"].update(precision=wrong))
    with pytest.raises(UserError, match=r"runs\.unet-patch\.precision is .*'bf16' or 'fp16'\.$"):
        read_suite()
