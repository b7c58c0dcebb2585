"""Atomic writes of files, a copy of dvc.lock, YAML and checkpoints that are bounded and checked, tables
of names that programs cannot take for commands, and fingerprints of files and code."""

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
"""Of the tensors of a state dict; whole numbers count batches."""
MOST = 50_000
"""Bytes of a params.yaml; also keys and values, its aliases expanded."""
DEEPEST = 50
"""Tables in one another."""
LONGEST = 3000
"""Characters of a value: Python does not print whole numbers much longer."""
LOCK, LOCK_COPY = Path("dvc.lock"), Path(".dvc/tmp/dvc.lock")
"""DVC rewrites dvc.lock after each stage, and not atomically: `bench.pipeline.mend` puts the copy back."""
CACHE_STATE = Path(".dvc/tmp/cache_state")
"""Marks of runs whose records are up to date: `bench.pipeline.cache` writes them."""


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
    """Keep dvc.lock as it is at the start of a stage, when DVC does not write it."""
    if LOCK.is_file():
        write_bytes(LOCK_COPY, LOCK.read_bytes())


def csv_text(frame: Any) -> str:
    """A pandas table as CSV in which a spreadsheet finds no formula."""
    return str(
        frame.map(no_formula).rename(columns=no_formula).to_csv(index=False, lineterminator="\n")
    )


def no_formula(cell: Any) -> Any:
    """A cell of a CSV file: a text on one line, with an apostrophe before what begins a formula."""
    if not isinstance(cell, str):
        return cell
    text = re.sub(r"[\t\r\n]+", " ", cell)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def markdown_cell(cell: Any) -> str:
    """A value within a table of Markdown: its characters, none of which is markup."""
    return re.sub(r"([\\`*_\[\]<>|~$&])", r"\\\1", " ".join(str(cell).split()))


def parse_yaml(content: str | bytes, origin: str) -> Any:
    """The content of a YAML text, in which aliases may not multiply.

    Args:
        origin: the file's name, for error messages.

    Raises:
        UserError: it is not YAML, or larger than any table of settings.
    """
    if len(content) > MOST:
        raise UserError(f"{origin} has more than {MOST} bytes: it is no table of settings.")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        _check_size(text)
        return YAML(typ="safe").load(text)
    except MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        reason = f"{error.problem}{line}"
    except Exception as error:  # of many types: dates, numbers and letters that there are not
        reason = " ".join(str(error).split())
    raise UserError(f"{origin} is not YAML: {shortened(reason)}.")


def _check_size(text: str) -> None:
    """Raise a ValueError for a text that is nested deeply, or has too many values once its aliases
    are expanded; what it holds is not built for that."""
    sizes: dict[str, int] = {}
    containers: list[tuple[str, int]] = [("", 0)]
    for event in YAML(typ="safe").parse(text):
        size, anchor = 1, str(getattr(event, "anchor", None) or "")
        if len(getattr(event, "value", None) or "") > LONGEST:
            raise ValueError(f"it has a value of more than {LONGEST} characters")
        if isinstance(event, CollectionStartEvent):
            containers.append((anchor, 1))
            if anchor:
                sizes[anchor] = MOST  # one that holds itself
            if len(containers) > DEEPEST:
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
        if known + size > MOST:
            raise ValueError(f"its aliases stand for more than {MOST} values")


def shortened(text: str) -> str:
    """At most 200 characters of it."""
    return text if len(text) <= 200 else f"{text[:197]}..."


def load_tensors(path: Path, advice: str = "run `dvc repro`") -> Any:
    """What `torch.save` wrote: tensors, numbers and strings in plain containers, on the CPU. Nothing
    else is unpickled.

    Args:
        advice: how to get a sound file.

    Raises:
        UserError: the file is missing, damaged, or holds more.
    """
    import torch  # slow, and not needed by those who write files

    try:
        with path.open("rb") as file:
            if file.read(30).startswith(b"version https://git-lfs"):
                raise UserError(
                    f"{path} is a pointer of Git LFS, not the file: fetch it with `git lfs pull`."
                )
        if zipfile.is_zipfile(path):
            _check_archive(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing: {advice}.") from None
    except UserError:
        raise
    # Many types. The text stays out: it advises to switch the safe loading off.
    except Exception as error:
        if isinstance(error, OSError) and error.strerror:
            raise UserError(f"{path} cannot be read ({error.strerror}): {advice}.") from None
        raise UserError(
            f"{path} is damaged, or holds more than tensors: {advice}; of a file of your own, save "
            "the network's `state_dict()` alone."
        ) from None


def _check_archive(path: Path) -> None:
    """Raise BadZipFile for what torch takes numbers from all the same: other checksums than those
    of its content, other sizes, a folder in place of a file."""
    with zipfile.ZipFile(path) as archive:
        for one in archive.infolist():
            if one.file_size != one.compress_size or one.external_attr & 16:
                raise zipfile.BadZipFile
        if archive.testzip():
            raise zipfile.BadZipFile


def load_state(path: Path, advice: str = "run `dvc repro`") -> dict[str, Any]:
    """The state dict, name to tensor, in a file, or under `state_dict` in it.

    Raises:
        UserError: as `load_tensors`, or the file holds no state dict of finite real numbers.
    """
    content = load_tensors(path, advice)
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and hasattr(value, "shape") for key, value in content.items()
    ):
        raise UserError(f"{path} is no state dict: it should map names to tensors.")
    for key, tensor in content.items():
        if fault := fault_of(tensor):
            raise UserError(f"{path} has {fault} in {key}: {advice}.")
    return dict(content)


def fault_of(tensor: Any) -> str:
    """What a tensor has that no weights have; empty if nothing."""
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
