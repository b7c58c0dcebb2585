"""Reading golden files; whatever is wrong with one is a sentence that names it."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError


def fingerprint(array: NDArray[Any]) -> str:
    """Hex SHA-256 of an array's bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def tables(folder: Path, pattern: str) -> dict[Path, dict[str, Any]]:
    """The JSON tables of a folder whose names match.

    Raises:
        UserError: there is no such folder, or a file is no table.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    found = {}
    for path in sorted(folder.glob(pattern)):
        try:
            content = json.loads(path.read_text())
        except ValueError as error:
            raise UserError(f"{path} is not JSON: {error}.") from None
        if not isinstance(content, dict):
            raise UserError(f"{path} holds no table.")
        found[path] = content
    return found


def has_setting(folder: Path, names: Iterable[str]) -> bool:
    """Whether a golden table of the folder has one of these settings in its `config`: by them a
    method knows its own.

    Raises:
        UserError: as `tables`.
    """
    found = [*tables(folder, "golden_*.json").values(), *tables(folder, "train_*.json").values()]
    configs = [table.get("config") for table in found]
    return any(isinstance(one, dict) and name in one for one in configs for name in names)


def arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of an .npz file.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as arrays: {error}.") from None


@contextmanager
def format_of(path: Path) -> Iterator[None]:
    """Inside it what a table lacks or has in another form becomes a refusal that names the file."""
    try:
        yield
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is no golden data of this format: it lacks or misnames {error}."
        ) from None
