"""Numbers and names as readers see them; what is unknown is a dash."""

from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML

Form = Callable[[Any], str]
LOOKS: Mapping[str, Mapping[str, Any]] = YAML(typ="safe").load(
    Path(__file__).with_name("looks.yaml")
)
"""`networks`, `strategies`, `categories` of memory, and `symbols`; looks.yaml says what each has."""
CREDITS: Mapping[str, Mapping[str, Any]] = YAML(typ="safe").load(
    Path(__file__).with_name("credits.yaml")
)
"""`methods` by network, and `datasets` by source."""
NOTHING = "–"
METERS = {"nvml": "process total (NVML)", "rss": "host RSS"}
"""Meters whose names in records are not those that people read."""


def network_name(network: str) -> str:
    """As papers spell it."""
    return str(LOOKS["networks"].get(network, [network])[0])


def spaced(name: Any) -> str:
    """A class as people write it."""
    return str(name).replace("_", " ")


def optional(form: Callable[..., str]) -> Callable[..., str]:
    """The same, with a dash for what is unknown."""

    @wraps(form)
    def known(value: Any, *more: Any) -> str:
        return NOTHING if pd.isna(value) else form(value, *more)

    return known


@optional
def percent(share: Any, digits: int = 1) -> str:
    """0.716 -> `71.6`."""
    return f"{100 * share:.{digits}f}"


@optional
def rate(value: Any) -> str:
    """Three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


@optional
def size(count: Any) -> str:
    """Bytes -> MiB or GiB with three digits."""
    return f"{rate(count / 2**20)} MiB" if count < 2**30 else f"{rate(count / 2**30)} GiB"


@optional
def duration(seconds: Any) -> str:
    """Seconds -> ms or s with three digits."""
    return f"{rate(1000 * seconds)} ms" if seconds < 1 else f"{rate(seconds)} s"


def ends(form: Form) -> Form:
    """A range of values that read so; its ends are joined by a word where they may have a sign."""

    def joined(value: Any) -> str:
        if value is None:
            return NOTHING
        low, high = map(form, value)
        return f"{low} to {high}" if low[0] in "+-" else f"{low}–{high}"

    return joined


def points(share: Any) -> str:
    """A difference of shares as signed per cent points."""
    return FORMS["signed"](100 * share)


FORMS: Mapping[str, Form] = {
    "percent": percent,
    "exact_percent": optional(lambda share: f"{100 * share:.4f}"),
    "points": points,
    "signed": optional("{:+z.1f}".format),
    "size": size,
    "duration": duration,
    "mib": optional(lambda count: rate(count / 2**20)),
    "ms": optional(lambda seconds: rate(1000 * seconds)),
    "timed_ms": lambda seconds: "not timed" if pd.isna(seconds) else rate(1000 * seconds),
    "count": optional(lambda number: f"{number / 1e6:.2f} M"),
    "millions": optional(lambda number: f"{number / 1e6:.2f}"),
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
    "or_yes": lambda text: "yes" if pd.isna(text) else str(text),
    "text": optional(str),
    "network": network_name,
    "meter": lambda name: METERS.get(name, str(name)),
    "spaced": spaced,
    "printed": optional({"figure": "read off a plot", "exact": "printed"}.__getitem__),
}
"""How values read, by the names that sections.yaml uses in columns and as filters in texts."""
