"""`glnet-bench compare A B`: differences between two sets of results, as a table, CSV or JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.commands.difference import LEVEL, METERS, Accuracy, Change, Side, compare, open_side
from bench.report import style

SIDES = ("first", "second")
MAX_NAMED = 4
"""Most runs that a remark lists by name; for more it gives their number."""


def command(parser: argparse.ArgumentParser) -> None:
    """Print what differs between the results of two commits, or of two folders, run by run."""
    side = (
        "a commit as git understands it (results are read without a checkout; COMMIT:FOLDER for "
        "another folder than results), or a folder"
    )
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", nargs="?", default=".", help="the same; default: .")
    parser.add_argument("--suite", metavar="NAME", help="compare only this suite")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="all fields, as JSON")
    kind.add_argument(
        "--csv", action="store_true", help="one row per run: shares 0..1, bytes, seconds"
    )
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Print the comparison."""
    first, second = open_side(arguments.first), open_side(arguments.second)
    found = compare(first, second, arguments.suite)
    if arguments.json:
        sides = {"first": first.description, "second": second.description}
        runs = [asdict(change) for change in found]
        print(json.dumps({**sides, "runs": runs}, indent=1))
    elif arguments.csv:
        print(flat(found).to_csv(index=False, lineterminator="\n"), end="")
    else:
        print(text(first, second, found))


def flat(found: Sequence[Change]) -> pd.DataFrame:
    """One row per run: shares 0..1, bytes, seconds. Differences are second minus first, ratios second
    over first."""
    rows = [
        {
            **asdict(change),
            "status": dict(zip(SIDES, change.status, strict=True)),
            "miou": asdict(change.accuracy),
            "settings": "; ".join(_setting(k, *both) for k, both in change.settings.items()),
            "notes": "; ".join(change.notes),
        }
        for change in found
    ]
    sizes = [f"memory_{meter}_{side}_bytes" for meter in METERS for side in SIDES]
    columns = [
        *("suite", "run", "machine", "where"),
        *(f"status_{side}" for side in SIDES),
        *(f"miou_{one.name}" for one in fields(Accuracy)),
        *sizes,
        *("latency_first_s", "latency_second_s", "latency_within_spread", "settings", "notes"),
    ]
    frame = pd.json_normalize(rows, sep="_").reindex(columns=columns)
    frame = frame.astype(dict.fromkeys(sizes, "Int64"))
    return frame.rename(columns=lambda name: name.removeprefix("memory_"))


def text(first: Side, second: Side, found: Sequence[Change]) -> str:
    """Text for the terminal: a table of the runs on both sides, then remarks."""
    parts = [f"A: {first.description}\nB: {second.description}"]
    for suite in dict.fromkeys(change.suite for change in found):
        changes = [change for change in found if change.suite == suite]
        parts.append(f"\n{suite}\n")
        both = [change for change in changes if change.where == "both"]
        if both:
            rows = [_row(change, len(_machines(both)) > 1) for change in both]
            parts.append(tabulate(rows, headers="keys", disable_numparse=True))
        parts += ["", *_remarks(changes)]
    return "\n".join([*parts, "", *_legend(found)])


def _row(change: Change, name_machine: bool) -> dict[str, str]:
    accuracy, latency = change.accuracy, change.latency
    points = memory = times = style.NOTHING
    if accuracy.difference is not None:
        points = f"{100 * accuracy.difference:+.1f}"
        if accuracy.low is not None and accuracy.high is not None and accuracy.verdict != "same":
            points += f" ({100 * accuracy.low:+.1f} to {100 * accuracy.high:+.1f})"
    if change.memory:
        meter, one = next(iter(change.memory.items()))
        sizes = f"{style.size(one.second_bytes)} / {style.size(one.first_bytes)}"
        memory = f"{sizes} {meter} = {one.ratio:.3f}"
    if latency:
        medians = f"{style.duration(latency.second_s)} / {style.duration(latency.first_s)}"
        spread = " within spread" if latency.within_spread else ""
        times = f"{medians} = {latency.ratio:.2f}{spread}"
    return {
        "run": change.run + (f" on {change.machine}" if name_machine and change.machine else ""),
        "mIoU A": style.percent(accuracy.first),
        "mIoU B": style.percent(accuracy.second),
        "B - A": points,
        "mIoU": accuracy.verdict or style.NOTHING,
        "memory B / A": memory,
        "latency B / A": times,
    }


def _legend(found: Sequence[Change]) -> list[str]:
    """Explanations of the columns that the table has."""
    lines = []
    if any(change.accuracy.low is not None for change in found):
        lines.append(
            f"mIoU on test, B minus A in points, and its {LEVEL} interval "
            "over the same bootstrap samples of scenes; better\nor worse only if it excludes 0. It "
            "does not include the variation between trainings."
        )
    if any(change.latency for change in found):
        lines.append(
            "Latency: medians; within spread if the repetitions of both overlap. Load on\nthe "
            "machine is not recorded. Measured on: " + ", ".join(_machines(found)) + "."
        )
    return lines


def _machines(found: Sequence[Change]) -> list[str]:
    return sorted({change.machine for change in found if change.machine})


def _remarks(changes: Sequence[Change]) -> list[str]:
    """Status, settings, runs on one side, and reasons why something cannot be compared."""
    lines = []
    for side, name in zip(SIDES, "AB", strict=True):
        if only := [change.run for change in changes if change.where == side]:
            lines.append(f"only in {name}: {', '.join(only)}")
    both = [change for change in changes if change.where == "both"]
    for change in both:
        if change.status[0] != change.status[1]:
            lines.append(f"status of {change.run}: {change.status[0]} -> {change.status[1]}")
    grouped: dict[str, dict[str, None]] = {}
    for change in changes:
        changed = [_setting(key, *values) for key, values in change.settings.items()]
        for remark in [*changed, *change.notes]:
            grouped.setdefault(remark, {})[change.run] = None
    runs = len({change.run for change in both})
    for remark, names in grouped.items():
        listed = ", ".join(names) if len(names) <= MAX_NAMED else f"{len(names)} of {runs} runs"
        lines.append(f"{remark} ({listed})")
    return lines


def _setting(key: str, first: Any, second: Any) -> str:
    return f"{key}: {_value(first)} -> {_value(second)}"


def _value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
