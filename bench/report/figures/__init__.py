"""Figures of the report: static files, interactive figures, thumbnails and pages of test scenes.

`chart.py` defines what a figure shows as rows of data; `static.py` draws it with matplotlib and
`interactive.py` makes it for the browser. `accuracy.py`, `charts.py` and `curves.py` hold the
figures themselves, `scenes.py` images of test scenes."""

from bench.report.figures import (
    accuracy,
    charts,
    curves,
    palette,
    scenes,
    static,
)

__all__ = ["accuracy", "charts", "curves", "palette", "scenes", "static"]
