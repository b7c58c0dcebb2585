"""`glnet-bench COMMAND` or `python -m bench COMMAND`: commands outside the pipeline."""

import argparse
import importlib
import sys
from pathlib import Path

from bench import cli
from bench.config import PARAMS

# Command -> module and function. The function adds arguments to the parser and sets `work`, and
# `in_root` if the command must run in the project's root; its docstring is the help text.
COMMANDS = {
    "import-official": ("reference.checkpoint_io", "import_glnet_command"),
    "export-official": ("reference.checkpoint_io", "export_glnet_command"),
    "import-isdnet": ("reference.checkpoint_io", "import_isdnet_command"),
    "import-fctl": ("reference.checkpoint_io", "import_fctl_command"),
    "import-magnet": ("reference.checkpoint_io", "import_magnet_command"),
    "compare": ("bench.commands.compare", "command"),
    "what-if": ("bench.commands.what_if", "command"),
    "choose": ("bench.commands.choose", "command"),
    "estimate": ("bench.commands.estimate", "command"),
    "predict": ("bench.commands.predict", "command"),
    "cluster": ("bench.commands.cluster", "command"),
    "tune": ("bench.pipeline.tune", "command"),
    "check": ("bench.commands.check", "command"),
    "submit": ("bench.commands.bundle", "submit_command"),
    "bundle": ("bench.commands.bundle", "bundle_command"),
    "verify": ("bench.commands.bundle", "verify_command"),
    "evaluate": ("bench.commands.bundle", "evaluate_command"),
    "report": ("bench.commands.report", "command"),
    "parity": ("reference.__main__", "command"),
}


def main() -> None:
    """Parse the command line and run the command."""
    early = argparse.ArgumentParser(add_help=False)
    early.add_argument("--suite", type=Path, default=PARAMS)
    # A restart, before torch is loaded.
    cli.limit_instructions(early.parse_known_args()[0].suite)
    parser = argparse.ArgumentParser(prog="glnet-bench", description=__doc__)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    # Only the overview needs the texts of all, whose modules take seconds to import.
    for name in [one for one in sys.argv[1:2] if one in COMMANDS] or COMMANDS:
        module, function = COMMANDS[name]
        add_arguments = getattr(importlib.import_module(module), function)
        text = add_arguments.__doc__
        add_arguments(parsers.add_parser(name, help=text, description=text))

    def run() -> None:
        arguments = parser.parse_args()
        if getattr(arguments, "in_root", False):
            cli.require_root()
        arguments.work(arguments)

    cli.report_errors(run)


if __name__ == "__main__":
    main()
