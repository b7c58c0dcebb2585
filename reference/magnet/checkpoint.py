"""The released checkpoints of MagNet, as this project keeps them.

The authors publish one file of the backbone and one of each refinement module; the loader of the
released code takes what fits of any file, and says nothing of the rest. Which order of inputs the
published refinement wants is not known (`coarse_first`)."""

import argparse
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from baselines.magnet.spec import Spec
from bench.errors import UserError
from bench.files import write_bytes

State = Mapping[str, Tensor]
PREFIXES = ("module.", "model.")
LATERAL = ("toplayer", "latlayer1", "latlayer2", "latlayer3")


def backbone_key(key: str) -> str:
    """The official name of a parameter or buffer of `baselines.magnet.model.Backbone`; those of
    `baselines.magnet.model.Refinement` have their own names there."""
    part, rest = key.split(".", 1)
    if part == "encoder":
        return f"resnet_backbone.{rest}"
    layer, rest = rest.split(".", 1)
    if layer == "classify":
        return f"classify.{rest}"
    number, rest = rest.split(".", 1)
    if layer == "lateral":
        return f"{LATERAL[int(number)]}.{rest}"
    return f"smooth{int(number) + 1}_{layer[-1]}.{rest}"


def from_official(
    backbone: State, refinements: Sequence[State], name: str = "the checkpoint"
) -> dict[str, Tensor]:
    """A state dict of ours from the official ones; classes are read off them.

    Args:
        refinements: one, or one for each later scale.

    Raises:
        UserError: says of which file how many keys are missing, extra or of another shape.
    """
    from baselines.magnet.model import build

    parts = [_clean(one) for one in (backbone, *refinements)]
    classes = len(parts[0].get("classify.bias", torch.empty(0)))
    spec = Spec(scales=(1.0,) * (len(refinements) + 1), refinements=max(len(refinements), 1))
    with torch.device("meta"):
        network = build(spec, classes)
    found = _renamed(parts[0], network.backbone.state_dict(), backbone_key, "backbone", name)
    for number, (state, module) in enumerate(zip(parts[1:], network.refine, strict=True)):
        found |= _renamed(state, module.state_dict(), str, f"refine.{number}", name)
    return found


def _clean(state: State) -> State:
    """Without the names of wrappers."""
    for prefix in PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def _renamed(
    state: State, own: State, official: Callable[[str], str], part: str, name: str
) -> dict[str, Tensor]:
    names = {key: official(key) for key in own}
    wrong = sorted(state.keys() ^ set(names.values())) or [
        theirs for ours, theirs in names.items() if state[theirs].shape != own[ours].shape
    ]
    if wrong:
        raise UserError(
            f"{name} is no MagNet of the released code ({part.replace('.', ' ')}): {len(wrong)} "
            f"keys are missing, extra or of another shape, first {wrong[0]}."
        )
    return {f"{part}.{ours}": state[theirs] for ours, theirs in names.items()}


def import_official(backbone: Path, refinements: Sequence[Path], target: Path) -> None:
    """Write the checkpoint that official files make.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    states = [_read(file) for file in (backbone, *refinements)]
    buffer = io.BytesIO()
    torch.save(from_official(states[0], states[1:], str(backbone)), buffer)
    write_bytes(target, buffer.getvalue())


def _read(file: Path) -> State:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {file}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{file} holds more than tensors, or is damaged ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no state dict.")
    state: State = content.get("state_dict", content)
    return state


def import_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of those that MagNet's authors publish."""
    parser.add_argument("backbone", metavar="BACKBONE.pth", type=Path)
    parser.add_argument(
        "refinements",
        metavar="REFINEMENT.pth",
        type=Path,
        nargs="+",
        help="one, or one for each later scale, from coarse to fine",
    )
    parser.add_argument("-o", "--output", metavar="CHECKPOINT", type=Path, required=True)

    def work(arguments: argparse.Namespace) -> None:
        import_official(arguments.backbone, arguments.refinements, arguments.output)
        print(arguments.output)

    parser.set_defaults(work=work)
