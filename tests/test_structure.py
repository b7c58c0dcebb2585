"""Who imports whom: eight rules about folders, read from the source, imports inside functions
included."""

import ast
import sys
from collections import Counter
from graphlib import TopologicalSorter
from pathlib import Path

import pytest
from conftest import ROOT
from source import closure, has_code, imports, modules, tree

METHODS = sorted(path.parent for path in modules().values() if path.name == "spec.py")
CONTRACT = {f"bench/{name}.py" for name in ("config", "method", "tiling", "optim", "errors")}
CONTRACT |= {"bench/parallel/distributed.py"}  # a loss over the whole batch of several processes
CONTRACT |= {"bench/windows/weights.py"}  # networks made ready for inference
PARTS = Path("baselines/parts.py")
"""Parts of several networks."""
LIBRARIES = {"torch", "segmentation_models_pytorch", "timm"}

LAYERS = (
    ("bench/errors.py", "bench/files.py"),
    ("bench", "bench/parallel", "data"),
    ("glnet", "baselines", "bench/memory", "bench/streaming"),
    ("reference", "bench/report", "bench/pipeline", "bench/experiments", "bench/cluster"),
    ("bench/commands",),
    ("bench/__main__.py",),
)
"""From the lowest to the highest. A file belongs to the longest path that it is below."""

LONG = {
    "bench/tiling.py": "grids and stitching",
    "data/fetch.py": "one downloader",
}
"""Files of more than 400 lines, and what keeps each in one piece."""
MOST_LINES = 400
MOST_FILES = 15
MOST_IMPORTS = 324
"""Between modules of different folders, of `bench.errors` and `bench.files` none. The parity check
of a method takes four to eight: its four files, and those that its losses and maps come from; a
method itself takes four, images by windows on a GPU six, weights made ready two, what packs and checks
bundles of results and checkpoints eight, and what runs a suite or labels images on a cluster, with its
command, twenty-one."""


def edges() -> list[tuple[Path, Path]]:
    """(file, file that it imports), all of ours."""
    paths = modules().values()
    return [(path, modules()[name]) for path in paths for name in sorted(imports(path))]


def below(path: Path, *folders: str) -> bool:
    return any(path == Path(one) or Path(one) in path.parents for one in folders)


def method_of(path: Path) -> Path | None:
    return next((folder for folder in METHODS if folder in path.parents), None)


def said(found: list[tuple[Path, Path]]) -> list[str]:
    return [f"{one} imports {other}" for one, other in found]


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_1_a_network_can_be_lifted_out(method: Path) -> None:
    """`model.py` knows torch, smp, timm, its own `spec.py` and networks, and the parts that several
    networks have, so that one can copy it."""
    own = {path for path in closure([method / "model.py"]) if has_code(path)}
    others = {method / f"{name}.py" for name in ("training", "inference")}
    assert [path for path in own - {PARTS} if method_of(path) != method] == []
    assert own & others == set()
    assert [path for path in own if below(path, "glnet/fast")] == []
    settings = method / "spec.py"  # checked by pydantic
    assert set().union(*map(libraries, own - {settings})) <= LIBRARIES


def libraries(path: Path) -> set[str]:
    """Top-level packages that a file imports, ours and the standard library left out."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    ours = {name.split(".")[0] for name in modules()}
    return found - sys.stdlib_module_names - ours


def test_2_methods_know_the_contract_alone() -> None:
    found = [
        (one, other)
        for one, other in edges()
        if (own := method_of(one))
        and method_of(other) != own
        and str(other) not in {*CONTRACT, str(PARTS)}
    ]
    assert said(found) == []


def test_3_the_reference_is_known_to_commands_alone() -> None:
    found = [
        (one, other)
        for one, other in edges()
        if below(other, "reference") and not below(one, "reference", "bench/commands")
    ]
    assert said(found) == []


def test_4_the_harness_reaches_methods_by_name_and_nothing_imports_a_stage() -> None:
    found = [
        (one, other)
        for one, other in edges()
        if (below(one, "bench") and method_of(other))
        or (below(other, "bench/pipeline") and not below(one, "bench/pipeline"))
    ]
    assert said(found) == []


@pytest.mark.parametrize(
    ("number", "folders", "unknown"),
    [
        (5, ("bench/memory", "bench/streaming"), ("bench/pipeline", "bench/report")),
        (6, ("bench/report",), ("bench/pipeline", "bench/streaming", "bench/experiments")),
    ],
)
def test_folders_that_do_not_know_others(
    number: int, folders: tuple[str, ...], unknown: tuple[str, ...]
) -> None:
    """5: memory and streaming know no stage and no report. 6: the report reads records and data."""
    found = [(o, other) for o, other in edges() if below(o, *folders) and below(other, *unknown)]
    assert said(found) == []


def test_6_the_report_imports_no_network() -> None:
    found = [path for path in modules().values() if below(path, "bench/report")]
    assert [str(path) for path in found if "segmentation_models_pytorch" in libraries(path)] == []
    assert [str(path) for path in closure(found) if path.name == "model.py"] == []


def test_7_data_knows_three_modules_of_the_harness() -> None:
    known = {f"bench/{name}.py" for name in ("errors", "files", "tiling")}
    found = [
        (one, other)
        for one, other in edges()
        if below(one, "data") and not below(other, "data") and str(other) not in known
    ]
    assert said(found) == []


def layer(path: Path) -> int:
    places = {place: number for number, layer in enumerate(LAYERS) for place in layer}
    return places[max((one for one in places if below(path, one)), key=len)]


def test_8_no_import_goes_upward() -> None:
    assert said([(one, other) for one, other in edges() if layer(other) > layer(one)]) == []


def test_8_no_cycle() -> None:
    graph: dict[Path, set[Path]] = {path: set() for path in modules().values()}
    for one, other in edges():
        graph[one].add(other)
    TopologicalSorter(graph).prepare()  # raises CycleError with the cycle


def test_imports_between_folders_are_few() -> None:
    free = ("bench/errors.py", "bench/files.py")
    found = [
        (one, other)
        for one, other in edges()
        if one.parent != other.parent and not below(other, *free)
    ]
    assert len(found) <= MOST_IMPORTS


def test_folders_and_files_are_small() -> None:
    files = Counter(path.parent for path in modules().values() if below(path, "bench"))
    assert {str(folder): n for folder, n in files.items() if n > MOST_FILES} == {}
    lines = {str(p): len((ROOT / p).read_text().splitlines()) for p in modules().values()}
    assert {path for path, count in lines.items() if count > MOST_LINES} == LONG.keys()


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_method_is_four_files(method: Path) -> None:
    files = {path.name for path in (ROOT / method).glob("*.py")}
    assert {"spec.py", "model.py", "training.py", "inference.py"} <= files


def test_the_rules_see_imports() -> None:
    """Those at the top of a file, within functions, of a package's module and of a name."""
    assert len(METHODS) >= 7
    assert {"bench.tiling", "glnet.model", "glnet.spec"} <= imports(Path("glnet/inference.py"))
    assert "bench.errors" in imports(Path("data/dataset.py"))
    assert Path("bench/pipeline/cache.py") in closure([Path("bench/pipeline/evaluate.py")])
    assert libraries(Path("bench/tiling.py")) == {"torch"}


def test_no_program_loads_itself_for_its_workers() -> None:
    """Python warns of a module that a worker's server has loaded before it runs as the program."""
    found = {}
    for name, path in modules().items():
        for node in tree(path).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "PRELOAD":
                found[name] = ast.literal_eval(node.value)
    assert "bench.pipeline.evaluate" in found
    assert not [name for name, loaded in found.items() if name in loaded]
