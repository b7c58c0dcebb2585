"""What every stage's command line shares: arguments, the project's root, and errors as one
sentence."""

import argparse
import errno
import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from bench.config import PARAMS
from bench.errors import UserError

T = TypeVar("T")
ROOT_FILES = ("dvc.yaml", "pyproject.toml")


def main(
    work: Callable[[argparse.Namespace], None],
    fill: Callable[[argparse.ArgumentParser], None] = lambda _: None,
    **arguments: str,
) -> None:
    """Run one stage as a program: parse, check the directory, work, and say in one sentence what
    went wrong.

    Args:
        work: the stage; its docstring is the help text.
        fill: adds arguments of other kinds.
        arguments: positional arguments, name -> help.
    """
    parser = argparse.ArgumentParser(description=work.__doc__)
    fill(parser)
    for name, text in arguments.items():
        parser.add_argument(name, help=text)

    def begin() -> None:
        parsed = parser.parse_args()
        require_root()
        work(parsed)

    report_errors(begin)


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
    """Do the work of a program; what a person can mend ends it with a sentence, not a traceback.

    Exits with status 1 on a `UserError`, a full disk or any other error of the operating system; with
    130 on Ctrl-C."""
    try:
        work()
    except UserError as error:
        sys.exit(f"error: {error}")
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
        gc.freeze()  # else the interpreter, at its end, goes through all that torch made: a second


def require_root(here: Path = Path()) -> None:
    """Refuse to work anywhere but in the project's root, where all paths of the suite start."""
    missing = [name for name in ROOT_FILES if not (here / name).is_file()]
    if missing:
        raise UserError(
            f"{here.resolve()} is not the project's root ({missing[0]} is not there): "
            "change to it first."
        )


def progress(total: int, what: str, unit: str, done: int = 0, silent: bool = False) -> Any:
    """A tqdm bar for long work; in a log, where a bar cannot be redrawn, a line now and
    then. Bytes (`B`) and pixels (`px`) are shown as k, M and G."""
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
    """The items, with a bar that says how many there were; a `total` of 0 is not known."""
    bar = progress(total, what, unit)
    for item in items:
        yield item
        bar.update()
    bar.close()
