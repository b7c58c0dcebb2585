"""File utilities: atomic writes, a copy of dvc.lock, checked reading of YAML and checkpoints, escaping
for CSV and Markdown, and hashes of files and code."""

import ast
import hashlib
import os
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

from bench.errors import UserError

WEIGHT_TYPES = ("float16", "bfloat16", "float32", "float64", "int64")
"""Types of the tensors of a state dict; int64 for counters of batches."""
MAX_SIZE = 50_000
"""Most bytes of a YAML text, and most keys and values once its aliases are expanded."""
MAX_DEPTH = 50
"""Deepest nesting of a YAML text."""
MAX_LENGTH = 3000
"""Most characters of a value; Python refuses to print integers of more than 4300 digits."""
LOCK, LOCK_COPY = Path("dvc.lock"), Path(".dvc/tmp/dvc.lock")
"""DVC rewrites dvc.lock after each stage, not atomically; `bench.pipeline.mend` restores the copy."""
CACHE_STATE = Path(".dvc/tmp/cache_state")
"""Hashes of runs whose records are up to date, written by `bench.pipeline.cache`."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: to a temporary file beside it, which is flushed and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def copy_lock() -> None:
    """Copy dvc.lock at the start of a stage, when DVC does not write it."""
    if LOCK.is_file():
        write_bytes(LOCK_COPY, LOCK.read_bytes())


def csv_text(frame: Any) -> str:
    """A pandas table as CSV without cells that a spreadsheet would run as formulas."""
    return str(
        frame.map(escape_formula)
        .rename(columns=escape_formula)
        .to_csv(index=False, lineterminator="\n")
    )


def escape_formula(cell: Any) -> Any:
    """A cell of a CSV file: text on one line, with an apostrophe before a formula."""
    if not isinstance(cell, str):
        return cell
    text = re.sub(r"[\t\r\n]+", " ", cell)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def markdown_cell(cell: Any) -> str:
    """A cell of a Markdown table, with markup escaped."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(str(cell).split()))


def parse_yaml(content: str | bytes, origin: str) -> Any:
    """Parse a YAML text of limited size, aliases expanded.

    Args:
        origin: the file's name, for error messages.

    Raises:
        UserError: it is not YAML, or too large.
    """
    if len(content) > MAX_SIZE:
        raise UserError(f"{origin} has more than {MAX_SIZE} bytes: it is not a file of settings.")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        _check_size(text)
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = f"{error.problem}{line}"
    except Exception as error:  # of many types, for invalid dates, numbers and characters
        reason = " ".join(str(error).split())
    raise UserError(f"{origin} is not YAML: {shortened(reason)}.")


def _check_size(text: str) -> None:
    """Raise a ValueError for a text that is nested too deeply, or has too many values once its aliases
    are expanded. Works on events, without building the values."""
    sizes: dict[str, int] = {}
    containers: list[tuple[str, int]] = [("", 0)]
    for event in YAML(typ="safe").parse(text):
        size, anchor = 1, str(getattr(event, "anchor", None) or "")
        if len(getattr(event, "value", None) or "") > MAX_LENGTH:
            raise ValueError(f"it has a value of more than {MAX_LENGTH} characters")
        if isinstance(event, CollectionStartEvent):
            containers.append((anchor, 1))
            if anchor:
                sizes[anchor] = MAX_SIZE  # an alias within its own anchor
            if len(containers) > MAX_DEPTH:
                raise ValueError("it is nested too deeply")
            continue
        if isinstance(event, AliasEvent):
            size = sizes.get(anchor, 1)
        elif isinstance(event, CollectionEndEvent):
            anchor, size = containers.pop()
            if anchor:
                sizes[anchor] = size
        outer, known = containers[-1]
        containers[-1] = outer, known + size
        if known + size > MAX_SIZE:
            raise ValueError(f"its aliases stand for more than {MAX_SIZE} values")


def shortened(text: str) -> str:
    """The text, cut to 200 characters."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def load_tensors(path: Path, advice: str = "run `dvc repro`") -> Any:
    """Load a file of `torch.save` to the CPU, with `weights_only=True`: tensors, numbers and strings in
    plain containers.

    Args:
        advice: how to get a valid file, for error messages.

    Raises:
        UserError: the file is missing, damaged, or holds other types.
    """
    import torch  # slow, and not needed for the other functions

    try:
        with path.open("rb") as file:
            if file.read(30).startswith(b"version https://git-lfs"):
                raise UserError(
                    f"{path} is a Git LFS pointer: download the file with `git lfs pull`."
                )
        if zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}.") from None
    except UserError:
        raise
    # Of many types. Torch's message is left out, since it advises to disable weights_only.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path} cannot be read ({error.strerror}): {advice}.") from None
        raise UserError(
            f"{path} is damaged, or holds more than tensors: {advice}; save your own files as the "
            "network's `state_dict()`."
        ) from None


def _check_archive(path: Path) -> None:
    """Raise BadZipFile for damage that torch ignores: wrong checksums or sizes, folders in place of
    files."""
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            if one.file_size != one.compress_size or one.external_attr & 16:
                raise zipfile.BadZipFile
        if archive.testzip():
            raise zipfile.BadZipFile


def load_state(path: Path, advice: str = "run `dvc repro`") -> dict[str, Any]:
    """Load a state dict, tensors by name, from a file or from its key `state_dict`.

    Raises:
        UserError: as in `load_tensors`, or the file holds no state dict of finite real numbers.
    """
    content = load_tensors(path, advice)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and hasattr(value, "shape") for key, value in content.items()
    ):
        raise UserError(f"{path} is not a state dict: {advice}.")
    for key, tensor in content.items():
        if fault := fault_of(tensor):
            raise UserError(f"{path} has {fault} in {key}: {advice}.")
    return dict(content)


def fault_of(tensor: Any) -> str:
    """Why a tensor cannot be weights; empty if it can."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in WEIGHT_TYPES:
        return f"numbers of the type {kind}"
    if tensor.is_meta or str(tensor.layout) != "torch.strided":
        return "no plain array of numbers"
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "more numbers than the file"
    if not tensor.isfinite().all():
        return "numbers that are not finite"
    return ""


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_sha256(path: Path) -> str:
    """Hex SHA-256 of a Python file's syntax tree without docstrings, so that docstrings, comments
    and formatting do not change it."""
    tree = ast.parse(path.read_text())
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
