"""Writes what README and docs show of the code and of the committed records, between markers.

    python docs/generate.py      # after a change of imports or records

`tests/test_readme.py` fails where a page and its sources differ.
"""

import ast
import csv
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
TOP = ("glnet", "baselines", "reference", "bench", "data")
MIB = 2**20


# Records


def values(path: str) -> Any:
    """What a record under results/ found."""
    return json.loads((ROOT / "results" / path).read_text())["values"]


def names(folder: str) -> list[str]:
    """The runs or models that have a record in a folder under results/."""
    return sorted(path.stem for path in (ROOT / "results" / folder).glob("*.json"))


def class_ious(found: Any, split: str = "test") -> list[float]:
    """IoU of each class in the sum of a split's confusion matrices; unlabelled pixels, the last
    row, are left out."""
    pixels = np.sum(list(found["splits"][split].values()), axis=0)[:-1]
    both = np.diagonal(pixels)
    union = pixels.sum(0) + pixels.sum(1) - both
    return list(both[union > 0] / union[union > 0])


def miou(suite: str, run: str) -> float:
    """Mean IoU on the test split, in percent."""
    return 100 * mean(class_ious(values(f"{suite}/evaluate/{run}.json")))


def measured(suite: str, machine: str, run: str) -> dict[str, float]:
    """mIoU in percent, memory in MiB and latency in ms of one run."""
    found = values(f"{suite}/measure/{machine}/{run}.json")
    memory = {name: meter.get("bytes") for name, meter in found["meters"].items()}
    return {
        "miou": miou(suite, run),
        "ms": 1000 * median(found["latency_s"]),
        **{name: size / MIB for name, size in memory.items() if size is not None},
    }


def uhr_rows() -> list[Any]:
    """The predicted memory of the methods after GLNet at the papers' sizes."""
    found: list[Any] = values("successors.json")["rows"]
    return found


def last_loss(suite: str, model: str) -> float:
    """Mean loss of the last tenth of the steps."""
    losses = [loss for _, _, loss in values(f"{suite}/train/{model}.json")["loss"]]
    return mean(losses[-(len(losses) // 10) :])


# Tables


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    header = list(header)
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


LESIONS = ("microaneurysm", "haemorrhage", "hard_exudate", "soft_exudate")
SMALL_TO_LARGE = {
    "microaneurysm": "microaneurysms",
    "hard_exudate": "hard exudates",
    "optic_disc": "optic disc",
}
RETINA, SATELLITE = "idrid", "dubai"
RANDOM = ("rue", "segformer-b0-patch", "upernet-convnext-patch")
"""Runs on IDRiD of networks with encoders of their own, which start from random weights."""


def named_ious(suite: str, run: str) -> dict[str, float]:
    """IoU of each class in percent, and `all`: the mean over all."""
    found = values(f"{suite}/evaluate/{run}.json")
    ious = dict(zip(found["classes"], (100 * iou for iou in class_ious(found)), strict=True))
    return {**ious, "all": mean(ious.values())}


def lesion_precisions(run: str) -> list[float]:
    """Average precision of each kind of lesion, in percent."""
    with (ROOT / "report" / RETINA / "tables/details.csv").open(newline="") as file:
        own = {row["class"]: row for row in csv.DictReader(file) if row["run"] == run}
    return [100 * float(own[name]["average_precision"]) for name in LESIONS]


def lesions() -> str:
    """Average precision of each kind of lesion and its mean: published, then each network's best
    run on IDRiD."""
    with (ROOT / "bench/published_lesions.csv").open(newline="") as file:
        printed = list(csv.DictReader(file))
    rows = [
        [
            f"{row['method']}, {row['year']}",
            *(row[name] and f"{float(row[name]):.1f}" for name in (*LESIONS, "mean")),
        ]
        for row in printed
    ]
    found = {run: lesion_precisions(run) for run in of_one_encoder()}
    best: dict[str, str] = {}
    for run in sorted(found, key=lambda run: -mean(found[run])):
        best.setdefault(run.partition("-")[0], run)
    for run in best.values():
        precisions = (*found[run], mean(found[run]))
        rows.append([f"`{run}`", *(f"{precision:.1f}" for precision in precisions)])
    return table(["AP, %", *(f"{name.replace('_', ' ')}s" for name in LESIONS), "mean"], rows)


def of_one_encoder() -> list[str]:
    """The runs on IDRiD whose networks have the suite's encoder and its start weights."""
    return [run for run in names(f"{RETINA}/evaluate") if run not in RANDOM]


def real_images() -> str:
    """Accuracy, memory and seconds of every run on IDRiD with the suite's encoder."""
    rows = []
    for run in of_one_encoder():
        ious, cost = named_ious(RETINA, run), measured(RETINA, "cpu-2-cores", run)
        shares = (f"{ious[name]:.0f}" for name in SMALL_TO_LARGE)
        means = [f"{score:.1f}" for score in (ious["all"], mean(lesion_precisions(run)))]
        costs = [f"{cost['allocated']:.0f}", f"{cost['ms'] / 1000:.1f}"]
        rows.append((-ious["all"], [run, *means, *shares, *costs]))
    header = ["run", "mIoU", "AP", *SMALL_TO_LARGE.values(), "MiB", "s"]
    return table(header, (row for _, row in sorted(rows)))


def satellite() -> str:
    """mIoU, IoU of each class, memory and seconds of every run on fold A of Dubai."""
    rows = []
    for run in names(f"{SATELLITE}/evaluate"):
        ious, cost = named_ious(SATELLITE, run), measured(SATELLITE, "cpu-2-cores", run)
        miou = ious.pop("all")
        shares = (f"{share:.0f}" for share in ious.values())
        costs = [f"{cost['allocated']:.0f}", f"{cost['ms'] / 1000:.1f}"]
        label = run.removesuffix("-a")
        rows.append((-miou, [label, f"{miou:.1f}", *shares, *costs]))
    header = ["run", "mIoU", *ious, "MiB", "s"]
    return table(header, (row for _, row in sorted(rows)))


def found_by_size(run: str) -> list[float]:
    """Share of the lesions' true pixels that are found, in percent, by diameter of the lesion, over
    all four kinds; NaN where there is no lesion."""
    found = values(f"{RETINA}/evaluate/{run}.json")
    lesions = [found["classes"].index(name) for name in LESIONS]
    counts = np.sum(
        [
            np.array(scene["objects"])[lesions].sum(0)
            for splits in found["details"].values()
            for scene in splits["test"]["scenes"].values()
        ],
        axis=0,
    )
    return [100 * right / pixels if pixels else np.nan for _, pixels, right, *_ in counts]


def published_memory() -> str:
    """Predicted tensors of the methods after GLNet, beside what their papers print."""
    labels = {
        "glnet-collaborative": "GLNet, `collaborative`",
        "isdnet": "ISDNet, ResNet-18",
        "isdnet-r50": "ISDNet, ResNet-50",
        "fctl": "FCtL, `deepglobe`",
        "fctl-head": "FCtL, `inria`",
        "magnet": "MagNet",
        "magnet-fast": "MagNet-Fast",
        "rue": "RUE",
        "sgnet": "SGNet",
        "f2net": "F2Net",
        "pointrend": "PointRend",
        "cascadepsp": "CascadePSP",
    }
    sizes: dict[str, dict[tuple[int, bool], str]] = defaultdict(dict)
    for row in uhr_rows():
        key = (row["side_px"], row["done"] == "as released")
        sizes[row["run"]][key] = f"{row['device_bytes'] / MIB:.0f}"
    keys = [(side, released) for side in (2448, 5000) for released in (False, True)]
    return table(
        ["method", "2448 px", "as released", "5000 px", "as released"],
        (
            [label, *(sizes[run].get(key, "") for key in keys)]
            for run, label in labels.items()
            if run in sizes
        ),
    )


HALVES = (slice(0, 2), slice(2, 4))  # of Mosaic's classes: ground in two regions, line in two


def mosaic() -> str:
    """mIoU on Mosaic's test split: mean and standard deviation over seeds; mean IoU of both
    grounds and of both lines."""
    runs: dict[str, list[list[float]]] = defaultdict(list)
    for name in names("mosaic/evaluate"):
        ious = class_ious(values(f"mosaic/evaluate/{name}.json"))
        runs[name.split("-seed")[0]].append([100 * iou for iou in ious])
    rows = []
    for name, seeds in sorted(runs.items(), key=lambda run: -mean(map(mean, run[1]))):
        means = [mean(ious) for ious in seeds]
        spread = f" ± {stdev(means):.1f}" if len(means) > 1 else ""
        halves = [f"{mean(iou for ious in seeds for iou in ious[half]):.0f}" for half in HALVES]
        rows.append([f"`{name}`", f"{mean(means):.1f}{spread}", *halves])
    return table(["run", "mIoU, %", "IoU of ground, %", "IoU of lines, %"], rows)


# The diagram of folders


def modules() -> dict[str, Path]:
    """Every module, by name -> its file relative to the root; a package is its `__init__`."""
    paths = [path.relative_to(ROOT) for top in TOP for path in (ROOT / top).rglob("*.py")]
    return {".".join(p.with_suffix("").parts).removesuffix(".__init__"): p for p in sorted(paths)}


def folder_of(path: Path) -> str:
    """The node of a module: all of `baselines` is one, and so is all of `reference`, since a rule
    of the layout makes their imports alike."""
    alike = path.parts[0] in ("baselines", "reference")
    return path.parts[0] if alike else path.parent.as_posix()


def folder_imports() -> dict[str, set[str]]:
    """Importing folder -> imported folders, imports inside of functions included."""
    folders = {name: folder_of(path) for name, path in modules().items()}
    found: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for name, path in modules().items():
        dotted: set[str] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.Import):
                dotted |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                dotted |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        own = folders[name]
        found[own] |= {folders[other] for other in dotted & folders.keys()} - {own}
    return found


def diagram() -> str:
    """The folders and their imports as Mermaid text."""
    graph = folder_imports()
    lines = [f'  {name.replace("/", "_")}["{name}/"]' for name in sorted(graph)]
    for source, targets in sorted(graph.items()):
        joined = " & ".join(sorted(targets))
        lines += [f"  {source} --> {joined}".replace("/", "_")] if targets else []
    return "```mermaid\nflowchart TD\n" + "\n".join(lines) + "\n```\n"


GENERATED: dict[str, Callable[[], str]] = {
    "real_images": real_images,
    "lesions": lesions,
    "satellite": satellite,
    "published_memory": published_memory,
    "mosaic": mosaic,
    "diagram": diagram,
}
MARKED = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)


def updated(text: str) -> str:
    """A page with what is between its markers written anew."""
    return MARKED.sub(lambda found: found[1] + GENERATED[found[2]]() + found[3], text)


def main() -> None:
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        page.write_text(updated(page.read_text()))


if __name__ == "__main__":
    main()
