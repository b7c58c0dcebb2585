"""`python -m reference FOLDER`: whether a method computes what its authors' code computes.

A folder of golden data holds what the released code gave for weights, images and labels that
formulas make. Which method it is of, its files say. Every case and step is compared in both
precisions, with a line as each is done; the status is 1 if a comparison does not hold."""

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import cli
from bench.errors import UserError
from reference.check import FLOATS, Comparison, Method, heading, rows
from reference.golden import Golden, format_of, read

METHODS = ("fctl", "glnet", "isdnet", "magnet")
"""Modules of this package with a `METHOD`; FCtL's golden data has GLNet's keys and more."""


@dataclass(frozen=True)
class Job:
    """One case or step in one mode and precision."""

    method: Method
    golden: Golden
    mode: str
    dtype: str

    def run(self) -> Comparison:
        """All its comparisons.

        Raises:
            UserError: its files are not what they should be.
        """
        from reference.replay import NearestInFloat32

        compare = Comparison(self.golden.name, self.mode, self.dtype)
        with format_of(self.golden.path), NearestInFloat32():
            self.method.check(self.golden, self.mode, compare)
        return compare


def method_of(folder: Path, goldens: list[Golden]) -> Method:
    """The method that a folder's golden data is of.

    Raises:
        UserError: it is of none.
    """
    for name in METHODS:
        method: Method = importlib.import_module(f"reference.{name}").METHOD
        if method.fits(goldens):
            return method
    raise UserError(f"{folder} has golden data of none of {', '.join(METHODS)}.")


def jobs(folder: Path, dtypes: Sequence[str] = FLOATS) -> list[Job]:
    """Everything that a folder can be compared in.

    Raises:
        UserError: there is no such folder, or a file is not what it should be.
    """
    goldens = read(folder)
    method = method_of(folder, goldens)
    found = []
    for golden in goldens:
        with format_of(golden.path):
            modes = method.modes(golden)
        found += [Job(method, golden, mode, dtype) for dtype in dtypes for mode in modes]
    return found


def compare(todo: Sequence[Job], report: Callable[[str], None]) -> Iterator[Comparison]:
    """Run jobs one after another, and report each as it is done."""
    widths = [
        max(len(name) for name in ("case", *names))
        for names in zip(*((job.golden.name, job.mode) for job in todo), strict=True)
    ]
    report(heading(*widths))
    for job in todo:
        done = job.run()
        for line in rows(done, *widths):
            report(line)
        yield done


def command(parser: argparse.ArgumentParser) -> None:
    """Compare a method with what its authors' code gave."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="golden_*.json, train_*.json")
    parser.add_argument("--json", action="store_true", help="every comparison, for machines")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.add_argument("--precision", choices=FLOATS, help="only one of the two")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Compare, print, and end with status 1 if a comparison does not hold."""
    import torch  # takes seconds, which --help need not wait for

    torch.set_num_threads(arguments.threads)
    todo = jobs(arguments.folder, [arguments.precision] if arguments.precision else FLOATS)
    stream = sys.stderr if arguments.json else sys.stdout

    def report(line: str) -> None:
        print(line, file=stream, flush=True)

    checks = [check for done in compare(todo, report) for check in done.checks]
    if arguments.json:
        print(json.dumps([asdict(check) | {"ok": check.ok} for check in checks], indent=1))
    failed = sum(not check.ok for check in checks)
    if failed:
        sys.exit(f"error: {failed} of {len(checks)} comparisons do not hold.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reference", description=command.__doc__)
    command(parser)

    def begin() -> None:
        """Do what the command line says."""
        arguments = parser.parse_args()
        arguments.work(arguments)

    cli.report_errors(begin)
