"""The released checkpoints of FCtL, as this project keeps them.

The official code writes one file a phase, whose keys list shared tensors several times. Which of
our parts a phase's file is the source of:

    plain    Bfcn (`deepglobe`: Afcn)    plain
    medium   B10                         medium_vgg, medium_rest
    large    B15 (`deepglobe`: global)   large_vgg, large_rest
    all      all                         local
"""

import argparse
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from baselines.fctl.spec import PhaseName, Spec
from bench.errors import UserError
from bench.files import write_bytes

Variant = Literal["inria", "deepglobe"]
State = Mapping[str, Tensor]

PHASES: tuple[PhaseName, ...] = ("plain", "medium", "large", "all")
SUFFIX = {"medium": "", "large": "_1", "local": "_2"}
"""Of the correlations' keys in the last phase of `inria`."""


class Source(NamedTuple):
    """Where a tensor of ours comes from."""

    phase: PhaseName
    key: str


def source_of(key: str, variant: Variant) -> Source:
    """The official phase and key, without `module.`, of a parameter of `baselines.fctl.model.FCtL`."""
    part, *rest = key.split(".")
    name = part.split("_", 1)[0]
    phase: PhaseName = {"plain": "plain", "medium": "medium", "large": "large", "local": "all"}[
        name
    ]  # type: ignore[assignment]
    if part.endswith("_vgg"):
        rest = ["vgg", *rest]
    kind, *inner = rest
    if kind == "vgg":
        return Source(phase, ".".join(["vgg", *inner]))
    if kind == "decoder":
        first = {"head": "output", "adapt3": "adj_pool3", "adapt4": "adj_pool4"}[inner[0]]
        return Source(phase, ".".join([first, *inner[1:]]))
    if kind == "correlate":
        prefix = "big_attention" if variant == "inria" else "big"
        return Source(phase, _correlation(inner, prefix, ""))
    block = "big_attention." if variant == "inria" else ""
    layer, *deeper = inner
    if layer == "correlate":
        which, *deeper = deeper
        if variant == "inria":
            return Source(phase, _correlation(deeper, "big_attention", SUFFIX[which]))
        return Source(phase, _correlation(deeper, which, ""))
    if layer == "trans":
        return Source(phase, block + ".".join(inner))
    first = {"into": "in", "out": "out"}[layer]
    return Source(phase, f"{block}{first}_{int(deeper[0]) + 1}.{deeper[1]}")


def _correlation(inner: list[str], prefix: str, suffix: str) -> str:
    if inner == ["gain"]:
        return f"{prefix}.gamma{suffix}"
    return f"{prefix}.conv_{inner[0]}{suffix}.{inner[1]}"


def from_official(states: Mapping[str, State], variant: Variant = "inria") -> dict[str, Tensor]:
    """One state dict of ours from the official ones, by phase; what the official files hold
    besides (aliases, torchvision's classifier, fixed kernels, unused correlations) is left out.

    Args:
        states: of the phases that there are; `all` needs `medium` and `large` beside it.

    Raises:
        UserError: names the first key that is missing or of another shape.
    """
    from baselines.fctl.model import build

    clean = {
        phase: {key.removeprefix("module."): value for key, value in state.items()}
        for phase, state in states.items()
    }
    lacking = {"medium", "large"} - clean.keys() if "all" in clean else set()
    unknown = clean.keys() - set(PHASES)
    if lacking or unknown or not clean:
        raise UserError(
            "FCtL's checkpoint of the phase `all` needs those of `medium` and `large` beside it; "
            f"given are {', '.join(sorted(clean)) or 'none'}."
        )
    phases = tuple(phase for phase in PHASES if phase in clean)
    classes = len(clean[phases[0]].get("output.6.bias", torch.empty(0)))
    with torch.device("meta"):
        own = build(Spec(variant=variant, phases=phases), classes).state_dict()
    found = {}
    for key, value in own.items():
        phase, name = source_of(key, variant)
        if clean[phase].get(name, torch.empty(0)).shape != value.shape:
            raise UserError(
                f"The checkpoint of the phase `{phase}` is not FCtL's ({variant}): {name} is "
                "missing or has another shape."
            )
        found[key] = clean[phase][name]
    return found


def import_official(files: Mapping[str, Path], target: Path, variant: Variant) -> None:
    """Write the checkpoint that the official files of several phases make.

    Raises:
        UserError: a file cannot be read, or holds something else.
    """
    states = {}
    for phase, file in files.items():
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"There is no {file}.") from None
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            reason = str(error).split("\n", 1)[0]
            raise UserError(f"{file} holds more than tensors, or is damaged ({reason}).") from None
        if not isinstance(state, dict):
            raise UserError(f"{file} is no state dict.")
        states[phase] = state
    buffer = io.BytesIO()
    torch.save(from_official(states, variant), buffer)
    write_bytes(target, buffer.getvalue())


def import_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of those that FCtL's released code writes, one a phase."""
    for phase in PHASES:
        parser.add_argument(f"--{phase}", metavar="FILE.pth", type=Path)
    parser.add_argument("--variant", choices=("inria", "deepglobe"), default="inria")
    parser.add_argument("-o", "--output", metavar="CHECKPOINT", type=Path, required=True)

    def work(arguments: argparse.Namespace) -> None:
        files: dict[str, Path | None] = {phase: getattr(arguments, phase) for phase in PHASES}
        given = {phase: file for phase, file in files.items() if file is not None}
        import_official(given, arguments.output, arguments.variant)
        print(arguments.output)

    parser.set_defaults(work=work)
