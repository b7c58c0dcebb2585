"""Shared parts of all command lines: arguments, the check of the project's root, error messages and
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
from typing import Any, TypeVar

from pydantic import PositiveInt, TypeAdapter, ValidationError
from tqdm import tqdm

from bench.config import AVX2, PARAMS, Name, Seed, read_suite
from bench.errors import UserError, out_of_memory
from bench.files import copy_lock

T = TypeVar("T")
LONGEST_TEMPORARY_BYTES = 70
"""108 bytes, or 104 on macOS, less those of `/pymp-XXXXXXXX/listener-XXXXXXXX`."""
ROOT_FILES = ("dvc.yaml", "pyproject.toml")


def main(
    work: Callable[[argparse.Namespace], None],
    fill: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    **arguments: str,
) -> None:
    """Run a stage as a program: parse arguments, check the directory, work, report errors in one
    sentence.

    Args:
        work: the stage; its docstring is the help text.
        fill: adds further arguments to the parser.
        arguments: positional arguments, name -> help.
    """
    parser = argparse.ArgumentParser(description=work.__doc__)
    fill(parser)
    for name, text in arguments.items():
        parser.add_argument(name, help=text)

    def begin() -> None:
        parsed = parser.parse_args()
        require_root()
        limit_instructions(parsed)
        if "DVC_STAGE" in os.environ:
            copy_lock()
        work(parsed)

    report_errors(begin)


def limit_instructions(arguments: argparse.Namespace) -> None:
    """Start this program again with the environment that `compute.isa` of its suite needs; workers
    inherit it."""
    limits = instruction_limits(Path(getattr(arguments, "suite", None) or PARAMS))
    if not limits.items() <= os.environ.items():
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **limits})


def instruction_limits(path: Path = PARAMS) -> dict[str, str]:
    """The environment variables that `compute.isa` of a suite needs."""
    try:
        return AVX2 if read_suite(path).compute.isa == "avx2" else {}
    except (UserError, OSError):  # what needs the suite reads it again, and says so
        return {}


def add_report_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of the stage `report` and of its command, which start without pandas."""
    parser.add_argument(
        "suite",
        nargs="?",
        type=Path,
        default=PARAMS,
        metavar="SUITE.yaml",
        help="a file of suites/; by default the active one, params.yaml",
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def report_errors(work: Callable[[], None]) -> None:
    """Run a program; errors that the user can fix end it with one sentence, without a traceback.

    Exits with status 1 on a `UserError`, without enough memory, or on an error of the operating
    system, such as a full disk; with 130 on Ctrl-C."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be in another encoding
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
        place = f" ({error.filename})" if error.filename else ""
        if error.errno == errno.ENOSPC:
            sys.exit(
                f"error: The disk is full{place}: free some space and run `dvc repro` again; "
                "what is done is kept."
            )
        sys.exit(f"error: {error.strerror or error}{place}.")
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # else the final garbage collection of torch's objects takes a second


def _check_temporary_folder() -> None:
    """Raise a UserError where processes could not talk to each other: the names of Unix sockets,
    which multiprocessing puts into the temporary folder, have at most 108 bytes."""
    folder = tempfile.gettempdir()
    if len(os.fsencode(folder)) > LONGEST_TEMPORARY_BYTES:
        raise UserError(
            f"The folder for temporary files, {folder}, has a name of more than "
            f"{LONGEST_TEMPORARY_BYTES} bytes, too long for the sockets of processes in it: set "
            "TMPDIR to a shorter one."
        )


def above_zero(text: str) -> int:
    """The type of an argument that is a whole number above zero."""
    return _number(text, PositiveInt, "whole number above zero")


def seed(text: str) -> int:
    """The type of an argument that is a seed."""
    return _number(text, Seed, "whole number of at most 64 bits")


def name(text: str) -> str:
    """The type of an argument that becomes the name of a file."""
    try:
        return TypeAdapter(Name).validate_python(text)
    except ValidationError as error:
        raise argparse.ArgumentTypeError(f"{text!r:.50}: {error.errors()[0]['msg']}") from None


def expression(text: str) -> re.Pattern[str]:
    """The type of an argument that is a regular expression."""
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text!r:.50} is no expression: {error}") from None


def _number(text: str, kind: Any, what: str) -> int:
    try:
        return int(TypeAdapter(kind).validate_python(text))
    except ValidationError:
        raise argparse.ArgumentTypeError(f"{text!r:.50} is no {what}") from None


def require_root(here: Path = Path()) -> None:
    """Raise a UserError outside the project's root, to which all paths of the suite are relative."""
    missing = [name for name in ROOT_FILES if not (here / name).is_file()]
    if missing:
        raise UserError(
            f"{here.resolve()} is not the project's root ({missing[0]} is not there): "
            "change to it first."
        )


def progress(total: int, what: str, unit: str, done: int = 0, silent: bool = False) -> Any:
    """A tqdm progress bar; without a terminal it prints a line every 15 s. Bytes (`B`) and pixels
    (`px`) are shown as k, M and G."""
    quick = sys.stderr.isatty()
    return tqdm(
        total=total or None,
        initial=done,
        disable=silent,
        desc=what,
        unit=unit,
        unit_scale=unit in ("B", "px"),
        mininterval=0.2 if quick else 15,
        maxinterval=1 if quick else 15,
    )


def with_progress(items: Iterable[T], total: int, what: str, unit: str) -> Iterator[T]:
    """The items, with a progress bar; a `total` of 0 means unknown."""
    bar = progress(total, what, unit)
    for item in items:
        yield item
        bar.update()
    bar.close()
