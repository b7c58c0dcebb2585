"""Stage `training_code`: SHA-256 of every file of the harness that training runs, without comments
and docstrings.

`train` depends on this one small file, so that dvc.lock lists the files once instead of once per model
and an edited docstring does not retrain a model."""

import argparse
from pathlib import Path

from ruamel.yaml import YAML

from bench import cli
from bench.files import code_sha256, write_text

RESULT = Path("checkpoints/training_code.txt")


def fingerprint() -> str:
    """One line `SHA-256  PATH` for each dependency of this stage in dvc.yaml."""
    stages = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
    paths = [Path(path) for path in stages["training_code"]["deps"]]
    return "".join(f"{code_sha256(path)}  {path}\n" for path in paths)


def work(arguments: argparse.Namespace) -> None:
    """Write the fingerprint of the code that training runs."""
    write_text(RESULT, fingerprint())
    print(RESULT)


if __name__ == "__main__":
    cli.main(work)
