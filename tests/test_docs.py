"""The documents and files around the code are true: links, commands, the lock, the container."""

import argparse
import importlib
import json
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from conftest import ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML
from setuptools import find_packages

from bench.__main__ import COMMANDS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def read_yaml(path: Path) -> dict[str, object]:
    return YAML(typ="safe").load(path.read_text())  # type: ignore[no-any-return]


# The lock


def lock_lines() -> dict[str, str]:
    """Package -> its entry, continuation lines joined."""
    text = (ROOT / "requirements.lock").read_text().replace("\\\n", " ")
    return {re.split(r"[=\[ ]", line)[0]: line for line in text.splitlines() if line}


def test_every_locked_package_has_one_version_and_hashes() -> None:
    for name, line in lock_lines().items():
        assert re.match(r"[a-z0-9.-]+(\[[a-z]+\])?==[\w.+]+", line), name
        assert " --hash=sha256:" in line, name


def test_the_lock_has_no_index_address() -> None:
    text = (ROOT / "requirements.lock").read_text()
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_every_dependency_is_locked_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = lock_lines()
    for text in chain(project["dependencies"], *project["optional-dependencies"].values()):
        requirement = Requirement(text)
        version = re.search(r"==([\w.+]+)", lines[canonicalize_name(requirement.name)])
        assert version, text
        assert requirement.specifier.contains(version.group(1)), text


def test_every_folder_with_code_is_an_installed_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    assert not settings["find"]["namespaces"]
    installed = find_packages(str(ROOT), include=settings["find"]["include"])
    tops = ("baselines", "bench", "data", "glnet", "reference")
    folders = {path.parent for top in tops for path in (ROOT / top).rglob("*.py")}
    assert sorted(installed) == sorted(name_of(path).replace("/", ".") for path in folders)


# The container


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hadolint"), "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_installs_the_lock_on_a_base_of_one_version() -> None:
    text = (ROOT / "Dockerfile").read_text()
    bases = re.findall(r"^FROM (\S+)(?: AS (\w+))?", text, re.MULTILINE)
    assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-base-ubuntu24\.04", bases[0][0])
    assert bases[1:] == [(bases[0][1], "")]
    assert "--require-hashes --no-deps --requirement requirements.lock" in text
    assert not re.search(r"^(ARG|ENV) .*(TOKEN|KEY|PASSWORD|SECRET)", text, re.MULTILINE)


def test_the_devcontainer_builds_the_same_image() -> None:
    about = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    folder = ROOT / ".devcontainer"
    dockerfile = folder / about["build"]["dockerfile"]
    assert dockerfile.resolve() == ROOT / "Dockerfile"
    assert (folder / about["build"]["context"]).resolve() == ROOT
    assert f" AS {about['build']['target']}\n" in dockerfile.read_text()
    assert about["postCreateCommand"].startswith("make setup")


# Templates and metadata


@pytest.mark.parametrize("name", ["bug", "measurement", "method"])
def test_issue_forms_have_what_github_asks_of_them(name: str) -> None:
    form = read_yaml(ROOT / f".github/ISSUE_TEMPLATE/{name}.yml")
    assert set(form) == {"name", "description", "labels", "body"}
    body = form["body"]
    assert isinstance(body, list)
    assert len({field["id"] for field in body}) == len(body)
    for field in body:
        assert field["type"] in ("input", "textarea", "dropdown")
        assert field["attributes"]["label"]


def test_the_citation_file_agrees_with_the_project() -> None:
    cited = read_yaml(ROOT / "CITATION.cff")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # required by its schema
    assert cited["cff-version"] == "1.2.0"
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert "1905.06368" in str(cited["references"])


def test_the_changelog_has_the_known_sections() -> None:
    headings = re.findall(r"^(#+) (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[:2] == [("#", "Changelog"), ("##", "Unreleased")]
    known = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for level, text in headings[2:]:
        assert text in known or re.fullmatch(r"\d{4}-\d\d-\d\d", text), (level, text)


# Links and commands


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_to_a_file_in_git(page: Path) -> None:
    done = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    tracked = {(ROOT / line).resolve() for line in done.stdout.splitlines()}
    tracked |= {parent for path in tracked for parent in path.parents}
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[\w-]+)?\)", page.read_text()):
        assert (page.parent / target).resolve() in tracked, target


def test_the_reading_order_is_the_core_and_as_long_as_it_says() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    section = text.split("## Reading order")[1].split("\n## ")[0]
    paths = [ROOT / name for name in re.findall(r"`([\w/]+\.py)`", section)]
    assert len(paths) >= 12
    lines = sum(len(path.read_text().splitlines()) for path in paths)
    stated = re.search(r"about ([\d,]+) lines", section)
    assert stated
    assert lines == pytest.approx(int(stated.group(1).replace(",", "")), rel=0.05)


def named_modules() -> list[str]:
    text = "\n".join(page.read_text() for page in PAGES)
    return sorted(set(re.findall(r"python -m\s+((?:bench|reference|data)[\w.]*)", text)))


@pytest.mark.parametrize("name", named_modules())
def test_a_module_that_is_run_on_a_page_is_a_command(name: str) -> None:
    path = ROOT.joinpath(*name.split("."))
    main = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert '__name__ == "__main__"' in main.read_text()


def test_every_subcommand_that_pages_name_exists_and_has_its_options() -> None:
    """An option counts as the subcommand's if its help has it."""
    text = "\n".join(page.read_text() for page in PAGES)
    calls = re.findall(r"^ +glnet-bench ([\w-]+)([^\n#]*)", text, re.MULTILINE)
    named = set(re.findall(r"glnet-bench ([a-z][\w-]+)", text)) - {"bench"}
    assert named <= set(COMMANDS)
    assert len(calls) >= 10
    parsers = {name: help_of(name, *COMMANDS[name]) for name in {name for name, _ in calls}}
    for name, rest in calls:
        for option in re.findall(r" (--[\w-]+)", rest):
            assert option in parsers[name], (name, option)


def help_of(name: str, module: str, function: str) -> str:
    parser = argparse.ArgumentParser(prog=name)
    getattr(importlib.import_module(module), function)(parser)
    return parser.format_help()


def test_every_suite_is_described() -> None:
    text = (ROOT / "docs/suites.md").read_text()
    for path in (ROOT / "suites").glob("*.yaml"):
        assert f"`{path.stem}`" in text, path.stem


def test_every_path_in_code_marks_exists() -> None:
    """Paths below a folder of the project, as pages write them between back ticks."""
    tops = "bench|data|docs|glnet|baselines|reference|suites|tests|results|report"
    for page in PAGES:
        for path in re.findall(rf"`((?:{tops})/[\w./-]+)`", page.read_text()):
            if not path.startswith(
                ("data/raw", "data/prepared", "report/SUITE", "results/fast/MACHINE")
            ):
                assert (ROOT / path).exists(), (page.name, path)
