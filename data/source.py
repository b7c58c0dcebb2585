"""Loading the module of a data source by its name, for the stages that download and prepare."""

import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

from bench.config import Suite, pick, strict
from bench.errors import UserError

RAW = Path("data/raw")


def open_source(suite: Suite, name: str) -> tuple[ModuleType, Any, Path]:
    """The line `name` of the table `datasets`.

    Returns:
        its module (with `Settings`, `about`, `download` and `pairs`), its checked settings, and the
        folder of its raw files.
    """
    line = pick(suite.datasets, name, "data set")
    found = line.source.isidentifier() and importlib.util.find_spec(f"data.{line.source}")
    module = importlib.import_module(f"data.{line.source}") if found else None
    if module is None or not hasattr(module, "pairs"):
        raise UserError(
            f"params.yaml: datasets.{name}.source is {line.source!r}, but there is no such source "
            "under data/."
        )
    settings = strict(module.Settings, line.settings, f"params.yaml: datasets.{name}.settings")
    return module, settings, RAW / name
