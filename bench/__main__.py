"""`glnet-bench COMMAND`, or `python -m bench COMMAND`: what is not a stage of the pipeline."""

import argparse
import importlib
from collections.abc import Callable

from bench import stage

# Command -> module and function; the function adds its arguments to the parser it is given and sets
# `work`, and its docstring is the help text.
COMMANDS = {
    "import-official": ("glnet.official", "import_command"),
    "export-official": ("glnet.official", "export_command"),
    "import-isdnet": ("isdnet.official", "import_command"),
    "import-fctl": ("fctl.official", "import_command"),
    "compare": ("bench.compare.command", "command"),
    "what-if": ("bench.whatif", "command"),
    "estimate": ("bench.estimate", "command"),
    "check": ("data.check", "command"),
    "report": ("bench.report.command", "command"),
    "parity": ("glnet.parity.__main__", "command"),
}


def main() -> None:
    """Parse the command line and do what it says."""
    parser = argparse.ArgumentParser(prog="glnet-bench", description=__doc__)
    parsers = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (module, function) in COMMANDS.items():
        fill: Callable[[argparse.ArgumentParser], None] = getattr(
            importlib.import_module(module), function
        )
        fill(parsers.add_parser(name, help=fill.__doc__, description=fill.__doc__))

    def begin() -> None:
        arguments = parser.parse_args()
        arguments.work(arguments)

    stage.in_one_sentence(begin)


if __name__ == "__main__":
    main()
