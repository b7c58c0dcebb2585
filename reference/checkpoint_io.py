"""Released checkpoints of GLNet, ISDNet, FCtL and MagNet, as this project keeps them; GLNet's also
back.

Which of our parts a released file is the source of:

    GLNet   GLOBAL.pth  global_branch; also the source of shared features in phases 2 and 3
            G2L.pth     local_branch, aggregation
            L2G.pth     global_borrowing, aggregation_borrowing
    FCtL    Bfcn (`deepglobe`: Afcn)    plain
            B10                         medium_vgg, medium_rest
            B15 (`deepglobe`: global)   large_vgg, large_rest
            all                         local
    ISDNet  one file, everything
    MagNet  one file of the backbone, one of each refinement module; the loader of the released code
            takes what fits of any file, and says nothing of the rest. Which order of inputs the
            published refinement wants is not known (`coarse_first`).

Keys may carry the prefixes of wrappers, `module.` (DataParallel) and `model.`."""

import argparse
import importlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import write_bytes
from reference.keys import (
    FCTL,
    ISDNET_ALIASES,
    PHASES,
    fctl_source,
    glnet_key,
    isdnet_key,
    magnet_key,
)

State = Mapping[str, Tensor]
Shapes = dict[str, torch.Size]
PREFIX = "module."
PREFIXES = (PREFIX, "model.")
GLNET_FILES = ("GLOBAL.pth", "G2L.pth", "L2G.pth")
GLNET_SOURCES = (  # the parts that each file is the source of
    ("global_branch",),
    ("local_branch", "aggregation"),
    ("global_borrowing", "aggregation_borrowing"),
)
NOTHING = torch.empty(0)


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, keys without the prefixes of wrappers.

    Nothing but tensors and plain containers is ever unpickled.

    Raises:
        UserError: it is not there, or anything else than a state dict.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {path}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{path} holds more than tensors, or is damaged ({reason}).") from None
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"{path} is no state dict: it should map names to tensors.")
    if not content:
        raise UserError(f"{path} is an empty state dict.")
    return _clean(content)


def write(path: Path, state: State) -> None:
    """Save a state dict; an interrupted write leaves no file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def shapes_of(package: str, classes: int, **settings: Any) -> Shapes:
    """Key -> shape of a method's network, `settings` being those of its spec."""
    spec, model = (importlib.import_module(f"{package}.{part}") for part in ("spec", "model"))
    with torch.device("meta"):
        network = model.build(spec.Spec(**settings), classes)
    return {key: value.shape for key, value in network.state_dict().items()}


def _clean(state: State) -> dict[str, Tensor]:
    for prefix in PREFIXES:
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _part(shapes: Shapes, prefix: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if key.startswith(prefix)}


def _take(
    state: State, shapes: Shapes, official: Callable[[str], str], refusal: str
) -> dict[str, Tensor]:
    """What is ours of a state dict, by our keys; it has to have all of it and nothing else.

    Args:
        refusal: what its owner is told, before the number of wrong keys and the first.
    """
    names = {key: official(key) for key in shapes}
    wrong = sorted(state.keys() ^ set(names.values())) or [
        theirs for ours, theirs in names.items() if state[theirs].shape != shapes[ours]
    ]
    if wrong:
        raise UserError(
            f"{refusal}: {len(wrong)} keys are missing, extra or of another shape, first "
            f"{wrong[0]}."
        )
    return {ours: state[theirs] for ours, theirs in names.items()}


# --- ISDNet, MagNet, FCtL ---------------------------------------------------------------------


def from_isdnet(state: State, name: str = "the checkpoint") -> dict[str, Tensor]:
    """A state dict of ours from the released one; depth and classes are read off it.

    Raises:
        UserError: says how many keys are missing, extra or of another shape.
    """
    state = {k: v for k, v in _clean(state).items() if not k.startswith(ISDNET_ALIASES)}
    classes = len(state.get("refine_head.conv_seg.conv_out.bias", NOTHING))
    depth = 50 if "backbone.layer1.0.conv3.weight" in state else 18
    shapes = shapes_of("baselines.isdnet", classes, depth=depth)
    return _take(state, shapes, isdnet_key, f"{name} is no ISDNet of the released code")


def from_magnet(
    backbone: State, refinements: Sequence[State], name: str = "the checkpoint"
) -> dict[str, Tensor]:
    """A state dict of ours from the released ones; classes are read off them.

    Args:
        refinements: one, or one for each later scale.

    Raises:
        UserError: says of which part how many keys are missing, extra or of another shape.
    """
    states = {"backbone.": _clean(backbone)}
    states |= {f"refine.{number}.": _clean(one) for number, one in enumerate(refinements)}
    shapes = shapes_of(
        "baselines.magnet",
        len(states["backbone."].get("classify.bias", NOTHING)),
        scales=(1.0,) * (len(refinements) + 1),
        refinements=max(len(refinements), 1),
    )
    found: dict[str, Tensor] = {}
    for part, state in states.items():

        def official(key: str, part: str = part) -> str:
            key = key.removeprefix(part)
            return magnet_key(key) if part == "backbone." else key

        what = part.rstrip(".").replace(".", " ")
        refusal = f"{name} is no MagNet of the released code ({what})"
        found |= _take(state, _part(shapes, part), official, refusal)
    return found


def from_fctl(states: Mapping[str, State], variant: str = "inria") -> dict[str, Tensor]:
    """One state dict of ours from the released ones, by phase; what the released files hold
    besides (aliases, torchvision's classifier, fixed kernels, unused correlations) is left out.

    Args:
        states: of the phases that there are; `all` needs `medium` and `large` beside it.

    Raises:
        UserError: names the first key that is missing or of another shape.
    """
    clean = {phase: _clean(state) for phase, state in states.items()}
    lacking = {"medium", "large"} - clean.keys() if "all" in clean else set()
    if lacking or clean.keys() - set(PHASES) or not clean:
        raise UserError(
            "FCtL's checkpoint of the phase `all` needs those of `medium` and `large` beside it; "
            f"given are {', '.join(sorted(clean)) or 'none'}."
        )
    phases = tuple(phase for phase in PHASES if phase in clean)
    classes = len(clean[phases[0]].get("output.6.bias", NOTHING))
    shapes = shapes_of("baselines.fctl", classes, variant=variant, phases=phases)
    found = {}
    for key, shape in shapes.items():
        phase, name = fctl_source(key, variant)
        if clean[phase].get(name, NOTHING).shape != shape:
            raise UserError(
                f"The checkpoint of the phase `{phase}` is not FCtL's ({variant}): {name} is "
                "missing or has another shape."
            )
        found[key] = clean[phase][name]
    return found


# --- GLNet ------------------------------------------------------------------------------------


def from_glnet(
    states: Sequence[State],
    shapes_for: Callable[[int], Shapes] = lambda classes: shapes_of("glnet", classes),
    names: Sequence[str] = GLNET_FILES,
    serve: str | None = None,
) -> dict[str, Tensor]:
    """One state dict of ours from the three released ones (GLOBAL, G2L, L2G).

    Args:
        shapes_for: number of classes -> keys and shapes of our network.
        names: of the files, for what is said of them.
        serve: `global-to-local` or `collaborative`: the files need not be of one training, and the
            result is what the official code evaluates in that mode alone.

    Raises:
        UserError: lists missing, extra and wrongly shaped keys; or says which file's copy of a part
            that no later phase trains is not the one that an earlier file has.
    """
    bias = states[0].get("ensemble_conv.bias", torch.empty(0, 0))
    if bias.dim() != 1:
        missing = "missing: ensemble_conv.bias"
        raise UserError(f"{names[0]} is not an official GLNet checkpoint: {missing}.")
    shapes = shapes_for(len(bias))
    for state, name in zip(states, names, strict=True):
        lists = [
            f"{kind.replace('_', ' ')}: {', '.join(keys)}"
            for kind, keys in difference(state, shapes)._asdict().items()
            if keys
        ]
        if lists:
            raise UserError(f"{name} is not an official GLNet checkpoint: {'; '.join(lists)}.")
    source = {part: i for i, parts in enumerate(GLNET_SOURCES) for part in parts}
    if serve is None:
        _check_frozen(states, shapes, names)
    else:
        source |= {"global-to-local": {"global_branch": 1}, "collaborative": {"local_branch": 2}}[
            serve
        ]
    found = {}
    for key, shape in shapes.items():
        state, name = states[source[key.split(".", 1)[0]]], glnet_key(key)
        found[key] = state[name] if name in state else torch.zeros(shape, dtype=torch.long)
    return found


class Difference(NamedTuple):
    """How a state dict does not fit."""

    missing: list[str]
    extra: list[str]
    of_another_shape: list[str]


def difference(state: State, shapes: Shapes) -> Difference:
    """Official keys of `state` against those that a GLNet of ours with `shapes` stands for.

    Counters of batch norm may be missing: torch 0.4 did not have them.
    """
    expected = {glnet_key(key): shape for key, shape in shapes.items()}
    missing = sorted(expected.keys() - state.keys())
    return Difference(
        [key for key in missing if not key.endswith("num_batches_tracked")],
        sorted(state.keys() - expected.keys()),
        sorted(
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key])}"
            for key in expected.keys() & state.keys()
            if state[key].shape != expected[key]
        ),
    )


def _check_frozen(states: Sequence[State], shapes: Shapes, names: Sequence[str]) -> None:
    """What a phase does not train has to be what an earlier file has, or one checkpoint could not
    stand for all three."""
    for part, first, second in (("global_branch", 0, 1), ("local_branch", 1, 2)):
        keys = [glnet_key(key) for key in _part(shapes, f"{part}.")]
        one, other = states[first], states[second]
        moved = [
            key for key in keys if key in one and key in other and not one[key].equal(other[key])
        ]
        if moved:
            raise UserError(
                f"{names[second]} does not go on from {names[first]}: {len(moved)} of {len(keys)} "
                f"tensors of the {part.replace('_', ' ')} differ, first {moved[0]}; three files of "
                "one training are needed, or --serve with the one strategy that shall be run."
            )


def to_glnet(state: State) -> list[dict[str, Tensor]]:
    """The three released state dicts (GLOBAL, G2L, L2G), keys with prefix, each of them whole.

    Where one official key stands for two parts of ours (the global encoder, `classify`, the
    aggregation), a file has the one that its phase left there.

    Raises:
        UserError: the checkpoint lacks a phase, or is no network that the official code has.
    """
    parts = {key.split(".", 1)[0] for key in state}
    lacking = {part for parts in GLNET_SOURCES for part in parts} - parts
    if lacking:
        raise UserError(f"The checkpoint has no {', '.join(sorted(lacking))}: train all phases.")
    shapes = shapes_of("glnet", len(state["aggregation.conv.bias"]))
    wrong = sorted(state.keys() ^ shapes.keys()) or sorted(
        key for key in shapes if shapes[key] != state[key].shape
    )
    if wrong:
        raise UserError(
            f"The checkpoint is no network of the official code ({len(wrong)} keys differ, first "
            f"{wrong[0]}): that has ResNet-50, fpn_width 256, smooth_width 128 and deep sharing."
        )
    files: list[dict[str, Tensor]] = []
    for number in range(len(GLNET_FILES)):
        # A later phase's part is written over an earlier one's, and kept for what comes after it.
        order = [*GLNET_SOURCES[number + 1 :], *GLNET_SOURCES[: number + 1]]
        file: dict[str, Tensor] = {}
        for part in (part for parts in order for part in parts):
            file |= {PREFIX + glnet_key(key): state[key] for key in _part(shapes, f"{part}.")}
        files.append(file)
    return files


def export_glnet(checkpoint: Path, folder: Path) -> list[Path]:
    """Write the three files that the official code loads; returns their paths."""
    paths = [folder / name for name in GLNET_FILES]
    for path, content in zip(paths, to_glnet(read(checkpoint)), strict=True):
        write(path, content)
    return paths


# --- commands ---------------------------------------------------------------------------------


def import_glnet_command(parser: argparse.ArgumentParser) -> None:
    """Make one checkpoint of the three that the GLNet authors publish."""
    for name in ("global", "g2l", "l2g"):
        parser.add_argument(f"{name}_pth", metavar=f"{name.upper()}.pth", type=Path)
    parser.add_argument(
        "--serve",
        choices=("global-to-local", "collaborative"),
        help="the one strategy that is run, where the three files are not of one training",
    )

    def make(given: argparse.Namespace) -> State:
        files = (given.global_pth, given.g2l_pth, given.l2g_pth)
        states = [read(file) for file in files]
        return from_glnet(states, names=[str(file) for file in files], serve=given.serve)

    _importing(parser, make)


def import_isdnet_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of one that the ISDNet authors publish."""
    parser.add_argument("file", metavar="FILE.pth", type=Path)
    _importing(parser, lambda given: from_isdnet(read(given.file), str(given.file)))


def import_magnet_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of those that MagNet's authors publish."""
    parser.add_argument("backbone", metavar="BACKBONE.pth", type=Path)
    parser.add_argument(
        "refinements",
        metavar="REFINEMENT.pth",
        type=Path,
        nargs="+",
        help="one, or one for each later scale, from coarse to fine",
    )

    def make(given: argparse.Namespace) -> State:
        backbone, *refinements = (read(file) for file in (given.backbone, *given.refinements))
        return from_magnet(backbone, refinements, str(given.backbone))

    _importing(parser, make)


def import_fctl_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of those that FCtL's released code writes, one a phase."""
    for phase in PHASES:
        parser.add_argument(f"--{phase}", metavar="FILE.pth", type=Path)
    parser.add_argument("--variant", choices=tuple(FCTL), default="inria")

    def make(given: argparse.Namespace) -> State:
        files: dict[str, Path | None] = {phase: getattr(given, phase) for phase in PHASES}
        states = {phase: read(file) for phase, file in files.items() if file is not None}
        return from_fctl(states, given.variant)

    _importing(parser, make)


def _importing(
    parser: argparse.ArgumentParser, make: Callable[[argparse.Namespace], State]
) -> None:
    parser.add_argument("-o", "--output", metavar="CHECKPOINT", type=Path, required=True)

    def work(given: argparse.Namespace) -> None:
        write(given.output, make(given))
        print(given.output)

    parser.set_defaults(work=work)


def export_glnet_command(parser: argparse.ArgumentParser) -> None:
    """Write a checkpoint as the three files that the official GLNet code loads."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)

    def work(given: argparse.Namespace) -> None:
        for path in export_glnet(given.checkpoint, given.output):
            print(path)

    parser.set_defaults(work=work)
