"""What the stages of dvc.yaml import and open is what they declare, and no more.

An input that a stage does not declare leaves its result stale without a word; one that it declares
and does not read makes it run for nothing."""

import argparse
import importlib
import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, tiny_suite, write_suite
from ruamel.yaml import YAML
from source import closure, constants, has_code, modules

from bench import record
from bench.files import code_sha256
from bench.pipeline.training_code import fingerprint
from bench.report.load_records import published

Stages = Mapping[str, Mapping[str, Any]]

METHODS = ("glnet", *(f"baselines/{p.parent.name}" for p in ROOT.glob("baselines/*/spec.py")))
SOURCES = ("deepglobe", "dubai", "earthcover", "folder", "idrid", "inria", "isic", "mosaic")
NETWORK = ("spec", "model", "training", "inference")
"""Parts of a method that `bench.method.load` imports by name."""

NO_INPUT = {
    "bench/cli.py": "arguments, progress bars and messages",
    "bench/config.py": "reads params.yaml; the values that a stage depends on are its params",
    "bench/errors.py": "messages",
    "bench/files.py": "writes files whole",
    "bench/record.py": "writes and reads records",
    "bench/record_contents.py": "checks records that are read",
    "bench/parallel/__init__.py": "names of the next",
    "bench/parallel/processes.py": "spreads work over processes",
    "bench/pipeline/cache.py": "decides which records are stale; does not change one",
    "bench/pipeline/inputs.py": "calls one function of data/ for each of its stages",
}
"""Modules that no stage declares, and why a change of theirs changes no result."""

EXEMPT = {
    ("weights", "data/packages.py"): "every file is checked by SHA-256, whatever fetched it",
    ("weights", "data/unpack.py"): "as above",
    ("prepare", "data/fetch.py"): "serves the download function of a source",
    ("prepare", "data/kaggle.py"): "as above",
    ("prepare", "data/packages.py"): "as above",
    ("prepare", "data/unpack.py"): "as above",
}
"""(stage, pattern) of modules that one stage imports and does not declare, and why."""

FROM_DATA = {"download": (), "prepare": ("data/prepare.py",), "weights": ("data/weights.py",)}
"""What the stages of `bench.pipeline.inputs` call, besides the module of a data source. No code is an
input of `download`: every file is checked by SHA-256, whatever fetched it."""

WITH_EACH_TRAINING = "results/SUITE/train changes with each training and holds the data's SHA-256"
UNDECLARED_FILES = {
    ("train", "results/${suite}/train/${key}"): "DVCLive reads what it has just written",
    ("evaluate", "checkpoints"): WITH_EACH_TRAINING,
    ("evaluate", "data/prepared"): WITH_EACH_TRAINING,
    ("measure", "checkpoints"): WITH_EACH_TRAINING,
    ("measure", "data/prepared"): WITH_EACH_TRAINING,
    ("report", "data/prepared"): WITH_EACH_TRAINING,
}
"""(stage, folder) of files that a stage opens and does not declare, and why."""


def stages() -> Stages:
    """As dvc.yaml has them; of a stage with `foreach` what it does for each."""
    read = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    return {name: stage.get("do", stage) for name, stage in read.items()}


OF_TRAINING = {"checkpoints/training_code.txt", "results/${suite}/train"}
"""Dependencies that change with the code of the stage `training_code`."""


def declared(stages: Stages, name: str, **values: str) -> set[str]:
    """The dependencies of a stage, templates filled in."""
    return {filled(path, **values) for path in stages[name].get("deps", ())}


def implied(stages: Stages, name: str) -> set[str]:
    """Files that a stage depends on through others: the harness that training runs."""
    through = OF_TRAINING & set(stages[name].get("deps", ()))
    return declared(stages, "training_code") if through else set()


def outputs(stages: Stages, name: str, **values: str) -> set[str]:
    """What a stage writes, and may read again."""
    found = set()
    for table in ("outs", "plots", "metrics"):
        for out in stages[name].get(table, ()):
            path = out if isinstance(out, str) else next(iter(out))
            found.add(filled(path, **values))
    return found


def filled(path: str, **values: str) -> str:
    """A path of dvc.yaml with its templates filled in."""
    for key, value in values.items():
        path = path.replace(f"${{{key}}}", value)
    return path


def is_code(path: str) -> bool:
    return path.startswith(("baselines", "bench", "glnet", "data/", "tests")) and not (
        path.endswith(".csv") or path.startswith(("data/raw", "data/prepared"))
    )


def covers(dependency: str, file: Path) -> bool:
    return file == Path(dependency) or Path(dependency) in file.parents


def methods_of(stage: str) -> set[str]:
    """The methods whose networks a stage runs: those of its record or its suite, or whichever the
    active suite names."""
    if stage == "successors":
        suite = YAML(typ="safe").load((ROOT / "suites/deepglobe-successors.yaml").read_text())
        return {"glnet", *(model["method"] for model in suite["models"].values())}
    if stage != "predict":
        return set(METHODS)
    values = json.loads((ROOT / "results/predict.json").read_text())["values"]
    moved = importlib.import_module("bench.config").current_method
    return {moved(row["method"]) for row in values["runs"].values()}


def imported(stages: Stages, stage: str, method: str = "", source: str = "") -> set[Path]:
    """Files with code that a stage loads: what its module imports, and what is loaded by name."""
    name = stages[stage]["cmd"].split()[2]
    module = f"{name}.__main__" if f"{name}.__main__" in modules() else name
    benchmarks = filter(is_test, stages[stage].get("deps", ()))
    roots = FROM_DATA.get(stage, (modules()[module], *benchmarks))
    found = closure(map(Path, roots))
    if Path("bench/method.py") in found:
        parts = ("spec", "inputs") if stage == "report" else NETWORK
        for one in [method] if method else methods_of(stage):
            places = [Path(one, f"{part}.py") for part in parts]
            found |= closure(place for place in places if (ROOT / place).is_file())
    if source and stage == "prepare":
        found |= closure([Path(f"data/{source}.py")])
    return {path for path in found if has_code(path)}


def is_test(path: str) -> bool:
    return path.startswith("tests/")


def code_faults(stages: Stages, stage: str, method: str = "", source: str = "") -> list[str]:
    """What a stage imports and does not declare, and what it declares and does not import."""
    dependencies = declared(stages, stage, **{"item.method": method, "item.source": source})
    loaded = imported(stages, stage, method, source)
    exempt = [pattern for name, pattern in EXEMPT if name == stage]
    missing = [
        f"{stage} imports {path}, which it does not declare"
        for path in sorted(loaded)
        if str(path) not in NO_INPUT
        and not any(path.match(pattern) for pattern in exempt)
        and not any(covers(one, path) for one in dependencies | implied(stages, stage))
    ]
    idle = [
        f"{stage} declares {one}, which it does not import"
        for one in sorted(filter(is_code, dependencies))
        if not any(covers(one, path) for path in loaded)
    ]
    return missing + idle


CASES = [
    ("download", "", ""),
    ("weights", "", ""),
    *(("prepare", "", source) for source in SOURCES),
    *(("train", method, "") for method in METHODS),
    *((stage, "", "") for stage in ("evaluate", "measure", "steps", "predict", "successors")),
    ("report", "", ""),
]


@pytest.mark.parametrize(("stage", "method", "source"), CASES)
def test_code(stage: str, method: str, source: str) -> None:
    found = code_faults(stages(), stage, method, source)
    if stage == "prepare":  # declared for the sources that need them
        found = [one for one in found if "declares" not in one]
    assert found == []


def test_the_fingerprint_of_training_names_what_training_imports() -> None:
    loaded = set().union(*(imported(stages(), "train", method) for method in METHODS))
    assert [path for path in declared(stages(), "training_code") if Path(path) not in loaded] == []


def test_the_fingerprint_ignores_prose_and_layout(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    texts = (
        'def f(x):\n    """Twice."""\n    return x + x\n',
        '"""A module."""\n\n# Why.\ndef f(x):\n    return (x + x)\n',
        'def f(x):\n    """Twice."""\n    return x + x + 0\n',
        'def f(x):\n    "Twice."\n    "no docstring, but no effect"\n    return x + x\n',
    )
    found = []
    for text in texts:
        path.write_text(text)
        found.append(code_sha256(path))
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_training_depends_on_the_code_and_not_on_its_prose(project: Path) -> None:
    """In a copy of the harness; the other folders of the project are links to ours."""
    Path("bench").unlink()
    for path in declared(stages(), "training_code"):
        if Path(path).exists():
            continue
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, path)
    before = fingerprint()
    harness = Path("bench/tiling.py")
    harness.write_text(harness.read_text() + "# a comment\n")
    assert fingerprint() == before
    harness.write_text(harness.read_text() + "MORE = 1\n")
    changed = set(fingerprint().splitlines()) - set(before.splitlines())
    assert [line.split()[1] for line in changed] == ["bench/tiling.py"]


def test_every_exemption_is_needed() -> None:
    gone = [path for path in NO_INPUT if Path(path) not in modules().values()]
    idle = [
        (stage, pattern)
        for stage, pattern in EXEMPT
        if not any(
            path.match(pattern)
            for source in (SOURCES if stage == "prepare" else ("",))
            for path in imported(stages(), stage, source=source)
        )
    ]
    assert (gone, idle) == ([], [])


def test_every_stage_is_a_case() -> None:
    covered = {stage for stage, _, _ in CASES}
    assert stages().keys() == covered | {"training_code"}


def test_what_only_some_sources_need_is_needed_by_one() -> None:
    idle = [set(code_faults(stages(), "prepare", source=source)) for source in SOURCES]
    assert set.intersection(*idle) == set()


def named_files(paths: Iterable[Path]) -> set[str]:
    """Suites and tables among the strings of modules; a suite's bare name counts beside a string
    with its folder."""
    suites = {path.stem for path in (ROOT / "suites").glob("*.yaml")}
    tables = {path.name for path in (ROOT / "bench").glob("*.csv")}
    found = set()
    for strings in map(constants, paths):
        found |= {f"bench/{table}" for table in strings & tables}
        if any(string.startswith("suites/") for string in strings):
            names = {string.removeprefix("suites/").removesuffix(".yaml") for string in strings}
            found |= {f"suites/{name}.yaml" for name in names & suites}
    return found


@pytest.mark.parametrize(
    "stage", ["training_code", "evaluate", "measure", "steps", "predict", "successors", "report"]
)
def test_tables_and_suites_that_are_named_in_code(stage: str) -> None:
    dependencies = declared(stages(), stage)
    named = {path for path in dependencies if fnmatch(path, "suites/*") or path.endswith(".csv")}
    assert named_files(imported(stages(), stage)) == named


class Trace:
    """Audit hook: paths that this process opens for reading, while `to` is a set."""

    to: set[Path] | None = None

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.to is None or event != "open" or not isinstance(arguments[0], str):
            return
        path, mode, flags = arguments
        writes = set(mode) & set("wax+") if mode else flags & (os.O_WRONLY | os.O_RDWR)
        if not writes:
            self.to.add(Path(path).absolute())


@pytest.fixture(scope="module")
def trace() -> Trace:
    hook = Trace()
    sys.addaudithook(hook)
    return hook


WATCHED = ("results/*", "suites/*", "bench/*.csv", "checkpoints/*", "data/prepared/*")


@contextmanager
def opened(trace: Trace) -> Iterator[set[str]]:
    """The watched files that are opened in the block, relative to the current directory or,
    outside of it, to the root."""
    trace.to, found = set(), set[str]()
    try:
        yield found
    finally:
        paths, trace.to = trace.to, None
    for path in paths:
        root = Path.cwd() if path.is_relative_to(Path.cwd()) else ROOT
        if path.is_relative_to(root):
            found.add(str(path.relative_to(root)))
    found -= {path for path in found if not any(fnmatch(path, one) for one in WATCHED)}


def file_faults(stages: Stages, stage: str, files: set[str], **values: str) -> list[str]:
    """What a stage opened and does not declare, and which tables and records it declares and did
    not open."""
    dependencies = declared(stages, stage, **values)
    exempt = [filled(folder, **values) for name, folder in UNDECLARED_FILES if name == stage]
    exempt += outputs(stages, stage, **values)
    missing = [
        f"{stage} opens {file}, which it does not declare"
        for file in sorted(files)
        if not any(covers(one, Path(file)) for one in (*dependencies, *exempt))
    ]
    idle = [
        f"{stage} declares {one}, which it does not open"
        for one in sorted(dependencies)
        if any(fnmatch(one, pattern) for pattern in WATCHED)
        and not one.startswith("checkpoints")
        and not any(covers(one, Path(file)) for file in files)
    ]
    return missing + idle


@pytest.fixture
def one_run(project: Path) -> Path:
    """A project with one run, and the records that no stage of it makes."""
    suite = tiny_suite() | {"machine": "cpu-2-cores"}
    for table in ("models", "runs"):
        suite[table] = {"colour": suite[table]["colour"]}
    write_suite(project, suite)
    shutil.copytree(ROOT / "results/card", "results/card")
    shutil.copytree(ROOT / "results/fast", "results/fast")
    shutil.copytree(ROOT / "results/estimates", "results/estimates")
    curve = record.Record("sub_batch", "cpu-2-cores", {}, {"definition": "", "rows": []}, {})
    record.write(record.RESULTS / "sub_batch/cpu-2-cores.json", curve)
    for name in ("predict.json", "successors.json"):
        shutil.copy(ROOT / "results" / name, "results")
    shutil.copytree(ROOT / "results/earthcover/measure", "results/tiny/measure")
    return project


ARGUMENTS: dict[str, dict[str, Any]] = {
    "train": {"model": "colour"},
    "evaluate": {"run": [], "missing": True},
    "steps": {"predicted": False},
    "report": {"suite": Path("params.yaml"), "open": False},
}


def test_files(one_run: Path, trace: Trace) -> None:
    published.cache_clear()  # another test of this process may have read the file
    values = {
        "suite": "tiny",
        "machine": "cpu-2-cores",
        "item.dataset": "tiny",
        "item.start": "nothing",
        "item.method": "baselines/generic",
        "key": "colour",
    }
    found = {}
    for stage, arguments in ARGUMENTS.items():
        name = stages()[stage]["cmd"].split()[2]
        module = importlib.import_module(f"{name}.__main__" if stage == "report" else name)
        with opened(trace) as files:
            module.work(argparse.Namespace(**arguments))
        found[stage] = files
        assert file_faults(stages(), stage, files, **values) == []
    old = {**stages(), "report": {"deps": set(stages()["report"]["deps"]) - {"results/fast"}}}
    assert file_faults(old, "report", found["report"], **values) == [
        "report opens results/fast/cpu-2-cores.json, which it does not declare"
    ]


def test_faults_that_there_were() -> None:
    """Before a method was declared as a folder, two of its files trained U-Net again, and one
    module was missing."""
    old = {
        "training_code": stages()["training_code"],
        "train": {
            "cmd": "python -m bench.pipeline.train ${key}",
            "deps": [
                "checkpoints/training_code.txt",
                "${item.method}",
                "glnet/fast/composed_convolution.py",
                "baselines/cascadepsp/damage.py",
            ],
        },
        "steps": {
            "cmd": "python -m bench.pipeline.measure_training",
            "deps": [
                *(one for one in stages()["steps"]["deps"] if one != "bench/memory"),
                *(
                    f"bench/memory/{path.name}"
                    for path in (ROOT / "bench/memory").glob("*.py")
                    if path.name != "gpu_overhead.py"
                ),
            ],
        },
    }
    assert code_faults(old, "train", "baselines/generic") == [
        "train declares baselines/cascadepsp/damage.py, which it does not import",
        "train declares glnet/fast/composed_convolution.py, which it does not import",
    ]
    assert "steps imports bench/memory/gpu_overhead.py, which it does not declare" in code_faults(
        old, "steps"
    )
