"""Stage `download`: one line of the table `datasets` -> its raw files, each checked."""

import argparse

from bench import cli
from bench.config import read_suite
from data.fetch import alone
from data.source import open_source


def work(arguments: argparse.Namespace) -> None:
    """Fetch what a data set is made from; files that are there and right are left alone."""
    source, settings, raw = open_source(read_suite(), arguments.dataset)
    with alone(raw):
        raw.mkdir(parents=True, exist_ok=True)
        source.download(settings, raw)


if __name__ == "__main__":
    cli.main(work, dataset="a key of the table datasets")
