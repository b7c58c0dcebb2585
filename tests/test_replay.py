"""Replayed calls are tracked exactly as if they had been executed."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from test_contract import CLASSES, made, spec
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from bench.memory import runs
from bench.memory.replay import replaying
from bench.memory.runs import predict_run
from bench.memory.tracker import Tracker
from bench.run import run_of


@pytest.mark.no_cover  # thousands of operators on fake tensors
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(
    ("method", "network", "strategy"),
    [
        ("baselines/generic", "unet2015", "patch"),
        ("baselines/generic", "fpn", "whole"),
        ("glnet", "alone", "local"),
        ("glnet", "", "collaborative"),
    ],
)
def test_prediction_is_the_same_without(
    method: str, network: str, strategy: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case: Any = (run_of(method, strategy, spec(method, network), CLASSES), (110, 150), device)
    quick = predict_run(*case)
    monkeypatch.setattr(runs, "replaying", lambda *_: nullcontext())
    assert quick.figures() == predict_run(*case).figures()


class Counting(nn.Module):
    """Counts how often it is worked through."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor, how: str = "new") -> Tensor:
        self.times += 1
        if how == "kept":
            self.kept.append(x + 1)
        return x if how == "given" else torch.cat([x, x])


@pytest.mark.parametrize(("how", "worked"), [("new", 1), ("kept", 5), ("given", 5)])
def test_only_what_a_call_alone_decides_is_replayed(how: str, worked: int) -> None:
    network = Counting()
    with FakeTensorMode(), torch.inference_mode():
        tracker = Tracker()
        with tracker, replaying(network, tracker):
            results = [network(torch.empty(256, 4), how) for _ in range(5)]
    assert network.times == worked
    assert all(one.shape == ((256, 4) if how == "given" else (512, 4)) for one in results)
    alive = {"new": 5 * 8192, "kept": 5 * (8192 + 4096), "given": 5 * 4096}[how]
    assert tracker.now["cpu"] == alive
    del results
    assert tracker.now["cpu"] == (5 * 4096 if how == "kept" else 0)


def test_other_shapes_are_other_calls() -> None:
    network = Counting()
    with FakeTensorMode(), torch.inference_mode():
        tracker = Tracker()
        with tracker, replaying(network, tracker):
            for size in (4, 8, 4, 8):
                assert network(torch.empty(size)).shape == (2 * size,)
    assert network.times == 2
    assert "forward" not in vars(network), "the network is as it was"


def test_floating_point_operations_are_those_that_torch_counts() -> None:
    model, plan, settings = made("baselines/generic", "unet2015", "whole")
    found = predict_run(run_of("baselines/generic", "whole", settings, CLASSES), (40, 56), "cpu")
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        plan.predict(model, torch.zeros(3, 40, 56, dtype=torch.uint8), settings)
    assert found.flops == counter.get_total_flops() > 1e6


def test_operations_of_every_replayed_patch_count() -> None:
    settings = spec("baselines/generic", "unet2015", overlap_px=0, sub_batch=1)
    run, side = run_of("baselines/generic", "patch", settings, CLASSES), settings.size_px
    one, nine = (predict_run(run, (n * side, n * side), "cuda") for n in (1, 3))
    assert nine.flops == 9 * one.flops
