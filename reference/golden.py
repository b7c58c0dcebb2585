"""Reading a folder of golden data; whatever is wrong with a file is a sentence that names it.

An evaluation case is `golden_X.json` with arrays in `golden_X.npz`, a training step `train_X.json`.
`noise_f32_vs_f64_X.json` says how far the released code in float64 is from itself in float32."""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.errors import UserError

PREFIXES = ("golden_", "train_")
Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Golden:
    """One table of golden data: an evaluation case or a training step."""

    path: Path
    table: Mapping[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.table[key]

    @property
    def is_step(self) -> bool:
        """Whether it is a training step."""
        return self.path.name.startswith("train_")

    @property
    def name(self) -> str:
        """The case's name: `A` of golden_A.json."""
        return self.path.stem.split("_", 1)[1]

    @property
    def config(self) -> Mapping[str, Any]:
        """Sizes and seeds; empty where the table has none."""
        found = self.table.get("config", {})
        if not isinstance(found, dict):
            raise UserError(f"{self.path} is not golden data: its `config` is not a table.")
        return found

    @cached_property
    def arrays(self) -> Arrays:
        """All arrays of the .npz file beside the table.

        Raises:
            UserError: it is missing or damaged.
        """
        path = self.path.with_suffix(".npz")
        try:
            # An open file: numpy leaves a damaged one open that it opened itself.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path} cannot be read as arrays: {error}.") from None

    @cached_property
    def noise(self) -> Mapping[str, Any]:
        """The float32 noise of each array of an evaluation case, where it was measured."""
        path = self.path.with_name(f"noise_f32_vs_f64_{self.name}.json")
        return read_table(path) if path.exists() else {}

    @property
    def norm_modes(self) -> list[str]:
        """Ways to normalise of a training step: batch norm in eval and in train mode."""
        return [mode for mode in ("bn_eval", "bn_train") if mode in self.table]

    def modes(self, names: Mapping[str, str]) -> list[str]:
        """Our names of the modes that the table has.

        Args:
            names: the released code's number of a mode -> our name.

        Raises:
            UserError: a mode is none of them.
        """
        found = [self.table.get("mode")] if self.is_step else list(self.table.get("modes") or ())
        unknown = [mode for mode in found if str(mode) not in names]
        if unknown or not found:
            what = f"has the unknown mode {unknown[0]!r}" if unknown else "has no modes"
            raise UserError(f"{self.path} {what}; the modes are {', '.join(names)}.")
        return [names[str(mode)] for mode in found]


def fingerprint(array: NDArray[Any]) -> str:
    """Hex SHA-256 of an array's bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


def read(folder: Path) -> list[Golden]:
    """The cases and steps of a folder.

    Raises:
        UserError: there is no such folder, it has none, or a file is not a table.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    paths = [path for prefix in PREFIXES for path in sorted(folder.glob(f"{prefix}*.json"))]
    if not paths:
        raise UserError(f"{folder} has neither golden_*.json nor train_*.json.")
    return [Golden(path, read_table(path)) for path in paths]


def read_table(path: Path) -> dict[str, Any]:
    """A JSON table.

    Raises:
        UserError: the file is something else.
    """
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is not a JSON table.")
    return content


@contextmanager
def format_of(path: Path) -> Iterator[None]:
    """Inside it what a table lacks or has in another form becomes a UserError that names the file;
    its cause is kept."""
    try:
        yield
    except KeyError as error:
        raise UserError(f"{path} is not golden data of this format: {error} is missing.") from error
    except (
        TypeError,
        IndexError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RuntimeError,
        MemoryError,
    ) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"{path} is not golden data of this format ({type(error).__name__}: {reason})."
        ) from error
