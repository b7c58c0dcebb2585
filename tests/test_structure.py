"""The rooms of the house: who may import whom, read from the source."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

METHODS = ("baselines", "cascadepsp", "fctl", "glnet", "isdnet", "magnet", "pointrend")
OURS = ("bench", "data", *METHODS)
FLOOR = {"bench.errors", "bench.files"}
CONTRACT = {f"bench.{name}" for name in ("config", "method", "tiles", "learning", "distributed")}
BELOW_STAGES = CONTRACT | {
    f"bench.{name}"
    for name in (
        "cards",
        "evaluation",
        "isolated",
        "latency",
        "learnt",
        "memory",
        "meters",
        "metrics",
        "noise",
        "paper_memory",
        "parity.check",
        "parity.formulas",
        "parity.golden",
        "record",
        "spread",
        "stage",
        "standing",
        "trained",
        "validation",
    )
}
READER = {"data.dataset"}

# What each module may know besides FLOOR. A stage is what has a `__main__`.
ALLOWED: dict[str, set[str]] = {
    "bench.experiments.gpu_memory": {
        "bench.pipeline.predict_memory",
        "bench.pipeline.predict_uhr_methods",
        *BELOW_STAGES,
    },  # the same rows
    "bench.errors": set(),
    "bench.commands.compare": {
        *(f"bench.commands.{name}" for name in ("difference", "side")),
        *(f"bench.report.{name}" for name in ("bootstrap", "style")),
    },
    "bench.commands.difference": {"bench.commands.side", "bench.record", "bench.report.bootstrap"},
    "bench.commands.side": {"bench.record"},
    "bench.parallel.distributed": set(),
    "bench.files": set(),
    "bench.config": set(),
    "bench.tiling": set(),
    "bench.optim": {"bench.parallel.distributed"},
    "bench.metrics": set(),
    "bench.record": set(),
    "bench.cli": set(),
    "bench.pipeline.cache": {"bench.config", "bench.record"},
    "bench.method": {"bench.config", "bench.tiling"},
    # The ceilings that it states are those of the grid of patches that methods are given.
    "data.mosaic": {"bench.tiling", *READER},
    "data.fetch": {"bench.cli"},  # its progress bar
    "bench.pipeline.validation": {"bench.method", "bench.metrics", *READER},
    "bench.pipeline.evaluation": {
        *(f"bench.{name}" for name in ("config", "memory", "metrics", "record", "stage", "trained"))
    },
    "bench.parallel.isolated": {"bench.record"},
    "bench.streaming": {"bench.streaming.job", "bench.streaming.predict_file"},
    "bench.latency": {"bench.config", "bench.parallel.isolated", "bench.method", "bench.run"},
    "bench.memory": {
        f"bench.memory.{name}" for name in ("booking", "card", "prediction", "resident")
    },
    "bench.memory.cpu_allocator": set(),
    "bench.memory.tracker": set(),
    "bench.memory.cuda_allocator": {"bench.memory.tracker"},
    "bench.memory.nvml": set(),
    "bench.memory.timeline": {"bench.memory.tracker"},
    "bench.memory.prediction": {
        f"bench.{name}"
        for name in (
            "method",
            "memory.booking",
            "memory.caching",
            "memory.replay",
            "memory.rules_cpu",
            "memory.rules_cuda",
        )
    },
    "bench.memory.replay": {"bench.memory.tracker"},
    "bench.memory.rss": set(),
    "bench.memory.rules_cpu": {"bench.memory.tracker"},
    "bench.memory.rules_cuda": {"bench.memory.tracker"},
    "bench.commands.estimate": {"bench.report.style", *BELOW_STAGES}
    | {f"bench.memory.{name}" for name in ("booking", "prediction")},
    "bench.memory.gpu_overhead": set(),
    "bench.memory.meters": {
        "bench.memory.gpu_overhead",
        "bench.config",
        "bench.parallel.isolated",
        "bench.memory",
        "bench.memory.cpu_allocator",
        "bench.memory.tracker",
        "bench.memory.timeline",
        "bench.run",
    },
    "reference.check": {"reference.golden"},
    "reference.formulas": set(),
    "reference.golden": set(),
    "bench.memory.paper_memory": {
        "bench.config",
        "bench.memory",
        "bench.method",
        "bench.parallel.parallel_map",
    },
    "bench.parallel.parallel_map": {"bench.cli"},
    "bench.experiments.step_time": {"bench.memory.prediction", *BELOW_STAGES},
    "bench.pipeline.measure_training": {
        *BELOW_STAGES,
        *READER,
        *(f"bench.memory.{name}" for name in ("account", "booking", "prediction")),
    },
    "bench.run": {"bench.config", "bench.method", "bench.record", *READER},
}


def modules() -> list[str]:
    paths = [path.relative_to(ROOT) for package in OURS for path in (ROOT / package).rglob("*.py")]
    names = [".".join(path.with_suffix("").parts) for path in paths]
    return sorted(name.removesuffix(".__init__") for name in names)


def source(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports(module: str) -> set[str]:
    """Modules of ours that `module` imports anywhere, also inside functions."""
    known = set(modules())
    found: set[str] = set()
    for node in ast.walk(ast.parse(source(module).read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return {name for name in found if name.split(".")[0] in OURS}


def allowed(module: str) -> set[str]:
    package, _, rest = module.partition(".")
    if module in ALLOWED:
        return ALLOWED[module]
    if package in METHODS:
        own = {name for name in modules() if name.startswith(f"{package}.")}
        programs = {name for name in own if name.startswith(f"{package}.parity")}
        if module in programs:
            return own | BELOW_STAGES
        networks = {name for name in own if name.startswith(f"{package}.networks")}
        if module in networks:
            return networks
        if rest == "model":
            return {f"{package}.spec"} | networks
        return own - programs | CONTRACT
    own = {name for name in modules() if name.startswith(module.rsplit(".", 1)[0] + ".")}
    if package == "data":
        stage = "__main__" in source(module).read_text()
        data = {name for name in modules() if name.startswith("data.")}
        suite = {"bench.config", "bench.cli"} if stage or rest == "source" else set()
        return data | suite
    inside_a_folder = module.count(".") > 1
    return BELOW_STAGES | READER | (own if inside_a_folder else set())


@pytest.mark.parametrize("module", modules())
def test_who_may_know_whom(module: str) -> None:
    assert imports(module) <= allowed(module) | FLOOR


def test_the_rule_sees_imports() -> None:
    assert {"bench.tiling", "glnet.model", "glnet.spec"} <= imports("glnet.inference")
    assert "bench.errors" in imports("data.dataset")


@pytest.mark.parametrize("package", METHODS)
def test_a_method_is_four_files(package: str) -> None:
    files = {path.name for path in (ROOT / package).glob("*.py")} - {"__init__.py"}
    assert {"spec.py", "model.py", "training.py", "inference.py"} <= files


def test_models_can_be_lifted_out() -> None:
    networks = sorted((ROOT / "baselines/generic/networks").glob("*.py"))
    assert networks
    for path in (*(ROOT / package / "model.py" for package in METHODS), *networks):
        package = path.relative_to(ROOT).parts[0]
        tree = ast.parse(path.read_text())
        froms = {n.module.split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        known = {"torch", "segmentation_models_pytorch", "collections", "typing", package}
        assert {name.split(".")[0] for name in names} | froms <= known
