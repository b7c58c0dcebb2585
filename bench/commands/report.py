"""`glnet-bench report`: the stage as a command, for a person who wants to see its pages."""

import argparse
from pathlib import Path

from bench import cli
from bench.config import PARAMS


def command(parser: argparse.ArgumentParser) -> None:
    """Write a suite's report from the records that there are, and show it with --open."""
    fill(parser)
    parser.set_defaults(work=_work)


def fill(parser: argparse.ArgumentParser) -> None:
    """The arguments of the stage."""
    parser.add_argument(
        "suite",
        nargs="?",
        type=Path,
        default=PARAMS,
        metavar="SUITE.yaml",
        help="a file of suites/; by default the active one, params.yaml",
    )
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def _work(arguments: argparse.Namespace) -> None:
    cli.require_root()
    from bench.report.__main__ import work  # pandas and matplotlib take a second

    work(arguments)
