"""Numbers and names as readers see them; what is unknown is a dash."""

from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd

Form = Callable[[Any], str]
NETWORKS = {
    "glnet": ("GLNet", "#d55e00", "*"),
    "unet": ("U-Net", "#0072b2", "o"),
    "fpn": ("FPN", "#56b4e9", "v"),
    "pspnet": ("PSPNet", "#009e73", "D"),
    "deeplabv3plus": ("DeepLabv3+", "#cc79a7", "P"),
    "unet2015": ("U-Net of 2015", "#332288", "s"),
    "fcn8s": ("FCN-8s", "#e69f00", "^"),
    "segnet": ("SegNet", "#8c6d31", "X"),
    "enet": ("ENet", "#999933", "<"),
    "icnet": ("ICNet", "#882255", ">"),
    "mobilenetv2": ("MobileNetV2-UNet", "#44aa99", "d"),
    "isdnet": ("ISDNet", "#117733", "d"),
    "fctl": ("FCtL", "#aa4499", "8"),
    "magnet": ("MagNet", "#661100", "H"),
    "pointrend": ("our PointRend", "#6699cc", "p"),
    "cascadepsp": ("our CascadePSP", "#888888", "h"),
    "colour": ("nearest class-mean colour", "#6b7480", "o"),
}
"""Name as papers spell it, colour, marker of matplotlib. The colours of the first networks are those
of Okabe and Ito, which colour-blind readers can tell apart. A marker carries the same information,
so that a black-and-white print works."""
NOTHING = "–"


def network_name(network: str) -> str:
    """As papers spell it."""
    return NETWORKS[network][0] if network in NETWORKS else network


def spaced(name: Any) -> str:
    """A class as people write it."""
    return str(name).replace("_", " ")


def optional(form: Form) -> Form:
    """The same, with a dash for what is unknown."""
    return lambda value: NOTHING if pd.isna(value) else form(value)


def percent(share: Any, digits: int = 1) -> str:
    """0.716 -> `71.6`."""
    return NOTHING if pd.isna(share) else f"{100 * share:.{digits}f}"


def rate(value: Any) -> str:
    """Three digits."""
    return (
        NOTHING if pd.isna(value) else f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"
    )


def size(count: Any) -> str:
    """Bytes -> MiB or GiB with three digits."""
    if pd.isna(count):
        return NOTHING
    return f"{rate(count / 2**20)} MiB" if count < 2**30 else f"{rate(count / 2**30)} GiB"


def duration(seconds: Any) -> str:
    """Seconds -> ms or s with three digits."""
    if pd.isna(seconds):
        return NOTHING
    return f"{rate(1000 * seconds)} ms" if seconds < 1 else f"{rate(seconds)} s"


def count(number: Any) -> str:
    """Parameters in millions."""
    return NOTHING if pd.isna(number) else f"{number / 1e6:.2f} M"


def points(share: Any) -> str:
    """A difference of shares as signed per cent points."""
    return FORMS["signed"](100 * share)


FORMS: Mapping[str, Form] = {
    "percent": percent,
    "exact_percent": optional(lambda share: f"{100 * share:.4f} %"),
    "points": points,
    "signed": optional("{:+.1f}".format),
    "size": size,
    "duration": duration,
    "count": count,
    "rate": rate,
    "giga": optional(lambda value: rate(value / 1e9)),
    "tera": optional(lambda value: f"{value / 1e12:.2f}"),
    "whole": optional("{:.0f}".format),
    "tenths": optional("{:.1f}".format),
    "hundredths": optional("{:.2f}".format),
    "thousandths": optional("{:.3f}".format),
    "times": optional("{:.2f} ×".format),
    "general": "{:g}".format,
    "commas": "{:,}".format,
    "or_dash": lambda text: text or NOTHING,
    "text": optional(str),
    "network": network_name,
    "spaced": spaced,
    "printed": optional({"figure": "read off a plot", "exact": "printed"}.__getitem__),
}
"""How values read, by the names that sections.yaml uses in columns and as filters in texts."""
