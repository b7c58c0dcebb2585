"""`glnet-bench report`: write the report of a suite and open its pages."""

import argparse

from bench import cli


def command(parser: argparse.ArgumentParser) -> None:
    """Write a suite's report from the existing records; --open shows it in the browser."""
    cli.add_report_arguments(parser)
    parser.set_defaults(work=_work, in_root=True)


def _work(arguments: argparse.Namespace) -> None:
    from bench.report.__main__ import work  # pandas and matplotlib take a second

    work(arguments)
