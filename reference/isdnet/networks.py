"""The networks and images that golden data tells of."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from baselines.isdnet.model import ISDNet, build
from baselines.isdnet.spec import Spec
from bench.errors import UserError
from reference.formulas import generator, image
from reference.isdnet.checkpoint import official_key

FLOAT = {"float32": torch.float32, "float64": torch.float64}


def weight(key: str, shape: Sequence[int], seed: int) -> NDArray[np.float32] | NDArray[np.int64]:
    """The value of a parameter or buffer of the released network, by its official name."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(tuple(shape), np.int64)
    values = generator(f"{key}:{seed}").standard_normal(tuple(shape))
    if key.endswith((".bias", "running_mean")):
        values *= 0.1
    elif key.endswith("running_var"):
        values = 1 + 0.1 * np.abs(values)
    elif key.endswith((".g1", ".g2")):  # not 0, so that the relations are seen
        values = 0.5 + 0.1 * values
    elif len(shape) in (2, 4):
        values *= np.sqrt(2.0 / np.prod(shape[1:]))
    else:  # the factor of a batch norm; a residual block's last is small
        gain = 0.25 if key.endswith("bn3.weight") else 1.0
        if key.startswith("backbone.layer") and key.endswith("bn2.weight"):
            gain = 0.5
        values = (1 + 0.1 * values) * gain
    return values.astype(np.float32)


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case: those of the released code, without dropout.

    Raises:
        UserError: the case has a reducer where the released code has none, or lacks its own.
    """
    if config.get("reduce", config["depth"] == 50) != (config["depth"] == 50):
        raise UserError(
            f"There is no ISDNet of depth {config['depth']} with `reduce` {config['reduce']}: the "
            "reducer is ResNet-50's."
        )
    return Spec(depth=config["depth"], dropout=0, official=True)


def network_of(config: Mapping[str, Any], dtype: str) -> ISDNet:
    """The network with the weights of a case, in eval mode."""
    network = build(spec_of(config), config.get("n_class", 7))
    state = {
        key: torch.from_numpy(
            np.asarray(weight(official_key(key), tuple(value.shape), config["seed"]))
        )
        for key, value in network.state_dict().items()
    }
    network.load_state_dict(state)
    return network.to(FLOAT[dtype]).eval().requires_grad_(False)


def picture(config: Mapping[str, Any], seed: int) -> Tensor:
    """An image (3, H, W) uint8 of the case's size."""
    return torch.from_numpy(image(config["h"], config["w"], seed).transpose(2, 0, 1).copy())
