"""What the Python files of the project import, read from their source."""

import ast
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from conftest import ROOT

PACKAGES = ("baselines", "bench", "data", "glnet", "reference")


@cache
def modules() -> dict[str, Path]:
    """Every module, by name -> its file relative to the root; a package stands for its
    `__init__`."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            relative = path.relative_to(ROOT)
            name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            found[name] = relative
    return found


@cache
def tree(path: Path) -> ast.Module:
    """The syntax of a file, given relative to the root."""
    return ast.parse((ROOT / path).read_text())


@cache
def imports(path: Path) -> frozenset[str]:
    """Modules of ours that a file imports anywhere, also inside functions: the module itself of
    `from bench.memory import tracker`, the package of `from bench.parallel import parallel_map`."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return frozenset(found & modules().keys())


@cache
def constants(path: Path) -> frozenset[str]:
    """Every string in a file's code, docstrings left out."""
    prose = {
        id(node.value)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    return frozenset(
        node.value
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )


def closure(paths: Iterable[Path]) -> set[Path]:
    """The files, and every file of ours that one of them loads: imported, or named in a string
    (processes preload modules by name); with a module its parent packages."""
    found: set[Path] = set()
    todo = list(paths)
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        for name in imports(path) | constants(path) & modules().keys():
            parts = name.split(".")
            above = (".".join(parts[: i + 1]) for i in range(len(parts)))
            todo += [modules()[one] for one in above if one in modules()]
    return found


def has_code(path: Path) -> bool:
    """Whether a file holds more than a docstring."""
    return any(
        not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for node in tree(path).body
    )
