"""Shared by all command lines: arguments, the check of the project's root, error messages and
progress bars."""

import argparse
import errno
import gc
import io
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ByteSize, Field, PositiveInt, TypeAdapter, ValidationError
from tqdm import tqdm

from bench.config import AVX2, PARAMS, Name, Seed, read_suite
from bench.errors import UserError, out_of_memory
from bench.files import copy_lock, parse_yaml

T = TypeVar("T")
MAX_TEMPORARY_BYTES = 70
"""108 bytes, or 104 on macOS, minus the length of `/pymp-XXXXXXXX/listener-XXXXXXXX`."""
ROOT_FILES = ("dvc.yaml", "pyproject.toml")


def main(
    work: Callable[[argparse.Namespace], None],
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    computes: bool = False,
    **arguments: str,
) -> None:
    """Run a stage as a program: parse arguments, check the directory, run, and report errors in one
    sentence.

    Args:
        work: the stage; its docstring is the help text.
        add_arguments: adds further arguments to the parser.
        computes: its processes compute with torch, though this one has not loaded it.
        arguments: help of positional arguments, by name.
    """
    parser = argparse.ArgumentParser(description=work.__doc__)
    add_arguments(parser)
    for name, text in arguments.items():
        parser.add_argument(name, help=text)

    def run() -> None:
        parsed = parser.parse_args()
        require_root()
        if computes or "torch" in sys.modules:
            limit_instructions(Path(getattr(parsed, "suite", PARAMS)))
        if "DVC_STAGE" in os.environ:
            copy_lock()
        work(parsed)

    report_errors(run)


def limit_instructions(suite: Path) -> None:
    """Restart this program with the environment variables that `compute.isa` of a suite needs;
    worker processes inherit them."""
    limits = instruction_limits(suite)
    if not limits.items() <= os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **limits})


def instruction_limits(path: Path = PARAMS) -> dict[str, str]:
    """The environment variables that `compute.isa` of a suite needs."""
    try:
        return AVX2 if read_suite(path).compute.isa == "avx2" else {}
    except (UserError, OSError):  # reported when the suite is read again
        return {}


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the stage `report` and of its command; here, so that --help does not import
    pandas."""
    parser.add_argument(
        "suite",
        nargs="?",
        type=Path,
        default=PARAMS,
        metavar="SUITE.yaml",
        help="a file of suites/; default: the active suite, params.yaml",
    )
    parser.add_argument("--open", action="store_true", help="open the report in the browser")


def report_errors(work: Callable[[], None]) -> None:
    """Run a program; errors that the user can fix exit with one sentence, without a traceback.

    The exit status is 1 for a `UserError`, out of memory, or an error of the operating system such
    as a full disk; 130 for Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may be in another encoding
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        _check_temporary_folder()
        work()
    except UserError as error:
        sys.exit(f"error: {error}")
    except (MemoryError, RuntimeError, TypeError, ValueError, OverflowError) as error:
        if not out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        sys.exit(
            f"error: Memory ran out ({reason}): close other programs, or set smaller "
            "sizes, a smaller batch or fewer jobs."
        )
    except OSError as error:
        path = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            sys.exit(
                f"error: The disk is full{path}: free some space and run `dvc repro` again; "
                "completed work is kept."
            )
        sys.exit(f"error: {error.strerror or error}{path}.")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # the final garbage collection of torch's objects would take a second


def _check_temporary_folder() -> None:
    """Raise a UserError if the path of the temporary folder is too long: multiprocessing creates Unix
    sockets in it, whose paths have at most 108 bytes."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > MAX_TEMPORARY_BYTES:
        raise UserError(
            f"The path of the temporary folder, {folder}, has more than {MAX_TEMPORARY_BYTES} bytes, "
            "too long for Unix sockets in it: set TMPDIR to a shorter path."
        )


def name(text: str) -> str:
    """Argument type: a name that can be a file name."""
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.50}: {error.errors()[0]['msg']}") from None


def expression(text: str) -> re.Pattern[str]:
    """Argument type: a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"{text!r:.50} is not a regular expression: {error}"
        ) from None


def _argument_type(kind: Any, description: str) -> Callable[[str], Any]:
    """An argument type that pydantic checks."""

    def parse(text: str) -> Any:
        try:
            return TypeAdapter(kind).validate_python(text)
        except ValidationError:
            raise argparse.ArgumentTypeError(f"{text!r:.50} is not {description}") from None

    return parse


positive_int = _argument_type(PositiveInt, "a positive integer")
seed = _argument_type(Seed, "an integer of at most 64 bits")


def require_root(folder: Path = Path()) -> None:
    """Raise a UserError outside the project's root, to which all paths of a suite are relative."""
    missing = [name for name in ROOT_FILES if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{folder.resolve()} is not the project's root ({missing[0]} is missing): "
            "change to the root first."
        )


def progress(total: int, title: str, unit: str, done: int = 0, silent: bool = False) -> Any:
    """A tqdm progress bar; without a terminal it prints a line every 15 s. Units `B` and `px` have SI
    prefixes."""
    is_terminal = sys.stderr.isatty()
    return tqdm(
        total=total or None,
        initial=done,
        disable=silent,
        desc=title,
        unit=unit,
        unit_scale=unit in ("B", "px"),
        mininterval=0.2 if is_terminal else 15,
        maxinterval=1 if is_terminal else 15,
    )


def with_progress(items: Iterable[T], total: int, title: str, unit: str) -> Iterator[T]:
    """The items, with a progress bar; a `total` of 0 means unknown."""
    bar = progress(total, title, unit)
    bar.iterable = items
    return iter(bar)


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` with the value in YAML.

    Raises:
        UserError: it has another form.
    """
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UserError(f"{text!r} is no KEY=VALUE with a value in YAML.")
    return key, parse_yaml(value, f"The value of {key}")


def parse_bytes(text: str, option: str) -> int:
    """`2GiB`, `512 MiB` -> bytes; `option` is its name for the error message.

    Raises:
        UserError: it has another form.
    """
    try:
        return TypeAdapter(Annotated[ByteSize, Field(gt=0)]).validate_python(text.strip())
    except ValidationError:
        raise UserError(
            f"{option} is {text!r}: give a number and MiB, GiB, MB or GB, such as 2GiB."
        ) from None
