"""Calls of a network as graphs, with a capture that works on the CPU; and settings of a run that change
how a GPU computes it."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import scene
from test_contract import CLASSES, made, spec
from torch import nn
from torch.utils._pytree import tree_leaves

from bench.config import RunConfig
from bench.latency import NetworkClock
from bench.memory.runs import predict_run
from bench.method import configured, load, network_for
from bench.run import run_of
from bench.windows.cuda_graph import MOST, Work, with_graphs

SIZE = (101, 120)
CPU = torch.device("cpu")


class Recorder:
    """A `Capture` on the CPU: it computes again and writes in place."""

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def __call__(self, work: Work) -> tuple[Any, Work]:
        results = work()
        self.captured += 1

        def again() -> None:
            self.replayed += 1
            for old, new in zip(tree_leaves(results), tree_leaves(work()), strict=True):
                old.copy_(new)

        return results, again


class Affine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(1, 1, 1)
        self.inner.weight.data.fill_(2.0)
        self.inner.bias.data.fill_(1.0)  # type: ignore[union-attr]

    def forward(self, x: torch.Tensor, times: int = 1) -> list[torch.Tensor]:
        return [times * self.inner(x)]


def ones(side: int, value: float = 1.0) -> torch.Tensor:
    return torch.full((1, 1, side, side), value)


@pytest.mark.parametrize(
    ("method", "network", "strategy"),
    [
        ("baselines/generic", "unet", "patch"),
        ("baselines/generic", "colour", "patch"),
        ("baselines/fctl", "inria", "contexts"),
        ("baselines/sgnet", "", "surround"),
        ("baselines/magnet", "", "progressive"),
        ("glnet", "alone", "local"),
        ("glnet", "", "collaborative"),
    ],
    ids=str,
)
def test_labels_are_those_of_plain_calls(method: str, network: str, strategy: str) -> None:
    model, plan, settings = made(method, network, strategy)
    images = [
        torch.from_numpy(scene(seed, SIZE)[0]).permute(2, 0, 1).contiguous() for seed in (3, 4)
    ]
    with torch.inference_mode():
        wanted = [plan.predict(model, image, settings) for image in images]
        capture = Recorder()
        with_graphs(model, capture, "cpu")
        found = [plan.predict(model, image, settings) for image in images]
    assert capture.replayed > capture.captured > 0
    for one, other in zip(found, wanted, strict=True):
        assert torch.equal(one, other)


def test_a_shape_is_captured_the_second_time_and_results_stay() -> None:
    capture = Recorder()
    network = with_graphs(Affine().eval(), capture, "cpu")
    with torch.inference_mode():
        results = [network(ones(4, value))[0] for value in (1.0, 2.0, 3.0)]
        network(ones(5))
        assert (capture.captured, capture.replayed) == (1, 2), (
            "a child's call inside is not its own"
        )
        network(ones(4), times=3)
        assert capture.captured == 1, "other numbers are another call"
        for _ in range(2):
            network.get_submodule("inner")(ones(4))
        assert capture.captured == 2, "a child that is called from outside is"
    assert [float(one.mean()) for one in results] == [3, 5, 7]


def test_shapes_are_captured_up_to_a_number() -> None:
    capture = Recorder()
    network = with_graphs(Affine().eval(), capture, "cpu")
    with torch.inference_mode():
        for side in [*range(1, MOST + 3)] * 2:
            assert float(network(ones(side))[0].mean()) == 3
    assert capture.captured == MOST


def test_what_cannot_be_captured_is_not_tried_again() -> None:
    tries = []

    def refuse(work: Work) -> tuple[Any, Work]:
        tries.append(work)
        raise RuntimeError("operation not permitted when stream is capturing")

    network = with_graphs(Affine().eval(), refuse, "cpu")
    with torch.inference_mode():
        assert [float(network(ones(4))[0].mean()) for _ in range(4)] == [3] * 4
    assert len(tries) == 1


def test_another_precision_is_another_call() -> None:
    capture = Recorder()
    network = with_graphs(Affine().eval(), capture, "cpu")
    with torch.inference_mode():
        for _ in range(2):
            assert network(ones(4))[0].dtype == torch.float32
            with torch.autocast("cpu", torch.bfloat16):
                assert network(ones(4))[0].dtype == torch.bfloat16
    assert capture.captured == 2


def test_the_clock_sees_replays_and_leaves_them() -> None:
    capture, clock = Recorder(), NetworkClock()
    network = with_graphs(Affine().eval(), capture, "cpu")
    with torch.inference_mode():
        with clock.watching(network, CPU):
            network(ones(4))
            before = clock.seconds
            network(ones(4))
        assert clock.seconds > before > 0
        network(ones(4))
    assert capture.replayed == 2


def test_settings_of_a_run_reach_its_network() -> None:
    seen: dict[str, Any] = {}

    def look(network: nn.Module, image: torch.Tensor, _: Any) -> torch.Tensor:
        seen["tf32"] = torch.backends.cudnn.allow_tf32
        convs = [one.weight for one in network.modules() if isinstance(one, nn.Conv2d)]
        seen["nhwc"] = all(w.is_contiguous(memory_format=torch.channels_last) for w in convs)
        seen["graphs"] = "forward" in vars(network)
        return image[0]

    settings = spec("baselines/generic", "unet")
    method = load("baselines/generic")
    plan = replace(method.strategies["patch"], predict=look)
    for config, wanted in (
        (RunConfig("", "patch"), (True, False, False)),
        (RunConfig("", "patch", precision="ieee"), (False, False, False)),
        (RunConfig("", "patch", layout="nhwc", graphs=True), (True, True, True)),
    ):
        one = configured(plan, config)
        network = one.prepare(method.build(settings, CLASSES).eval(), settings)
        one.predict(network, torch.zeros(3, 8, 8), settings)
        assert (seen["tf32"], seen["nhwc"], seen["graphs"]) == wanted
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("method", "network", "strategy"),
    [
        ("baselines/generic", "fpn", "patch"),
        ("baselines/isdnet", "", "whole"),
        ("glnet", "", "collaborative"),
    ],
)
def test_batch_norm_is_folded(method: str, network: str, strategy: str) -> None:
    run = run_of(method, strategy, spec(method, network), CLASSES)
    folding = replace(run, config=replace(run.config, folded=True))
    plain = network_for(run.method, run.strategy, run.spec, CLASSES)
    for one in plain.modules():
        if isinstance(one, nn.BatchNorm2d):
            nn.init.uniform_(one.running_mean, -0.2, 0.2)
            nn.init.uniform_(one.running_var, 0.5, 1.5)
    folded = folding.strategy.prepare(copy.deepcopy(plain), run.spec)
    assert not any(isinstance(one, nn.BatchNorm2d) for one in folded.modules())
    image = torch.from_numpy(scene(0, SIZE)[0]).permute(2, 0, 1).contiguous()
    agree = run.predict(plain, image) == folding.predict(folded, image)
    assert agree.float().mean() >= 0.9999
    taken = [predict_run(one, SIZE, "cuda").device_bytes for one in (run, folding)]
    assert taken[1] < taken[0]


@pytest.mark.parametrize(
    ("method", "network", "strategy"), [("baselines/generic", "unet", "patch")]
)
def test_layout_and_tf32_are_predicted(method: str, network: str, strategy: str) -> None:
    run = run_of(method, strategy, spec(method, network, sub_batch=4), CLASSES)

    def allocated(**more: Any) -> tuple[int, int]:
        found = predict_run(replace(run, config=replace(run.config, **more)), SIZE, "cuda")
        assert found.allocated_bytes
        assert found.tf32_allocated_bytes
        return found.allocated_bytes, found.tf32_allocated_bytes

    plain, copied = allocated()
    assert copied > 1.05 * plain, "cuDNN's copies into NHWC"
    assert allocated(precision="ieee") == (plain, plain)
    in_nhwc = allocated(layout="nhwc")
    assert in_nhwc[1] < copied
    assert allocated(layout="nhwc", graphs=True) == in_nhwc, "not counted"
