"""`python -m reference FOLDER`: whether a method computes what its authors' code computes.

A folder of golden data holds what the released code gave for weights, images and labels that
formulas make. Which method it is of, its files say. Every case and step is compared in both
precisions, with a line as each is done; the status is 1 if a comparison does not hold."""

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from bench import cli
from bench.errors import UserError
from reference.check import FLOATS, HEADING, Comparison, Method, rows
from reference.golden import Golden, format_of, read

METHODS = ("cascadepsp", "f2net", "fctl", "glnet", "isdnet", "magnet", "pointrend", "rue")
"""Modules of this package with a `METHOD`; FCtL's golden data has GLNet's keys and more."""


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


class Job(NamedTuple):
    """One case or step in one mode and precision."""

    method: Method
    golden: Golden
    mode: str
    dtype: str


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


def compare(job: Job) -> Comparison:
    """All comparisons of a job.

    Raises:
        UserError: its files are not what they should be.
    """
    from reference.replay import NearestInFloat32  # torch takes seconds

    done = Comparison(job.golden.name, job.mode, job.dtype)
    with format_of(job.golden.path), NearestInFloat32():
        job.method.check(job.golden, job.mode, done)
    return done


def command(parser: argparse.ArgumentParser) -> None:
    """Compare a method with what its authors' code gave."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="golden_*.json, train_*.json")
    parser.add_argument("--json", action="store_true", help="every comparison, for machines")
    parser.add_argument("--threads", type=cli.positive_int, default=2, help="of torch (2)")
    parser.add_argument("--precision", choices=FLOATS, help="only one of the two")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Compare, print, and end with status 1 if a comparison does not hold."""
    import torch  # takes seconds, which --help need not wait for

    torch.set_num_threads(arguments.threads)
    todo = jobs(arguments.folder, [arguments.precision] if arguments.precision else FLOATS)
    stream = sys.stderr if arguments.json else sys.stdout
    print(HEADING, file=stream, flush=True)
    checks = []
    for job in todo:
        done = compare(job)
        print(*rows(done), sep="\n", file=stream, flush=True)
        checks += done.checks
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
