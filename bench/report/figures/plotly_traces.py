"""What stands in the interactive figure of accuracy against memory: points, lines and keys, each in
the plain values that plotly.js takes."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from bench.report import quality_gate, seeds, style
from bench.report.figures import plotly_layout

PAPER_BYTES = 2**31
"""The line of 2 GiB that the paper draws."""


@dataclass(frozen=True)
class Point:
    """A run by one meter, split and definition."""

    run: str
    network: str
    strategy: str
    bytes: float | None
    """None: not measured by this meter."""
    shares: tuple[float, ...]
    """mIoU 0..1, one a seed; none: not evaluated."""
    out_of_memory: bool
    room: float | None

    @property
    def percent(self) -> float | None:
        """Mean over the seeds."""
        return 100 * sum(self.shares) / len(self.shares) if self.shares else None


def of_networks(known: Sequence[Point], front: set[str]) -> Iterator[dict[str, Any]]:
    """A trace a network, in its colour, and its key; runs of the front stand out and are named."""
    colours = style.colours(p.network for p in known)
    shapes = plotly_layout.symbols([p.strategy for p in known])
    for network, colour in colours.items():
        own = [p for p in known if p.network == network]
        name = style.network_name(network)
        yield _key(name, colour, "circle") | {"legendgroup": network}
        yield {
            "type": "scatter",
            "mode": "markers+text",
            "name": name,
            "legendgroup": network,
            "showlegend": False,
            "x": [p.bytes for p in own],
            "y": [_rounded(p.percent) for p in own],
            "customdata": [p.run for p in own],
            "text": [f"<b>{html.escape(p.run)}</b>" if p.run in front else "" for p in own],
            "textposition": "top center",
            "textfont": {"size": 11},
            "cliponaxis": False,
            "error_y": _spread([p.shares for p in own], colour),
            "marker": {
                "color": colour,
                "size": 12,
                "symbol": [shapes[p.strategy] for p in own],
                "opacity": [1 if p.run in front else 0.6 for p in own],
                "line": {
                    "color": [style.INK if p.run in front else "#ffffff" for p in own],
                    "width": 1,
                },
            },
        }


def _spread(shares: Sequence[tuple[float, ...]], colour: str) -> dict[str, Any]:
    """Bars from the lowest to the highest seed; none where there is one seed."""
    if all(len(each) < 2 for each in shares):
        return {"visible": False}
    means = [100 * sum(each) / len(each) for each in shares]
    return {
        "type": "data",
        "symmetric": False,
        "array": [_rounded(100 * max(e) - m) for e, m in zip(shares, means, strict=True)],
        "arrayminus": [_rounded(m - 100 * min(e)) for e, m in zip(shares, means, strict=True)],
        "color": colour,
        "thickness": 1.5,
        "width": 5,
    }


def of_seeds(groups: Sequence[seeds.Group], known: Mapping[str, Point]) -> Iterator[dict[str, Any]]:
    """The mean of runs that differ in their seed alone, with bars from the lowest to the
    highest."""
    shapes = plotly_layout.symbols([group.strategy for group in groups])
    for group in groups:
        own = [known[run] for run in group.runs if run in known]
        if len(own) < 2:  # a run with several seeds has bars of its own
            continue
        colour = style.colours([group.network])[group.network]
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": f"{group.name}: mean of seeds",
            "showlegend": False,
            "x": [sum(p.bytes or 0.0 for p in own) / len(own)],
            "y": [_rounded(100 * group.mean)],
            "hovertemplate": (
                f"<b>{html.escape(group.name)}</b><br>mean of {len(group.mious)} seeds "
                "%{y:.1f} %<extra></extra>"
            ),
            "error_y": _spread([group.mious], colour),
            "marker": {
                "color": "#ffffff",
                "size": 13,
                "symbol": shapes[group.strategy],
                "line": {"color": colour, "width": 2.5},
            },
        }


def of_lost(lost: Sequence[Point], bottom: float) -> Iterator[dict[str, Any]]:
    """Open markers at all that the device has; without an accuracy at the foot."""
    if not lost:
        return
    colours = style.colours(p.network for p in lost)
    shapes = plotly_layout.symbols([p.strategy for p in lost])
    yield {
        "type": "scatter",
        "mode": "markers",
        "name": "out of memory",
        "x": [p.room for p in lost],
        "y": [_rounded(p.percent if p.shares else bottom) for p in lost],
        "customdata": [p.run for p in lost],
        "marker": {
            "color": [colours[p.network] for p in lost],
            "size": 12,
            "symbol": [f"{shapes[p.strategy]}-open" for p in lost],
            "line": {"width": 2},
        },
    }


def of_front(front: Sequence[Point], right: float) -> Iterator[dict[str, Any]]:
    """The steps of the Pareto front, up to the right end of the axis."""
    if front:
        yield {
            "type": "scatter",
            "mode": "lines",
            "name": "Pareto front",
            "hoverinfo": "skip",
            "line": {"color": style.INK, "shape": "hv", "width": 1.2},
            "x": [*(p.bytes for p in front), right],
            "y": [_rounded(p.percent) for p in (*front, front[-1])],
        }


def of_published(theirs: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Published points, in grey behind all others."""
    if len(theirs):
        yield {
            "type": "scatter",
            "mode": "markers",
            "name": "published",
            "x": [int(size) for size in theirs.bytes],
            "y": [_rounded(100 * share) for share in theirs.miou],
            "hovertext": list(theirs.hover),
            "hoverinfo": "text",
            "marker": {"color": "#c3c8ce", "size": 9, "symbol": "circle"},
        }


def strategy_keys(strategies: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Which shape is which strategy, for the legend alone."""
    for name, symbol in plotly_layout.symbols(strategies).items():
        yield _key(name, style.GREY, symbol)


def _key(name: str, colour: str, symbol: str) -> dict[str, Any]:
    """A line of the legend and nothing else."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [None],
        "y": [None],
        "hoverinfo": "skip",
        "marker": {"color": colour, "size": 10, "symbol": symbol},
    }


def lines(
    heights: Sequence[float], floor: float | None, left: float, right: float
) -> Iterator[dict[str, Any]]:
    """The quality gate and the floor across, and the paper's 2 GiB upright where it is in range."""
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "layer": "below"}
    label: dict[str, Any] = {"textposition": "end", "yanchor": "bottom", "padding": 2}
    label["font"] = {"size": 11, "color": style.GREY}
    if heights:
        at = _rounded(quality_gate.SHARE * max(heights))
        line = {"color": style.GREY, "width": 1, "dash": "dot"}
        text = f"{100 * quality_gate.SHARE:.0f} % of the best"
        yield {**across, "y0": at, "y1": at, "line": line, "label": {**label, "text": text}}
    if floor is not None:
        at = _rounded(floor)
        line = {"color": style.GREY, "width": 1, "dash": "dash"}
        text = "floor: class-mean colour"
        yield {**across, "y0": at, "y1": at, "line": line, "label": {**label, "text": text}}
    if left <= PAPER_BYTES <= right:
        yield {
            "type": "line",
            "yref": "paper",
            "x0": PAPER_BYTES,
            "x1": PAPER_BYTES,
            "y0": 0,
            "y1": 1,
            "layer": "below",
            "line": {"color": style.ERROR, "width": 1.2, "dash": "dash"},
            "label": {
                "text": "2 GiB, the paper’s line",
                "textposition": "end",
                "textangle": -90,
                "font": {"size": 11, "color": style.ERROR},
            },
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
