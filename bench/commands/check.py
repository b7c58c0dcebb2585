"""`glnet-bench check NAME`: check the raw files of a data set without preparing it.

Prints a summary and every problem, where `prepare` stops at the first, and draws a contact sheet."""

import argparse

from bench import cli
from bench.config import open_source, read_suite
from bench.errors import UserError
from data import check


def command(parser: argparse.ArgumentParser) -> None:
    """Check a data set's raw files: counts, sizes, class shares, and all problems."""
    parser.add_argument("dataset", help="a key of the table datasets")
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Check one data set of params.yaml; exits with status 1 if it cannot be prepared."""
    name = arguments.dataset
    source, settings, raw = open_source(read_suite(), name)
    about = source.about(settings)
    survey = source.survey(settings, raw) if hasattr(source, "survey") else None
    entries = survey.entries if survey else source.pairs(settings, raw)
    count = len(survey.entries) if survey else 0
    found = check.check_pairs(about, cli.with_progress(entries, count, name, "image"), survey)
    print(check.table(about, found))
    if found.thumbnails:
        print(f"some images with their labels: {check.write_contact_sheet(name, about, found)}")
    if found.errors:
        raise UserError(
            f"Data set {name} cannot be prepared: correct the {len(found.errors)} errors above."
        )
