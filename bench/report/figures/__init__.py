"""Figures of the report: static files, interactive figures, thumbnails and pages of test scenes.

`chart.py` defines what a figure shows as rows of data; `scatter.py` draws it with matplotlib and
`plotly_traces.py` for the browser. `charts.py` and `curves.py` hold the figures themselves."""

from bench.report.figures import (
    charts,
    curves,
    interactive,
    palette,
    plotly_layout,
    render,
    scene_page,
    thumbnails,
)

__all__ = [
    "charts",
    "curves",
    "interactive",
    "palette",
    "plotly_layout",
    "render",
    "scene_page",
    "thumbnails",
]
