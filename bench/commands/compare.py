"""`glnet-bench compare A B`: differences between two sides, as a table, CSV or JSON."""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd
from tabulate import tabulate

from bench.commands.difference import METERS, Change, compare
from bench.commands.side import Side, open_side
from bench.report import bootstrap, style

NAMED = 4
"""Runs that a remark lists; of more it gives the number."""


def command(parser: argparse.ArgumentParser) -> None:
    """Print what differs between the results of two commits, or of two folders, run by run."""
    side = (
        "a commit as git understands it (its results are read from git, nothing is checked out; "
        "COMMIT:FOLDER for those of another folder than results), or a folder"
    )
    parser.add_argument("first", metavar="A", help=side)
    parser.add_argument("second", metavar="B", nargs="?", default=".", help="the same; default: .")
    parser.add_argument("--suite", metavar="NAME", help="compare this suite alone")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--json", action="store_true", help="all fields, as JSON")
    kind.add_argument("--csv", action="store_true", help="one line a run, raw: shares, bytes, s")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Print the comparison."""
    first, second = open_side(arguments.first), open_side(arguments.second)
    found = compare(first, second, arguments.suite)
    if arguments.json:
        sides = {"first": first.what, "second": second.what}
        runs = [asdict(change) for change in found]
        print(json.dumps({**sides, "runs": runs}, indent=1))
    elif arguments.csv:
        print(flat(found).to_csv(index=False, lineterminator="\n"), end="")
    else:
        print(text(first, second, found))


def flat(found: Sequence[Change]) -> pd.DataFrame:
    """One line a run: shares 0..1, bytes, seconds; differences are second minus first, ratios
    second over first."""
    rows: list[dict[str, Any]] = []
    for change in found:
        row: dict[str, Any] = {
            "suite": change.suite,
            "run": change.run,
            "machine": change.machine,
            "where": change.where,
            "status_first": change.status[0],
            "status_second": change.status[1],
            **{f"miou_{name}": value for name, value in asdict(change.accuracy).items()},
        }
        for meter in METERS:
            one = change.memory.get(meter)
            row |= {
                f"{meter}_first_bytes": one and one.first_bytes,
                f"{meter}_second_bytes": one and one.second_bytes,
            }
        row |= {
            "latency_first_s": change.latency and change.latency.first_s,
            "latency_second_s": change.latency and change.latency.second_s,
            "latency_within_spread": change.latency and change.latency.within_spread,
            "settings": "; ".join(_setting(k, *both) for k, both in change.settings.items()),
            "notes": "; ".join(change.notes),
        }
        rows.append(row)
    frame = pd.DataFrame(rows)
    sizes = [name for name in frame.columns if name.endswith("_bytes")]
    return frame.astype(dict.fromkeys(sizes, "Int64"))


def text(first: Side, second: Side, found: Sequence[Change]) -> str:
    """For the terminal: a table of the runs on both sides, then remarks."""
    parts = [f"A: {first.what}\nB: {second.what}"]
    for suite in dict.fromkeys(change.suite for change in found):
        own = [change for change in found if change.suite == suite]
        parts.append(f"\n{suite}\n")
        both = [change for change in own if change.where == "both"]
        if both:
            rows = [_row(change, len(_machines(both)) > 1) for change in both]
            parts.append(tabulate(rows, headers="keys", disable_numparse=True))
        parts += ["", *_remarks(own)]
    return "\n".join([*parts, "", *_legend(found)])


def _row(change: Change, name_machine: bool) -> dict[str, str]:
    accuracy, latency = change.accuracy, change.latency
    meter = next(iter(change.memory), None)
    row = {
        "run": change.run + (f" on {change.machine}" if name_machine and change.machine else ""),
        "mIoU A": style.percent(accuracy.first),
        "mIoU B": style.percent(accuracy.second),
        "B - A": style.NOTHING,
        "mIoU": accuracy.verdict or style.NOTHING,
        "memory B / A": style.NOTHING,
        "latency B / A": style.NOTHING,
    }
    if accuracy.difference is not None:
        row["B - A"] = f"{100 * accuracy.difference:+.1f}"
        if accuracy.low is not None and accuracy.high is not None and accuracy.verdict != "same":
            row["B - A"] += f" ({100 * accuracy.low:+.1f} to {100 * accuracy.high:+.1f})"
    if meter:
        memory = change.memory[meter]
        sizes = f"{style.size(memory.second_bytes)} / {style.size(memory.first_bytes)}"
        row["memory B / A"] = f"{sizes} {meter} = {memory.ratio:.3f}"
    if latency:
        times = f"{style.duration(latency.second_s)} / {style.duration(latency.first_s)}"
        spread = " within spread" if latency.within_spread else ""
        row["latency B / A"] = f"{times} = {latency.ratio:.2f}{spread}"
    return row


def _legend(found: Sequence[Change]) -> list[str]:
    """Explanations of the columns that the table has."""
    said = []
    if any(change.accuracy.low is not None for change in found):
        said.append(
            f"mIoU on test, B minus A in points, and its {100 * bootstrap.LEVEL:.0f} % interval "
            "over the same draws of scenes; better\nor worse only if it excludes 0. It does not "
            "include the variation between trainings."
        )
    if any(change.latency for change in found):
        said.append(
            "Latency: medians; within spread if the repetitions of both overlap. They do not show "
            "how busy\nthe machine was. Measured on: " + ", ".join(_machines(found)) + "."
        )
    return said


def _machines(found: Sequence[Change]) -> list[str]:
    return sorted({change.machine for change in found if change.machine})


def _remarks(own: Sequence[Change]) -> list[str]:
    """Status, settings, runs on one side, and reasons why something cannot be compared."""
    said = []
    for side, name in (("first", "A"), ("second", "B")):
        only = [change.run for change in own if change.where == side]
        if only:
            said.append(f"only in {name}: {', '.join(only)}")
    for change in own:
        if change.where == "both" and change.status[0] != change.status[1]:
            said.append(f"status of {change.run}: {change.status[0]} -> {change.status[1]}")
    grouped: dict[str, list[str]] = {}
    for change in own:
        for key, both in change.settings.items():
            grouped.setdefault(_setting(key, *both), []).append(change.run)
        for note in change.notes:
            grouped.setdefault(note, []).append(change.run)
    runs = len({change.run for change in own if change.where == "both"})
    for what, names in grouped.items():
        whose = list(dict.fromkeys(names))
        listed = ", ".join(whose) if len(whose) <= NAMED else f"{len(whose)} of {runs} runs"
        said.append(f"{what} ({listed})")
    return said


def _setting(key: str, first: Any, second: Any) -> str:
    return f"{key}: {_value(first)} -> {_value(second)}"


def _value(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
