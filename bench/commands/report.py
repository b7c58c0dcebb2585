"""`glnet-bench report`: the stage as a command, for a person who wants to see its pages."""

import argparse

from bench import cli


def command(parser: argparse.ArgumentParser) -> None:
    """Write a suite's report from the records that there are, and show it with --open."""
    cli.add_report_arguments(parser)
    parser.set_defaults(work=_work, in_root=True)


def _work(arguments: argparse.Namespace) -> None:
    from bench.report.__main__ import work  # pandas and matplotlib take a second

    work(arguments)
