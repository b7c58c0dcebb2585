"""`python -m reference.__main__ FOLDER`: whether a method computes what its authors' code computes.

A folder of golden data holds what the released code gave for weights, images and labels that
formulas make. Which method it is of, its files say. Status 1 if a comparison does not hold."""

import argparse
import importlib
import importlib.util
import json
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from bench import cli
from bench.errors import UserError
from reference.check import table

METHODS = ("fctl", "isdnet", "magnet")
"""Packages with a `parity` that says which golden data is theirs; GLNet's has its own command."""


def of(folder: Path) -> ModuleType:
    """The package `parity` of the method that a folder's golden data is of.

    Raises:
        UserError: there is no such folder, or it is of no method.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    for name in METHODS:
        module = importlib.import_module(f"{name}.parity")
        if module.fits(folder):
            return module
    raise UserError(
        f"{folder} has golden data of none of {', '.join(METHODS)}; GLNet's is compared by "
        "`python -m reference.glnet`."
    )


def command(parser: argparse.ArgumentParser) -> None:
    """Compare a method with what its authors' code gave."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="golden_*.json, train_*.json")
    parser.add_argument("--json", action="store_true", help="every comparison, for machines")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Compare, print, and end with status 1 if a comparison does not hold."""
    import torch  # takes seconds, which --help need not wait for

    torch.set_num_threads(arguments.threads)
    checks = of(arguments.folder).compare(arguments.folder)
    if arguments.json:
        print(json.dumps([asdict(check) | {"ok": check.ok} for check in checks], indent=1))
    else:
        print(table(checks))
    failed = sum(not check.ok for check in checks)
    if failed:
        sys.exit(f"error: {failed} of {len(checks)} comparisons do not hold.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m reference.__main__", description=command.__doc__
    )
    command(parser)

    def begin() -> None:
        """Do what the command line says."""
        arguments = parser.parse_args()
        arguments.work(arguments)

    cli.report_errors(begin)
