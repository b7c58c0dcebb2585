"""Figures of the report: static files, interactive figures, thumbnails and pages of test scenes."""

from bench.report.figures.curves import classes as class_intervals
from bench.report.figures.curves import memory as memory_timeline
from bench.report.figures.curves import training as training_curves
from bench.report.figures.figure1 import PANELS as FIGURE1_PANELS
from bench.report.figures.figure1 import figure as figure1_panel
from bench.report.figures.interactive import Interactive
from bench.report.figures.interactive import accuracy_memory as interactive_accuracy_memory
from bench.report.figures.plotly_layout import Figure as PlotlyFigure
from bench.report.figures.scatter import accuracy_memory
from bench.report.figures.scene_page import Page as ScenePage
from bench.report.figures.scene_page import write as write_scene_pages
from bench.report.figures.static import (
    Drawing,
    paper_memory,
    paper_model,
    published,
    render,
    training,
    written,
)
from bench.report.figures.studies import growth, on_card, seeds
from bench.report.figures.thumbnails import Scene as SceneThumbnails
from bench.report.figures.thumbnails import scene as scene_thumbnails
from bench.report.figures.thumbnails import sheet

__all__ = [
    "FIGURE1_PANELS",
    "Drawing",
    "Interactive",
    "PlotlyFigure",
    "ScenePage",
    "SceneThumbnails",
    "accuracy_memory",
    "class_intervals",
    "figure1_panel",
    "growth",
    "interactive_accuracy_memory",
    "memory_timeline",
    "on_card",
    "paper_memory",
    "paper_model",
    "published",
    "render",
    "scene_thumbnails",
    "seeds",
    "sheet",
    "training",
    "training_curves",
    "write_scene_pages",
    "written",
]
