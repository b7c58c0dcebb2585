"""The released checkpoints, as this project keeps them, and back.

The official code writes one file a phase, each with every key of its network, prefixed by
`module.` (DataParallel). Which file a part of ours comes from:

    global_branch                            GLOBAL.pth  phase 1; also the lender of phases 2 and 3
    local_branch, aggregation                G2L.pth     phase 2
    global_borrowing, aggregation_borrowing  L2G.pth     phase 3
"""

import argparse
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from bench.errors import UserError
from bench.files import write_bytes
from glnet.spec import Spec

State = Mapping[str, Tensor]

PREFIX = "module."
PARTS = {  # part of ours -> (the official encoder, its FPN)
    "global_branch": ("resnet_global", "fpn_global"),
    "local_branch": ("resnet_local", "fpn_local"),
    "global_borrowing": ("resnet_global", "fpn_global"),
}
LATERAL = ("toplayer", "latlayer1", "latlayer2", "latlayer3")
FILES = ("GLOBAL.pth", "G2L.pth", "L2G.pth")
SOURCES = (  # the parts that each file is the source of
    ("global_branch",),
    ("local_branch", "aggregation"),
    ("global_borrowing", "aggregation_borrowing"),
)


def official_key(key: str) -> str:
    """The official name, without prefix, of a parameter or buffer of `glnet.model.GLNet`."""
    part, kind, *rest = key.split(".")
    if part.startswith("aggregation"):
        return ".".join(["ensemble_conv", *rest])
    encoder, fpn = PARTS[part]
    if kind == "encoder":
        return ".".join([encoder, *rest])
    # The global FPN has both sets of layers; those that borrow are marked, but for `smooth`, which
    # only they have, and `classify`, which both share.
    borrowing = "_ext" if part == "global_borrowing" else ""
    step, level = rest[0], rest[1]
    if step == "lateral":
        return f"{fpn}.{LATERAL[int(level)]}{borrowing}.{rest[2]}"
    if step in ("smooth1", "smooth2"):
        return f"{fpn}.smooth{int(level) + 1}_{step[-1]}{borrowing}.{rest[2]}"
    return f"{fpn}.{'smooth' if step == 'smooth3' else step}.{level}"


def shapes_of(spec: Spec, classes: int) -> dict[str, torch.Size]:
    """Key -> shape of our network of all three phases."""
    from glnet.model import build  # takes seconds to import

    with torch.device("meta"):
        network = build(spec, classes)
    return {key: value.shape for key, value in network.state_dict().items()}


def from_official(
    states: Sequence[State],
    spec: Spec,
    names: Sequence[str] = FILES,
    serve: str | None = None,
) -> dict[str, Tensor]:
    """One state dict of ours from the three official ones (GLOBAL, G2L, L2G), keys without prefix.

    Args:
        names: of the files, for what is said of them.
        serve: `global-to-local` or `collaborative`: the files need not be of one training, and the
            result is what the official code evaluates in that mode alone.

    Raises:
        UserError: lists missing, extra and wrongly shaped keys; or says which file's copy of a part
            that no later phase trains is not the one that an earlier file has.
    """
    classes = _classes(states[0], names[0])
    shapes = shapes_of(spec, classes)
    for state, name in zip(states, names, strict=True):
        _check(state, shapes, name)
    source = {part: state for parts, state in zip(SOURCES, states, strict=True) for part in parts}
    if serve is None:
        _check_frozen(states, shapes, names)
    else:
        source |= {
            "global-to-local": {"global_branch": states[1]},
            "collaborative": {"local_branch": states[2]},
        }[serve]
    return {
        key: _value(source[key.split(".", 1)[0]], official_key(key), shape)
        for key, shape in shapes.items()
    }


def to_official(state: State) -> list[dict[str, Tensor]]:
    """The three official state dicts (GLOBAL, G2L, L2G), keys with prefix, each of them whole.

    Where one official key stands for two parts of ours (the global encoder, `classify`, the
    aggregation), a file has the one that its phase left there.

    Raises:
        UserError: the checkpoint lacks a phase, or is no network that the official code has.
    """
    parts = {key.split(".", 1)[0] for key in state}
    lacking = {part for parts in SOURCES for part in parts} - parts
    if lacking:
        raise UserError(f"The checkpoint has no {', '.join(sorted(lacking))}: train all phases.")
    shapes = shapes_of(Spec(), _classes_of(state))
    wrong = sorted(
        key for key in shapes.keys() | state.keys() if key not in state or key not in shapes
    ) or sorted(key for key in shapes if shapes[key] != state[key].shape)
    if wrong:
        raise UserError(
            f"The checkpoint is no network of the official code ({len(wrong)} keys differ, first "
            f"{wrong[0]}): that has ResNet-50, fpn_width 256, smooth_width 128 and deep sharing."
        )
    files: list[dict[str, Tensor]] = []
    for number in range(len(FILES)):
        # A later phase's part is written over an earlier one's, and kept for what comes after it.
        order = [*SOURCES[number + 1 :], *SOURCES[: number + 1]]
        file: dict[str, Tensor] = {}
        for part in (part for parts in order for part in parts):
            own = (key for key in state if key.split(".", 1)[0] == part)
            file |= {PREFIX + official_key(key): state[key] for key in own}
        files.append(file)
    return files


def read_official(path: Path) -> dict[str, Tensor]:
    """The state dict in an official file, keys without prefix.

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
        raise UserError(
            f"{path} is no checkpoint of tensors alone, and nothing else is read ({reason})."
        ) from None
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise UserError(f"{path} is no state dict: it should map names to tensors.")
    if not content:
        raise UserError(f"{path} is an empty state dict.")
    return {key.removeprefix(PREFIX): value for key, value in content.items()}


class Difference(NamedTuple):
    """How a state dict does not fit."""

    missing: list[str]
    extra: list[str]
    misshapen: list[str]


def difference(state: State, shapes: Mapping[str, torch.Size]) -> Difference:
    """Official keys of `state` against those that a network of ours with `shapes` stands for.

    Counters of batch norm may be missing: torch 0.4 did not have them.
    """
    expected = {official_key(key): shape for key, shape in shapes.items()}
    return Difference(
        sorted(
            key for key in expected.keys() - state.keys() if not key.endswith("num_batches_tracked")
        ),
        sorted(state.keys() - expected.keys()),
        sorted(
            f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key])}"
            for key in expected.keys() & state.keys()
            if state[key].shape != expected[key]
        ),
    )


def _check(state: State, shapes: Mapping[str, torch.Size], name: str) -> None:
    found = difference(state, shapes)
    if any(found):
        lists = [
            f"{kind}: {', '.join(keys)}"
            for kind, keys in zip(("missing", "extra", "of another shape"), found, strict=True)
            if keys
        ]
        raise UserError(f"{name} is not an official GLNet checkpoint: {'; '.join(lists)}.")


def _check_frozen(
    states: Sequence[State], shapes: Mapping[str, torch.Size], names: Sequence[str]
) -> None:
    """What a phase does not train has to be what an earlier file has, or one checkpoint could not
    stand for all three."""
    for part, first, second in (("global_branch", 0, 1), ("local_branch", 1, 2)):
        keys = [official_key(key) for key in shapes if key.split(".", 1)[0] == part]
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


def _value(state: State, key: str, shape: torch.Size) -> Tensor:
    return state[key] if key in state else torch.zeros(shape, dtype=torch.long)


def _classes(state: State, name: str) -> int:
    bias = state.get("ensemble_conv.bias")
    if bias is None or bias.dim() != 1:
        raise UserError(f"{name} is not an official GLNet checkpoint: missing: ensemble_conv.bias.")
    return len(bias)


def _classes_of(state: State) -> int:
    return len(state["aggregation.conv.bias"])


def import_official(files: Sequence[Path], target: Path, serve: str | None = None) -> None:
    """Write the checkpoint that the three official files make; see `from_official`."""
    states = [read_official(file) for file in files]
    state = from_official(states, Spec(), [str(file) for file in files], serve)
    _save(target, state)


def export_official(checkpoint: Path, folder: Path) -> list[Path]:
    """Write the three files that the official code loads; returns their paths."""
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {checkpoint}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{checkpoint} is no checkpoint of this project ({reason}).") from None
    paths = [folder / name for name in FILES]
    for path, content in zip(paths, to_official(state), strict=True):
        _save(path, content)
    return paths


def _save(path: Path, state: State) -> None:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getvalue())


def import_command(parser: argparse.ArgumentParser) -> None:
    """Make one checkpoint of the three that the GLNet authors publish."""
    for name in ("global", "g2l", "l2g"):
        parser.add_argument(f"{name}_pth", metavar=f"{name.upper()}.pth", type=Path)
    parser.add_argument("-o", "--output", metavar="CHECKPOINT", type=Path, required=True)
    parser.add_argument(
        "--serve",
        choices=("global-to-local", "collaborative"),
        help="the one strategy that is run, where the three files are not of one training",
    )

    def work(arguments: argparse.Namespace) -> None:
        files = (arguments.global_pth, arguments.g2l_pth, arguments.l2g_pth)
        import_official(files, arguments.output, arguments.serve)
        print(arguments.output)

    parser.set_defaults(work=work)


def export_command(parser: argparse.ArgumentParser) -> None:
    """Write a checkpoint as the three files that the official GLNet code loads."""
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("-o", "--output", metavar="FOLDER", type=Path, required=True)

    def work(arguments: argparse.Namespace) -> None:
        for path in export_official(arguments.checkpoint, arguments.output):
            print(path)

    parser.set_defaults(work=work)
