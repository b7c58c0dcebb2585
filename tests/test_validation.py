"""A phase that stops when mIoU on val grows no more keeps its best weights, killed or not."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from conftest import PLAIN, model_line
from torch import nn

from bench import record
from bench.config import ModelConfig, read_suite, strict
from bench.errors import UserError
from bench.method import load
from bench.pipeline import progress as validation
from bench.pipeline.train import PARTIAL, train
from bench.run import Model, open_model

Edit = Callable[[Callable[[dict[str, Any]], None]], None]
LOOKS = [("global", 5, 0.9), ("a", 5, 0.2), ("a", 10, 0.3), ("a", 15, 0.3), ("a", 20, math.nan)]


def test_the_first_of_equals_is_the_best_and_only_the_phases_own_validations_count() -> None:
    assert validation.best(LOOKS, "a") == 2
    assert validation.best(LOOKS, "b") is None
    assert not validation.settled(LOOKS, "a", 3)
    assert validation.settled(LOOKS, "a", 2)
    assert not validation.settled([("a", 5, math.nan), ("a", 10, 0.1)], "a", 1)
    assert not validation.settled([], "a", 1)


def stopping(steps: int, rate: float, **training: Any) -> Callable[[dict[str, Any]], None]:
    """A suite whose one small U-Net is validated."""

    def change(suite: dict[str, Any]) -> None:
        spec = {**PLAIN, "network": "unet2015", "train_on": "patch"}
        line = model_line("baselines/generic", spec, ["train"], steps)
        line["training"]["phases"] = {"train": {"steps": steps, "learning_rate": rate, "batch": 2}}
        line["training"].update(training)
        suite["models"]["small"] = line

    return change


def test_what_does_not_grow_stops(project: None, edit_suite: Edit) -> None:
    edit_suite(stopping(20, 0.0, validate_every=2, patience=2))
    train(read_suite(), "small")
    values = record.read(record.path_of("tiny", "train", "small")).values
    assert [step for _, step, _ in values["validations"]] == [2, 4, 6]
    assert values["phases"]["train"]["steps"] == len(values["loss"]) == 6


def test_the_best_weights_are_kept(
    project: None, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_suite(stopping(5, 1e-2, validate_every=1, patience=5))
    scores, seen = iter([0.1, 0.4, 0.3, 0.4, 0.2]), []

    def validate(model: Model, network: nn.Module, *_: object) -> float:
        seen.append({key: value.clone() for key, value in network.state_dict().items()})
        return next(scores)

    monkeypatch.setattr("bench.pipeline.train.validate", validate)
    kept = torch.load(train(read_suite(), "small"), weights_only=True)
    equal = [all(torch.equal(kept[key], state[key]) for key in kept) for state in seen]
    assert equal == [False, True, False, False, False]


def test_killed_and_resumed_stops_at_the_same_step_with_the_same_weights(
    project: None, edit_suite: Edit, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_suite(stopping(8, 1e-2, validate_every=2, patience=1, checkpoint_every=3))
    suite = read_suite()
    straight = torch.load(train(suite, "small"), weights_only=True)
    shutil.rmtree(PARTIAL)
    validations = record.read(record.path_of("tiny", "train", "small")).values["validations"]
    true, calls = validation.validate, iter(range(10))

    def killed(*arguments: Any) -> float:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return true(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr("bench.pipeline.train.validate", killed)
        with pytest.raises(KeyboardInterrupt):
            train(suite, "small")
    resumed = torch.load(train(suite, "small"), weights_only=True)
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    assert (
        record.read(record.path_of("tiny", "train", "small")).values["validations"] == validations
    )


def test_a_look_leaves_the_modes_of_training(project: None) -> None:
    model = open_model(read_suite(), "glnet")
    network = model.build().eval()
    for phase in model.method.phases(network, model.spec):
        assert phase.judged_by in model.method.strategies
        for module in phase.trains:
            module.train()
        modes = [module.training for module in network.modules()]
        assert 0 <= validation.validate(model, network, phase) <= 1
        assert [module.training for module in network.modules()] == modes
        network.eval()


@pytest.mark.parametrize("network", ["colour", "fpn"])
def test_rivals_are_judged_by_what_they_learn_from(network: str) -> None:
    import baselines.generic.spec

    method = load("baselines/generic")
    for train_on in ("patch", "downsample"):
        spec = baselines.generic.spec.Spec(**{**PLAIN, "network": network, "train_on": train_on})
        (phase,) = method.phases(method.build(spec, 3), spec)
        assert phase.judged_by == ("whole" if network == "colour" else train_on)
        assert phase.judged_by in get_args(baselines.generic.spec.Strategy)


def test_a_data_set_without_val_is_refused(project: Path) -> None:
    path = project / "data/prepared/tiny/dataset.json"
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "splits": {**about["splits"], "val": []}}))
    model = open_model(read_suite(), "colour")
    network = model.build()
    with pytest.raises(UserError, match="has no val split, which `validate_every` needs"):
        validation.validate(model, network, model.method.phases(network, model.spec)[0])


def test_looking_never_is_no_setting() -> None:
    line = model_line("baselines/generic", {}, ["train"])
    line["training"]["validate_every"] = 0
    with pytest.raises(UserError, match=r"training\.validate_every is 0"):
        strict(ModelConfig, line, "params.yaml: models.x")
