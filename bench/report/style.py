"""Numbers and names as readers see them."""

from typing import Any

import pandas as pd

NETWORKS = {
    "glnet": "GLNet",
    "unet": "U-Net",
    "unet2015": "U-Net of 2015",
    "fcn8s": "FCN-8s",
    "segnet": "SegNet",
    "enet": "ENet",
    "icnet": "ICNet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "deeplabv3plus": "DeepLabv3+",
    "colour": "nearest class-mean colour",
    "isdnet": "ISDNet",
    "fctl": "FCtL",
    "magnet": "MagNet",
    "pointrend": "our PointRend",
    "cascadepsp": "our CascadePSP",
}
NOTHING = "–"


def network_name(network: str) -> str:
    """As papers spell it."""
    return NETWORKS.get(network, network)


def percent(share: Any, digits: int = 1) -> str:
    """0.716 -> `71.6`."""
    return NOTHING if pd.isna(share) else f"{100 * share:.{digits}f}"


def size(count: Any) -> str:
    """Bytes -> MiB or GiB with three digits."""
    if pd.isna(count):
        return NOTHING
    value, unit = (count / 2**20, "MiB") if count < 2**30 else (count / 2**30, "GiB")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def duration(seconds: Any) -> str:
    """Seconds -> ms or s with three digits."""
    if pd.isna(seconds):
        return NOTHING
    value, unit = (1000 * seconds, "ms") if seconds < 1 else (seconds, "s")
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f} {unit}"


def count(number: Any) -> str:
    """Parameters in millions."""
    return NOTHING if pd.isna(number) else f"{number / 1e6:.2f} M"
