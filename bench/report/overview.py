"""The page above all suites. Every suite leaves a summary beside its pages, so that the page knows
all that have been built, whichever is active now."""

import json
from pathlib import Path

from bench.files import write_text
from bench.report.pages import Content
from bench.report.section import Image, Link
from bench.report.site import Site

SUMMARY = "summary.json"
FINDINGS = 2
"""Of each data set; the first ones say most."""


def write_overview(folder: Path, content: Content) -> None:
    """Write the suite's summary, and index.html from the summaries that there are.

    Args:
        folder: of the site.
    """
    first = content.parts[0]
    found = [[one.topic, one.text] for part in content.parts for one in part.findings[:FINDINGS]]
    image = Image(f"figure1a_{first.name}", "mIoU against peak memory, one point a run")
    seeded = next((part.seeded for part in content.parts if part.seeded), None)
    if seeded:  # several seeds are the headline where there are any
        texts = seeded.findings(seeded.rows)[:FINDINGS]
        found = [["Several seeds", text] for text in texts]
        image = Image(seeded.name, "mIoU of several seeds")
    summary = {
        "name": content.suite,
        "machine": content.inputs.suite.machine,
        "datasets": content.inputs.datasets,
        "runs": len(content.runs),
        "figure": f"{image.name}.svg",
        "description": image.alt,
        "findings": found,
    }
    text = json.dumps(summary, indent=1, sort_keys=True)
    write_text(folder / content.suite / SUMMARY, text + "\n")
    suites = [json.loads(path.read_text()) for path in sorted(folder.glob(f"*/{SUMMARY}"))]
    links = tuple(Link(one["name"], f"{one['name']}/index.html") for one in suites)
    Site(folder, content.suite, links).write("index.html", "overview.html.j2", suites=suites)
