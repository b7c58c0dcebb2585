"""The released checkpoints of ISDNet, as this project keeps them."""

import argparse
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from baselines.isdnet.spec import Spec
from bench.errors import UserError
from bench.files import write_bytes

NAMES = {  # ours -> the official name, longest first where one begins another
    "backbone.": "backbone.",
    "pyramid.pool.": "decode_head.image_pool.1.",
    "pyramid.branches.": "decode_head.aspp_modules.",
    "pyramid.join.": "decode_head.bottleneck.",
    "pyramid.classify.": "decode_head.conv_seg.",
    "reduce.conv.": "refine_head.reduce.conv1.",
    "reduce.bn.": "refine_head.reduce.bn1.",
    "shallow.parts.": "refine_head.stdc_net.features.",
    "restore.colours.conv.": "refine_head.sr_decoder.conv_sr.conv_bn_relu.",
    "restore.colours.out.": "refine_head.sr_decoder.conv_sr.conv_out.",
    "restore.": "refine_head.sr_decoder.",
    "classify.conv.": "refine_head.conv_seg.conv_bn_relu.",
    "classify.out.": "refine_head.conv_seg.conv_out.",
    "classify_16.conv.": "refine_head.conv_seg_aux_16.conv_bn_relu.",
    "classify_16.out.": "refine_head.conv_seg_aux_16.conv_out.",
    "classify_8.conv.": "refine_head.conv_seg_aux_8.conv_bn_relu.",
    "classify_8.out.": "refine_head.conv_seg_aux_8.conv_out.",
    "auxiliary.conv.": "auxiliary_head.convs.0.",
    "auxiliary.classify.": "auxiliary_head.conv_seg.",
}
FUSION = {
    "shallow_conv.": "spatial_att.conv_bn_relu.",
    "shallow_vector.": "spatial_att.conv_1x1.",
    "shallow_mlp.": "spatial_mlp.",
    "shallow_gain": "g1",
    "context_conv.": "context_att.conv_bn_relu.",
    "context_vector.": "context_att.conv_1x1.",
    "context_mlp.": "context_mlp.",
    "context_gain": "g2",
    "context_out.": "context_head.",
    "smooth.": "smooth.",
}
NAMES |= {
    f"{fusion}.{ours}": f"refine_head.{fusion}.{theirs}"
    for fusion in ("fuse16", "fuse8")
    for ours, theirs in FUSION.items()
}
INSIDE = {".steps.": ".conv_list.", ".down.": ".avd_layer."}  # of STDC's blocks
ALIASES = tuple(f"refine_head.stdc_net.{part}." for part in ("x2", "x4", "x8", "x16"))
"""The official file lists the shallow branch twice, the second time by these names."""


def official_key(key: str) -> str:
    """The official name of a parameter or buffer of `baselines.isdnet.model.ISDNet`.

    The released code crosses its auxiliary classifiers: `conv_seg_aux_16` reads the fusion at 1/8.
    Names stay with names here; which map each reads is the spec's `crossed-classifiers`.
    """
    ours = next(name for name in NAMES if key.startswith(name))
    theirs = NAMES[ours] + key.removeprefix(ours)
    for inside, name in INSIDE.items():
        theirs = theirs.replace(inside, name)
    return theirs


def shapes_of(spec: Spec, classes: int) -> dict[str, torch.Size]:
    """Key -> shape of our network."""
    from baselines.isdnet.model import build

    with torch.device("meta"):
        network = build(spec, classes)
    return {key: value.shape for key, value in network.state_dict().items()}


def from_official(state: Mapping[str, Tensor], name: str = "the checkpoint") -> dict[str, Tensor]:
    """A state dict of ours from the official one; depth and classes are read off it.

    Raises:
        UserError: lists how many keys are missing, extra or of another shape.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith(ALIASES)}
    last = state.get("refine_head.conv_seg.conv_out.bias", torch.empty(0))
    depth: Literal[18, 50] = 50 if "backbone.layer1.0.conv3.weight" in state else 18
    shapes = shapes_of(Spec(depth=depth), len(last))
    names = {key: official_key(key) for key in shapes}
    wrong = sorted(state.keys() ^ set(names.values())) or [
        theirs for ours, theirs in names.items() if state[theirs].shape != shapes[ours]
    ]
    if wrong:
        raise UserError(
            f"{name} is no ISDNet of the released code: {len(wrong)} keys are missing, extra or of "
            f"another shape, first {wrong[0]}."
        )
    return {ours: state[theirs] for ours, theirs in names.items()}


def import_official(file: Path, target: Path) -> None:
    """Write the checkpoint that an official file makes.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no {file}.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{file} holds more than tensors, or is damaged ({reason}).") from None
    if not isinstance(content, dict):
        raise UserError(f"{file} is no state dict.")
    buffer = io.BytesIO()
    torch.save(from_official(content.get("state_dict", content), str(file)), buffer)
    write_bytes(target, buffer.getvalue())


def import_command(parser: argparse.ArgumentParser) -> None:
    """Make a checkpoint of one that the ISDNet authors publish."""
    parser.add_argument("file", metavar="FILE.pth", type=Path)
    parser.add_argument("-o", "--output", metavar="CHECKPOINT", type=Path, required=True)

    def work(arguments: argparse.Namespace) -> None:
        import_official(arguments.file, arguments.output)
        print(arguments.output)

    parser.set_defaults(work=work)
