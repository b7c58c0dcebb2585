"""A strategy's `inputs` describe the inputs that a network really receives."""

from typing import Any, get_args

import pytest
import torch
from conftest import FCTL
from test_contract import CASES, made, spec
from torch import Tensor
from torch.nn import functional as F

from baselines.fctl import spec as fctl
from baselines.fctl.inference import STRATEGIES, contexts
from bench.config import ModelConfig, RunConfig, Training
from bench.method import Strategy, network_inputs
from bench.tiling import shrink_image

SIZE = (70, 90)
IMAGE = torch.randint(0, 255, (3, *SIZE), dtype=torch.uint8, generator=torch.manual_seed(3))
# Modules that receive images: children of the network, or the network itself.
RECEIVERS = {
    ("baselines/generic", "patch"): {"": "patches"},
    ("baselines/generic", "downsample"): {"": "whole image"},
    ("baselines/generic", "whole"): {"": "whole image"},
    ("glnet", "global"): {"global_branch": "whole image"},
    ("glnet", "local"): {"local_alone": "patches"},
    ("glnet", "global-to-local"): {"global_branch": "whole image", "local_branch": "patches"},
    ("glnet", "collaborative"): {"global_branch": "whole image", "local_branch": "patches"},
    ("glnet", "coarse-to-fine"): {"global_branch": "whole image"},
    ("glnet", "coarse-to-fine-both-ways"): {"global_borrowing": "whole image"},
    ("baselines/isdnet", "whole"): {"backbone": "whole image (deep branch)"},
    ("baselines/pointrend", "whole"): {"encoder": "whole image"},
    ("baselines/rue", "whole"): {"backbone": "whole image (deep stream)"},
    ("baselines/f2net", "whole"): {"split": "whole image"},
    ("baselines/sgnet", "surround"): {"encoder": "patches", "parts.0": "surroundings"},
    ("baselines/cascadepsp", "base"): {"base": "whole image (base network)"},
    ("baselines/cascadepsp", "cascade"): {"base": "whole image (base network)"},
    ("baselines/magnet", "coarse"): {"backbone": "whole image"},
    ("baselines/magnet", "progressive"): {
        "backbone": "whole image, patches at scale 2, patches at scale 3",
    },
}
DESCRIBED = [
    (method, network, strategy)
    for method, network, strategy in CASES
    if (method, strategy) in RECEIVERS and network in ("", "alone", "unet")
]
assert {(method, strategy) for method, _, strategy in DESCRIBED} == RECEIVERS.keys()


def described(strategy: str, method: str, settings: dict[str, Any]) -> dict[str, Any]:
    model = ModelConfig("tiny", method, "nothing", settings, Training({}))
    return {one.what: one for one in network_inputs(RunConfig("m", strategy), model, *SIZE)}


@pytest.mark.parametrize(("method", "network", "strategy"), DESCRIBED)
def test_a_network_gets_as_many_pictures_of_the_size_that_is_described(
    method: str, network: str, strategy: str
) -> None:
    model, plan, settings = made(method, network, strategy)
    seen: dict[str, list[tuple[int, ...]]] = {}
    receivers = RECEIVERS[method, strategy]
    for receiver in receivers:

        def note(module: Any, inputs: tuple[Tensor, ...], receiver: str = receiver) -> None:
            seen.setdefault(receiver, []).extend([tuple(inputs[0].shape[-2:])] * len(inputs[0]))

        model.get_submodule(receiver).register_forward_pre_hook(note)
    with torch.inference_mode():
        plan.predict(model, IMAGE, settings)
    values = {name: getattr(settings, name) for name in settings.__dataclass_fields__}
    found = described(strategy, method, values)
    for receiver, names in receivers.items():
        given = [found[what] for what in names.split(", ")]
        assert seen[receiver] == [one.input_px for one in given for _ in one.boxes], receiver


@pytest.mark.parametrize("variant", ["inria", "deepglobe"])
def test_every_strategy_of_fctl_is_described(variant: str) -> None:
    found = {
        strategy: list(described(strategy, "baselines/fctl", {**FCTL, "variant": variant}))
        for strategy in get_args(fctl.Strategy)
    }
    assert found["plain"] == ["patches"]
    assert found["medium"] == ["patches", "medium contexts"]
    assert (
        found["large"]
        == {
            "inria": ["patches", "large contexts"],
            "deepglobe": ["whole image"],
        }[variant]
    )
    assert len(found["contexts"]) == 3


@pytest.mark.parametrize("variant", ["inria", "deepglobe"])
def test_context_windows_are_those_that_fctl_cuts(variant: str) -> None:
    settings = spec("baselines/fctl", variant)
    patches, medium = STRATEGIES["medium"].inputs(settings, *SIZE)
    far = 200  # black margins, so that a window can be cut by its coordinates
    padded = F.pad(IMAGE, (far, far, far, far))
    windows = [
        padded[:, far + b.top : far + b.top + b.height, far + b.left : far + b.left + b.width]
        for b in medium.boxes
    ]
    expected = torch.stack([shrink_image(window, medium.input_px) for window in windows])
    assert torch.equal(expected, contexts(IMAGE, patches.boxes, settings.medium))


def test_a_strategy_without_inputs_describes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Strategy(STRATEGIES["contexts"].predict)
    monkeypatch.setitem(STRATEGIES, "contexts", bare)
    assert described("contexts", "baselines/fctl", {**FCTL, "variant": "inria"}) == {}
