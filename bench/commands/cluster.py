"""`glnet-bench cluster`: run the active suite on Ray or Slurm."""

import argparse

from bench import cli

FOLDER = "~/.cache/glnet-bench"


def command(parser: argparse.ArgumentParser) -> None:
    """Run the active suite on Ray (here by default) or Slurm; what is up to date is left out."""
    add_engine_arguments(parser)
    parser.add_argument(
        "--gpu",
        type=lambda text: cli.parse_bytes(text, "--gpu"),
        metavar="BYTES",
        help="memory of a card, for instance 80GiB: small trainings share it",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the tasks, and the scripts of Slurm's jobs"
    )
    parser.add_argument(
        "--simulate",
        type=cli.positive_int,
        metavar="SEEDS",
        help="print how long the whole suite with so many seeds takes on 1 to 1,000 workers",
    )
    parser.set_defaults(work=work, in_root=True)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments that choose where tasks run."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--address", default="local", help="of Ray: local (default), auto or ray://HOST:PORT"
    )
    where.add_argument("--slurm", action="store_true", help="submit jobs to Slurm")
    parser.add_argument(
        "--workers", type=cli.positive_int, metavar="N", help="tasks at once, of local Ray or Slurm"
    )
    parser.add_argument(
        "--folder", default=FOLDER, help=f"of workers' checkouts and cache; default: {FOLDER}"
    )
    parser.add_argument(
        "--sbatch",
        type=cli.parse_setting,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="options such as partition=gpu",
    )


def work(arguments: argparse.Namespace) -> None:
    """Run the suite; DVC takes seconds to load."""
    from bench.cluster.start import start

    start(arguments)
