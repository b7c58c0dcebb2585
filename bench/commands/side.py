"""One side of a comparison: the records of a commit, read from git without a checkout, or those of a
folder."""

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from bench import record
from bench.errors import UserError
from bench.record import Record

STAGES = ("evaluate", "measure")


@dataclass(frozen=True)
class Results:
    """The records of one suite."""

    evaluated: Mapping[str, Record]
    """By run."""
    measured: Mapping[tuple[str, str], Record]
    """By machine and run."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    """As given on the command line."""
    what: str
    """Description: the commit or the folder."""
    suites: Mapping[str, Results]


def open_side(name: str) -> Side:
    """The records of a folder or commit.

    Args:
        name: a folder (of the project, of its results, or of one suite), or a commit as git
            understands it; `COMMIT:FOLDER` chooses another folder than `results`.

    Raises:
        UserError: there is no such folder or commit, no record in it, or one in an unknown format.
    """
    if Path(name).is_dir():
        what, files = f"folder {name}", dict(_in_folder(Path(name)))
    else:
        commit, folder = _commit(name)
        what, files = f"commit {commit[:10]}", dict(_in_commit(commit, folder))
    suites = _by_suite(name, files)
    if not suites:
        raise UserError(
            f"{what} ({name}) has no record of a run: records lie in results/SUITE/evaluate and "
            "results/SUITE/measure/MACHINE."
        )
    return Side(name, what, suites)


def _by_suite(name: str, files: Mapping[PurePosixPath, str]) -> dict[str, Results]:
    evaluated: dict[str, dict[str, Record]] = {}
    measured: dict[str, dict[tuple[str, str], Record]] = {}
    for path, text in sorted(files.items()):
        suite, stage, *machine, _ = path.parts
        found = record.parse(text, f"{name}: {path}", "compare it with the code of its time")
        evaluated.setdefault(suite, {})
        measured.setdefault(suite, {})
        if stage == "evaluate":
            evaluated[suite][path.stem] = found
        else:
            measured[suite][machine[0], path.stem] = found
    return {suite: Results(evaluated[suite], measured[suite]) for suite in evaluated}


def _in_folder(folder: Path) -> Iterator[tuple[PurePosixPath, str]]:
    """(SUITE/STAGE[/MACHINE]/RUN.json, content) of every record."""
    root = folder / record.RESULTS if (folder / record.RESULTS).is_dir() else folder
    if any((root / stage).is_dir() for stage in STAGES):  # a suite's own
        root, suites = root.resolve().parent, [root.resolve()]
    else:
        suites = [path for path in root.iterdir() if path.is_dir()]
    for suite in suites:
        for stage in STAGES:
            for path in (suite / stage).rglob("*.json"):
                place = PurePosixPath(*path.relative_to(root).parts)
                if _is_record(place):
                    yield place, path.read_text()


def _in_commit(commit: str, folder: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    """As `_in_folder`."""
    listed = _git("ls-tree", "-r", "-z", "--name-only", commit, "--", f"{folder}/").decode()
    paths = [PurePosixPath(path) for path in listed.split("\0") if path]
    root = folder.parent if any(p.relative_to(folder).parts[0] in STAGES for p in paths) else folder
    chosen = [path for path in paths if _is_record(path.relative_to(root))]
    asked = "".join(f"{commit}:./{path}\n" for path in chosen).encode()
    answer = _git("cat-file", "--batch", given=asked)
    for path in chosen:
        head, _, answer = answer.partition(b"\n")
        size = int(head.split()[-1])
        yield path.relative_to(root), answer[:size].decode()
        answer = answer[size + 1 :]


def _is_record(path: PurePosixPath) -> bool:
    """Whether it is SUITE/evaluate/RUN.json or SUITE/measure/MACHINE/RUN.json."""
    depth = {"evaluate": 3, "measure": 4}
    parts = path.parts
    return path.suffix == ".json" and len(parts) > 1 and depth.get(parts[1]) == len(parts)


def _commit(name: str) -> tuple[str, PurePosixPath]:
    """The commit's full name, and the folder of its results."""
    revision, _, folder = name.partition(":")
    wanted = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        commit = _git(*wanted).decode().strip()
    except UserError:
        raise UserError(
            f"{name!r} is neither a folder nor a commit of this repository: see `git log`."
        ) from None
    return commit, PurePosixPath(folder or record.RESULTS.as_posix())


def _git(*arguments: str, given: bytes = b"") -> bytes:
    try:
        done = subprocess.run(["git", *arguments], input=given, capture_output=True, check=True)
    except FileNotFoundError:
        raise UserError("git is not installed: compare two folders instead.") from None
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").strip().split("\n")[0]
        raise UserError(f"git {arguments[0]} failed: {said}.") from None
    return done.stdout
