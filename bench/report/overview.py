"""The page above all suites. Every suite leaves a summary beside its pages, so that the page knows
those that were reported before, whichever is active now."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.config import Suite
from bench.files import write_text
from bench.report.chapter import Chapter
from bench.report.site import Link, Site
from bench.report.words import Finding

SUMMARY = "summary.json"
FINDINGS = 2
"""Of each data set; the first ones say most."""


@dataclass(frozen=True)
class Summary:
    """What the page shows of one suite."""

    name: str
    machine: str
    datasets: tuple[str, ...]
    runs: int
    figure: str
    """File in its folder figures/."""
    description: str
    """Of the figure."""
    findings: tuple[Finding, ...]


def summarise(path: Path, suite: Suite, chapters: Sequence[Chapter]) -> None:
    """Write the suite's summary; several seeds are its headline where it has them."""
    seeded = next((one for one in chapters if one.seeded), None)
    findings = [finding for one in chapters for finding in one.findings[:FINDINGS]]
    if seeded:
        findings = [Finding("Several seeds", sentence) for sentence in seeded.mechanism[:FINDINGS]]
    summary = Summary(
        name=suite.suite,
        machine=suite.machine,
        datasets=tuple(one.name for one in chapters),
        runs=len(suite.runs),
        figure=f"seeds_{seeded.name}.svg" if seeded else f"figure1a_{chapters[0].name}.svg",
        description="mIoU of several seeds"
        if seeded
        else "mIoU against peak memory, a point a run",
        findings=tuple(findings),
    )
    write_text(path, json.dumps(asdict(summary), indent=1, sort_keys=True) + "\n")


def write(folder: Path) -> Path:
    """Write index.html of the site from the summaries that there are."""
    summaries = [_read(path) for path in sorted(folder.glob(f"*/{SUMMARY}"))]
    links = tuple(Link(one.name, f"{one.name}/index.html") for one in summaries)
    return Site(folder, None, links).write("index.html", "overview.html.j2", suites=summaries)


def _read(path: Path) -> Summary:
    values = json.loads(path.read_text())
    findings = tuple(Finding(**finding) for finding in values.pop("findings"))
    return Summary(**values, findings=findings)
