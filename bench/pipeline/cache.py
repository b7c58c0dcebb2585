"""Decides which runs' records are up to date.

The stages `evaluate` and `measure` process all runs of a suite in one process, because loading the
libraries takes longer than most runs of a small suite. DVC tracks the dependencies of a whole stage;
this cache tracks those of each run. Its files are not in git: a fresh clone computes all runs again."""

import argparse
import hashlib
import json
import shutil
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path

from ruamel.yaml import YAML

from bench import cli, record
from bench.config import Suite, checkpoint_of, pick, read_suite
from bench.files import CACHE_STATE, code_sha256, file_sha256, write_text

PREPARED = Path("data/prepared")


def mark_fresh(suite: Suite, stage: str, name: str) -> None:
    """Mark the record and the predicted labels of a run as up to date."""
    write_text(_state_path(suite, stage, name), _state(suite, stage, name) + "\n")


def stale(suite: Suite, stage: str) -> list[str]:
    """Runs without an up-to-date record. Also removes the files of runs that are not in the suite."""
    for path in _folder(suite, stage).glob("*.json"):
        if path.stem not in suite.runs:
            path.unlink()
            shutil.rmtree(_predicted_labels(suite, path.stem), ignore_errors=True)
    return [name for name in suite.runs if not _is_fresh(suite, stage, name)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that select a stage's runs."""
    parser.add_argument("run", nargs="*", help="keys of the table runs; default: all")
    parser.add_argument(
        "--missing",
        action="store_true",
        help="skip runs whose record is up to date",
    )


def requested(suite: Suite, stage: str, parsed: argparse.Namespace) -> list[str]:
    """The runs that the arguments select.

    Raises:
        UserError: their data or checkpoints were not made with the suite's settings.
    """
    names = parsed.run or list(suite.runs)
    if parsed.missing:
        outdated = stale(suite, stage)
        names = [name for name in names if name in outdated]
    if names:
        from bench.run import require_inputs  # loads torch, which takes seconds

        require_inputs(suite, dict.fromkeys(pick(suite.runs, name, "run").model for name in names))
    return names


def _is_fresh(suite: Suite, stage: str, name: str) -> bool:
    try:
        return _state_path(suite, stage, name).read_text().strip() == _state(suite, stage, name)
    except FileNotFoundError:
        return False


def _state(suite: Suite, stage: str, name: str) -> str:
    """SHA-256 of a run's dependencies and results."""
    run = suite.runs[name]
    model = suite.models[run.model]
    inputs = [
        PREPARED / model.dataset / "dataset.json",
        record.path_of(suite.suite, "train", run.model),  # differs after each training
        *(checkpoint_of(run.model, model, one.seed) for one in model.trainings),
    ]
    outputs = [_folder(suite, stage) / f"{name}.json"]
    if stage == "evaluate":
        outputs += sorted(_predicted_labels(suite, name).glob("*.png"))
    facts = {
        "run": asdict(run),
        "model": model.settings(),
        "compute": asdict(suite.compute),
        "splits": suite.splits,
        "versions": {library: metadata.version(library) for library in record.VERSIONS},
        "code": {str(file): code_sha256(file) for file in code_of(stage, model.method)},
        "files": {str(file): file_sha256(file) for file in [*inputs, *outputs]},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


@cache
def code_of(stage: str, method: str) -> tuple[Path, ...]:
    """Python files that a stage's result depends on for one method: the method's folder, and the
    dependencies of the stage and of `training_code` in dvc.yaml, without other methods' folders."""
    stages = YAML(typ="safe").load(Path("dvc.yaml"))["stages"]
    deps = [*stages[stage]["deps"], *stages["training_code"]["deps"]]
    paths = [Path(path) for path in deps if "$" not in path]
    files = {
        file
        for path in (*paths, Path(method))
        for file in ([path] if path.is_file() else path.rglob("*.py"))
        if file.suffix == ".py"
    }
    return tuple(file for file in sorted(files) if _method_of(file) in (None, Path(method)))


def _method_of(file: Path) -> Path | None:
    """The folder of the method that a file belongs to: the one with a spec.py."""
    return next((folder for folder in file.parents if (folder / "spec.py").is_file()), None)


def _state_path(suite: Suite, stage: str, name: str) -> Path:
    return CACHE_STATE / _folder(suite, stage).relative_to(record.RESULTS) / name


def _folder(suite: Suite, stage: str) -> Path:
    machine = suite.machine if stage == "measure" else None
    return record.path_of(suite.suite, stage, "NAME", machine).parent


def _predicted_labels(suite: Suite, name: str) -> Path:
    return record.RESULTS / suite.suite / "predictions" / name


def work(arguments: argparse.Namespace) -> None:
    """Print the runs of a stage without an up-to-date record, a line each."""
    for name in stale(read_suite(), arguments.stage):
        print(name)


if __name__ == "__main__":
    cli.main(work, stage="evaluate or measure")
