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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import load_state, write_bytes
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
GLNET_FILES = {  # file -> the parts that it is the source of
    "GLOBAL.pth": ("global_branch",),
    "G2L.pth": ("local_branch", "aggregation"),
    "L2G.pth": ("global_borrowing", "aggregation_borrowing"),
}
COUNTER = "num_batches_tracked"
SHOWN = 5
"""So many keys of a kind are named in a refusal."""


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, keys without the prefixes of wrappers.

    Nothing but tensors and plain containers is ever unpickled.

    Raises:
        UserError: it is not there, or anything else than a state dict.
    """
    content = load_state(path, "get the released file again")
    if not content:
        raise UserError(f"{path} is an empty state dict.")
    return _clean(content)


def write(path: Path, state: State) -> Path:
    """Save a state dict; an interrupted write leaves no file."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())
    return path


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


def difference(state: State, shapes: Shapes) -> dict[str, list[str]]:
    """The keys of a state dict that are missing, extra, or of another shape than they should be."""
    return {
        "missing": sorted(shapes.keys() - state.keys()),
        "extra": sorted(state.keys() - shapes.keys()),
        "of another shape": sorted(
            f"{key} {tuple(state[key].shape)} instead of {tuple(shapes[key])}"
            for key in shapes.keys() & state.keys()
            if state[key].shape != shapes[key]
        ),
    }


def _take(
    state: State, shapes: Shapes, official: Callable[[str], str], refusal: str, spare: bool = False
) -> dict[str, Tensor]:
    """What is ours of a state dict, by our keys; it has to have all of it.

    Args:
        refusal: what its owner is told, before the keys that are wrong.
        spare: it may have other keys as well.
    """
    names = {key: official(key) for key in shapes}
    wrong = difference(state, {names[key]: shape for key, shape in shapes.items()})
    if spare:
        del wrong["extra"]
    lists = [
        f"{kind}: {', '.join(keys[:SHOWN])}"
        + f" and {len(keys) - SHOWN} more" * (len(keys) > SHOWN)
        for kind, keys in wrong.items()
        if keys
    ]
    if lists:
        raise UserError(
            f"{refusal}: {sum(map(len, wrong.values()))} keys are missing, extra or of another "
            f"shape ({'; '.join(lists)})."
        )
    return {ours: state[theirs] for ours, theirs in names.items()}


def _classes(state: State, bias: str) -> int:
    """As many as the last layer's bias has; 1 where it is missing, which `_take` finds later."""
    return state[bias].numel() if bias in state else 1


# --- ISDNet, MagNet, FCtL ---------------------------------------------------------------------


def from_isdnet(state: State, name: str = "the checkpoint") -> dict[str, Tensor]:
    """A state dict of ours from the released one; depth and classes are read off it.

    Raises:
        UserError: says which keys are missing, extra or of another shape.
    """
    state = {k: v for k, v in _clean(state).items() if not k.startswith(ISDNET_ALIASES)}
    depth = 50 if "backbone.layer1.0.conv3.weight" in state else 18
    classes = _classes(state, "refine_head.conv_seg.conv_out.bias")
    shapes = shapes_of("baselines.isdnet", classes, depth=depth)
    return _take(state, shapes, isdnet_key, f"{name} is no ISDNet of the released code")


def from_magnet(
    backbone: State, refinements: Sequence[State], name: str = "the checkpoint"
) -> dict[str, Tensor]:
    """A state dict of ours from the released ones; classes are read off them.

    Args:
        refinements: one, or one for each later scale.

    Raises:
        UserError: says of which part which keys are missing, extra or of another shape.
    """
    states = {"backbone": _clean(backbone)}
    states |= {f"refine.{number}": _clean(one) for number, one in enumerate(refinements)}
    shapes = shapes_of(
        "baselines.magnet",
        _classes(states["backbone"], "classify.bias"),
        scales=(1.0,) * (len(refinements) + 1),
        refinements=max(len(refinements), 1),
    )
    found: dict[str, Tensor] = {}
    for part, state in states.items():
        own = {key: shape for key, shape in shapes.items() if key.startswith(f"{part}.")}
        refusal = f"{name} is no MagNet of the released code ({part.replace('.', ' ')})"
        found |= _take(state, own, magnet_key, refusal)
    return found


def from_fctl(states: Mapping[str, State], variant: str = "inria") -> dict[str, Tensor]:
    """One state dict of ours from the released ones, by phase; what the released files hold
    besides (aliases, torchvision's classifier, fixed kernels, unused correlations) is left out.

    Args:
        states: of the phases that there are; `all` needs `medium` and `large` beside it.

    Raises:
        UserError: says of which phase which keys are missing or of another shape.
    """
    phases = tuple(phase for phase in PHASES if phase in states)
    lacking = {"medium", "large"} - states.keys() if "all" in states else set()
    if lacking or len(phases) < len(states) or not states:
        raise UserError(
            "FCtL's checkpoint of the phase `all` needs those of `medium` and `large` beside it; "
            f"given are {', '.join(sorted(states)) or 'none'}."
        )
    classes = _classes(_clean(states[phases[0]]), "output.6.bias")
    shapes = shapes_of("baselines.fctl", classes, variant=variant, phases=phases)
    sources = {key: fctl_source(key, variant) for key in shapes}
    found: dict[str, Tensor] = {}
    for phase, state in states.items():
        own = {key: shape for key, shape in shapes.items() if sources[key].phase == phase}
        refusal = f"The checkpoint of the phase `{phase}` is not FCtL's ({variant})"
        found |= _take(_clean(state), own, lambda key: sources[key].key, refusal, spare=True)
    return found


# --- GLNet ------------------------------------------------------------------------------------


def from_glnet(
    states: Sequence[State],
    shapes_for: Callable[[int], Shapes] = lambda classes: shapes_of("glnet", classes),
    names: Sequence[str] = tuple(GLNET_FILES),
    serve: str | None = None,
) -> dict[str, Tensor]:
    """One state dict of ours from the three released ones (GLOBAL, G2L, L2G).

    Counters of batch norm may be missing: torch 0.4 did not have them.

    Args:
        shapes_for: number of classes -> keys and shapes of our network.
        names: of the files, for what is said of them.
        serve: `global-to-local` or `collaborative`: the files need not be of one training, and the
            result is what the official code evaluates in that mode alone.

    Raises:
        UserError: lists missing, extra and wrongly shaped keys; or says which file's copy of a part
            that no later phase trains is not the one that an earlier file has.
    """
    shapes = shapes_for(_classes(states[0], "ensemble_conv.bias"))
    zero = torch.zeros((), dtype=torch.long)
    counters = {glnet_key(key): zero for key in shapes if key.endswith(COUNTER)}
    files = [
        _take(counters | dict(state), shapes, glnet_key, f"{name} is no official GLNet checkpoint")
        for state, name in zip(states, names, strict=True)
    ]
    source = {part: i for i, parts in enumerate(GLNET_FILES.values()) for part in parts}
    if serve is None:
        _check_frozen(files, names)
    else:
        source |= {"global-to-local": {"global_branch": 1}, "collaborative": {"local_branch": 2}}[
            serve
        ]
    return {key: files[source[key.split(".", 1)[0]]][key] for key in shapes}


def _check_frozen(files: Sequence[State], names: Sequence[str]) -> None:
    """What a phase does not train has to be what an earlier file has, or one checkpoint could not
    stand for all three; counters of batch norm, which a file may lack, do not count."""
    for part, first, second in (("global_branch", 0, 1), ("local_branch", 1, 2)):
        keys = [k for k in files[0] if k.startswith(f"{part}.") and not k.endswith(COUNTER)]
        moved = [key for key in keys if not files[first][key].equal(files[second][key])]
        if moved:
            raise UserError(
                f"{names[second]} does not go on from {names[first]}: {len(moved)} of {len(keys)} "
                f"tensors of the {part.replace('_', ' ')} differ, first {glnet_key(moved[0])}; "
                "three files of one training are needed, or --serve with the one strategy that "
                "shall be run."
            )


def to_glnet(state: State) -> list[dict[str, Tensor]]:
    """The three released state dicts (GLOBAL, G2L, L2G), keys with prefix, each of them whole.

    Where one official key stands for two parts of ours (the global encoder, `classify`, the
    aggregation), a file has the one that its phase left there.

    Raises:
        UserError: the checkpoint lacks a phase, or is no network that the official code has.
    """
    sources = [*GLNET_FILES.values()]
    lacking = {part for parts in sources for part in parts} - {key.split(".")[0] for key in state}
    if lacking:
        raise UserError(f"The checkpoint has no {', '.join(sorted(lacking))}: train all phases.")
    shapes = shapes_of("glnet", len(state["aggregation.conv.bias"]))
    refusal = (
        "The checkpoint is no network of the official code, which has ResNet-50, fpn_width 256, "
        "smooth_width 128 and deep sharing"
    )
    own = _take(state, shapes, str, refusal)
    files: list[dict[str, Tensor]] = []
    for number in range(1, len(sources) + 1):
        # A later phase's part is written over an earlier one's, and kept for what comes after it.
        order = [part for parts in sources[number:] + sources[:number] for part in parts]
        keys = sorted(own, key=lambda key: order.index(key.split(".", 1)[0]))
        files.append({PREFIX + glnet_key(key): own[key] for key in keys})
    return files


def export_glnet(checkpoint: Path, folder: Path) -> list[Path]:
    """Write the three files that the official code loads; returns their paths."""
    contents = zip(GLNET_FILES, to_glnet(read(checkpoint)), strict=True)
    return [write(folder / name, content) for name, content in contents]


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
        return from_glnet([*map(read, files)], names=[*map(str, files)], serve=given.serve)

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
        refinements = [*map(read, given.refinements)]
        return from_magnet(read(given.backbone), refinements, str(given.backbone))

    _importing(parser, make)


def import_fctl_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of those that FCtL's released code writes, one a phase."""
    for phase in PHASES:
        parser.add_argument(f"--{phase}", metavar="FILE.pth", type=Path)
    parser.add_argument("--variant", choices=tuple(FCTL), default="inria")

    def make(given: argparse.Namespace) -> State:
        files = {phase: getattr(given, phase) for phase in PHASES}
        return from_fctl({phase: read(f) for phase, f in files.items() if f}, given.variant)

    _importing(parser, make)


def export_glnet_command(parser: argparse.ArgumentParser) -> None:
    """Write a checkpoint as the three files that the official GLNet code loads."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    _writing(parser, "FOLDER", lambda given: export_glnet(given.checkpoint, given.output))


def _importing(
    parser: argparse.ArgumentParser, make: Callable[[argparse.Namespace], State]
) -> None:
    _writing(parser, "CHECKPOINT", lambda given: [write(given.output, make(given))])


def _writing(
    parser: argparse.ArgumentParser, output: str, save: Callable[[argparse.Namespace], list[Path]]
) -> None:
    """Ends a command that prints which files it has written."""
    parser.add_argument("-o", "--output", metavar=output, type=Path, required=True)
    parser.set_defaults(work=lambda given: print(*save(given), sep="\n"))
