"""Memory that is predicted on fake tensors, against what the CPU allocator itself booked."""

from collections import defaultdict

import pytest
import torch
from test_contract import CASES, CLASSES, ids, made, spec
from torch import Tensor

from bench.memory import predict_memory, tensors_of
from bench.memory.account import account
from bench.memory.booking import bytes_of
from bench.memory.prediction import (
    STEPS,
    Prediction,
    begin,
    predict_training,
    step,
    views_of,
)
from bench.method import load

SIZES = ((101, 150), (160, 96))
WITHIN = 0.05

TRAINED = list(dict.fromkeys((m, n) for m, n, _ in CASES if n != "colour"))


@pytest.mark.parametrize(("method", "network", "strategy"), CASES, ids=ids)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_one_image_through_every_strategy(
    method: str, network: str, strategy: str, size: tuple[int, int]
) -> None:
    model, plan, settings = made(method, network, strategy)
    image = torch.randint(0, 255, (3, *size), dtype=torch.uint8)
    with torch.inference_mode(), account() as booked:
        plan.predict(model, image, settings)
    booked_bytes = bytes_of([*tensors_of(model), image]) + booked.peak_bytes
    predicted = predict_memory(load(method), plan, settings, CLASSES, size, "cpu")
    assert sum(predicted.by_category.values()) == predicted.device_bytes
    if strategy == "coarse-to-fine":  # how many patches there are depends on the image
        assert predicted.device_bytes >= (1 - WITHIN) * booked_bytes
    else:
        assert predicted.device_bytes == pytest.approx(booked_bytes, rel=WITHIN)


@pytest.mark.parametrize(("method", "network"), TRAINED)
def test_steps_of_every_phase(method: str, network: str) -> None:
    package, settings = load(method), spec(method, network, sub_batch=4)
    size = SIZES[0] if method == "baselines" else (70, 50)
    batch: defaultdict[str, int] = defaultdict(lambda: 2)
    predicted = predict_training(package, settings, CLASSES, size, batch, "cpu")
    model = package.build(settings, CLASSES).to(memory_format=torch.channels_last)
    for phase in package.phases(model, settings):
        views = views_of(package, settings, phase, size, batch[phase.name])
        optimiser = begin(model, phase, 0.0)
        seen = [value for view in views for value in view.values() if isinstance(value, Tensor)]
        there = bytes_of([*tensors_of(model), *seen])
        with account() as booked:
            for _ in range(STEPS):
                step(package, model, views, settings, phase, optimiser)
        found = predicted[phase.name]
        assert found.device_bytes == pytest.approx(there + booked.peak_bytes, rel=WITHIN)
        assert found.by_category["optimiser state"] > 0
        assert sum(found.by_category.values()) == found.device_bytes


def test_the_module_at_the_peak_is_named() -> None:
    _, plan, settings = made("baselines", "fcn8s", "whole")
    found = predict_memory(load("baselines"), plan, settings, CLASSES, SIZES[0], "cpu")
    assert found.at == "aten.conv2d.default"
    assert found.module == "Conv2d network.encoder.features.2"


def test_a_card_reserves_more_than_it_is_asked_for() -> None:
    _, plan, settings = made("baselines", "unet", "patch")
    found = predict_memory(load("baselines"), plan, settings, CLASSES, SIZES[0], "cuda")
    assert isinstance(found, Prediction)
    assert found.reserved_bytes is not None
    assert found.allocated_bytes is not None
    assert found.reserved_bytes >= found.allocated_bytes >= found.device_bytes
    assert found.reserved_bytes % 2**20 == 0, "segments are whole mebibytes"
