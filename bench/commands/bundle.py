"""`glnet-bench submit`, `bundle`, `verify` and `evaluate`: the results or the trained checkpoints of a
suite as one file, an RO-Crate."""

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from bench.commands.difference import git
from bench.config import PARAMS, Suite, checkpoint_of, read_suite
from bench.errors import UserError
from bench.files import write_text
from bench.record import BENCHMARK, path_of
from data import crate
from data.dataset import PREPARED, open_dataset

Make = Callable[[Suite, Path], None]
PAPER = "https://arxiv.org/abs/1905.06368"


def submit_command(parser: argparse.ArgumentParser) -> None:
    """Bundle a suite's records, and the tables that follow from them, for a pull request."""
    _arguments(parser, "results", _add_results)


def bundle_command(parser: argparse.ArgumentParser) -> None:
    """Bundle a suite's trained checkpoints, with records of their training and licences."""
    _arguments(parser, "checkpoints", _add_checkpoints)


def verify_command(parser: argparse.ArgumentParser) -> None:
    """Check a bundle: hashes, records, plausibility, and every number against its raw records."""
    parser.add_argument("bundle", metavar="BUNDLE.zip", type=Path)
    parser.add_argument(
        "--install",
        action="store_true",
        help="put its files where the pipeline would have made them; none is replaced",
    )
    parser.set_defaults(work=lambda given: verify(given.bundle, given.install), in_root=True)


def evaluate_command(parser: argparse.ArgumentParser) -> None:
    """Evaluate the checkpoints of a bundle on the active suite's data, without training."""
    parser.add_argument("bundle", metavar="BUNDLE.zip", type=Path)
    parser.set_defaults(work=_evaluate, in_root=True)


def _arguments(parser: argparse.ArgumentParser, what: str, make: Make) -> None:
    parser.add_argument("suite", nargs="?", type=Path, default=PARAMS, metavar="SUITE.yaml")
    parser.add_argument("-o", "--output", type=Path, help=f"default: SUITE-{what}.zip")
    parser.set_defaults(work=partial(_pack, what, make), in_root=True)


def _evaluate(arguments: argparse.Namespace) -> None:
    """Install a bundle's checkpoints, and run the stage `evaluate`."""
    suite = verify(arguments.bundle, install=True)
    if read_suite(suite) != read_suite():
        raise UserError(f"params.yaml is not the suite of {arguments.bundle}: copy {suite} to it.")
    done = subprocess.run([sys.executable, "-m", "bench.pipeline.evaluate"], check=False)
    sys.exit(done.returncode)


def _pack(what: str, make: Make, arguments: argparse.Namespace) -> None:
    """Write a bundle and check it."""
    suite = read_suite(arguments.suite)
    target = arguments.output or Path(f"{suite.suite}-{what}.zip")
    commit, date = git("log", "-1", "--format=%H %cs").decode().split()
    program = {"@id": "#glnet-bench", "@type": "SoftwareApplication", "name": "glnet-bench"}
    made = {"@id": "#dvc-repro", "@type": "CreateAction", "name": "dvc repro"}
    data = [
        {
            "@id": f"#{name}",
            "@type": "Dataset",
            "name": name,
            "description": open_dataset(name).credit,
        }
        for name in suite.datasets
        if (PREPARED / name / "dataset.json").exists()
    ]
    about = {
        "name": f"{suite.suite}: {what}",
        "description": f"The {what} of the suite {suite.suite} of glnet-bench, made on {suite.machine}.",
        "datePublished": date,
        "version": str(BENCHMARK),
        "citation": {"@id": PAPER},
        "isBasedOn": [{"@id": one["@id"]} for one in data],
    }
    more = [
        program | {"softwareVersion": commit},
        made | {"instrument": {"@id": program["@id"]}, "result": {"@id": "./"}},
        {"@id": PAPER, "@type": "ScholarlyArticle", "name": "GLNet"},
        *data,
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        _copy([crate.LICENCE], folder)
        _copy_file(arguments.suite, folder / _suite_file(suite))
        make(suite, folder)
        crate.pack(target, folder, about, more)
    try:
        verify(target)
    except UserError:
        target.unlink()
        raise


def verify(bundle: Path, install: bool = False) -> Path:
    """Check a bundle, and print what was found; returns the place of its suite.

    Args:
        install: also put its files into the project.

    Raises:
        UserError: something is wrong; what else is wrong has been printed.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "bundle")
        names = crate.open_crate(bundle, folder)
        suites = [Path(name) for name in names if name.startswith("suites/")]
        suite = read_suite(folder / suites[0]) if suites else None
        if suite is None or suites != [_suite_file(suite)]:
            raise UserError(f"{bundle} needs one suite, in a file of its name below suites/.")
        trained = any(name.startswith("checkpoints/") for name in names)
        said, faults = (_of_checkpoints if trained else _of_results)(suite, folder, names)
        for fault in faults[1:]:
            print(fault)
        if faults:
            raise UserError(f"{bundle} is wrong in {len(faults)} places, for one {faults[0]}.")
        new = crate.install(folder, names) if install else []
    done = f"; {len(new)} files installed" if install else ""
    print(f"{bundle}: suite {suite.suite}, benchmark version {BENCHMARK}, verified: {said}{done}")
    return suites[0]


def _of_results(suite: Suite, folder: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """What was checked, and what is wrong, a clause each."""
    from bench.report import verify as checks  # imports what draws figures

    known = checks.known_truth()
    with contextlib.chdir(folder):
        numbers, faults = checks.check(suite, names, known)
    return f"{numbers} numbers of {len(suite.runs)} runs follow from its records", faults


def _of_checkpoints(suite: Suite, folder: Path, names: Sequence[str]) -> tuple[str, list[str]]:
    """The same of checkpoints and the records of their training."""
    from bench.run import require_checkpoint  # imports torch

    faults = []
    with contextlib.chdir(folder):
        for name in suite.models:
            try:
                require_checkpoint(suite, name)
            except UserError as error:
                faults.append(str(error).removesuffix("."))
    return f"checkpoints of {len(suite.models)} models", faults


def _add_results(suite: Suite, folder: Path) -> None:
    from bench.report import verify as checks

    _copy(checks.record_paths(suite), folder)
    with contextlib.chdir(folder):
        for name, text in checks.derived(suite).items():
            write_text(Path("report", suite.suite, "tables", f"{name}.csv"), text)


def _add_checkpoints(suite: Suite, folder: Path) -> None:
    for name, model in suite.models.items():
        paths = [checkpoint_of(name, model, one.seed) for one in model.trainings]
        about = [path_of(suite.suite, "train", name), PREPARED / model.dataset / "dataset.json"]
        _copy([*paths, *about], folder)


def _copy(paths: Iterable[Path], folder: Path) -> None:
    """Those that there are, to the same places below a folder."""
    for path in paths:
        if path.is_file():
            _copy_file(path, folder / path)


def _copy_file(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def _suite_file(suite: Suite) -> Path:
    return Path("suites", f"{suite.suite}.yaml")
