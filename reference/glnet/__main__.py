"""`python -m reference.glnet FOLDER`: a table of comparisons; status 1 if one does not hold."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from bench import cli

if TYPE_CHECKING:
    from reference.glnet.cases import Check


def command(parser: argparse.ArgumentParser) -> None:
    """Compare this GLNet with what the official code gave."""
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="golden_*.json, train_*.json")
    parser.add_argument("--json", action="store_true", help="every comparison, for machines")
    parser.add_argument("--threads", type=int, default=2, help="of torch (2)")
    parser.set_defaults(work=work)


def work(arguments: argparse.Namespace) -> None:
    """Compare, print, and end with status 1 if a comparison does not hold."""
    import torch  # takes seconds, which --help need not wait for

    torch.set_num_threads(arguments.threads)
    checks = compare(arguments.folder)
    if arguments.json:
        print(json.dumps([asdict(check) | {"ok": check.ok} for check in checks], indent=1))
    else:
        print(table(checks))
    failed = sum(not check.ok for check in checks)
    if failed:
        sys.exit(f"error: {failed} of {len(checks)} comparisons do not hold.")


def compare(folder: Path) -> "list[Check]":
    """All comparisons of all cases of a folder, in both precisions."""
    from reference.glnet.cases import FLOAT, read_cases
    from reference.glnet.evaluation import MODES, check_case
    from reference.glnet.training import check_step

    cases, steps = read_cases(folder)
    todo = [
        (case, mode, dtype)
        for case in cases
        for mode in MODES
        if str(mode) in case.golden["modes"]
        for dtype in FLOAT
    ]
    bar = cli.progress(len(todo) + len(steps) * len(FLOAT), "parity", "comparison")
    checks: list[Check] = []
    for case, mode, dtype in todo:
        checks += check_case(case, mode, dtype)
        bar.update()
    for step in steps:
        for dtype in FLOAT:
            checks += check_step(step, dtype)
            bar.update()
    bar.close()
    return checks


def table(checks: "list[Check]") -> str:
    """One line a case, mode and precision, with what comes nearest to its tolerance; then what
    fails."""
    lines = [
        f"{'case':<8} {'mode':>4} {'precision':<9} {'compared':>8} {'failed':>6}  "
        "largest difference, in units of its tolerance"
    ]
    for key in dict.fromkeys((check.case, check.mode, check.dtype) for check in checks):
        own = [check for check in checks if (check.case, check.mode, check.dtype) == key]
        worst = max(own, key=_share)
        case, mode, dtype = key
        failed = sum(not check.ok for check in own)
        lines.append(
            f"{case:<8} {mode:>4} {dtype:<9} {len(own):>8} {failed:>6}  "
            f"{_share(worst):.2f} {worst.quantity}"
        )
    lines += [
        f"FAILED {check.case} mode {check.mode} {check.dtype}: {check.quantity} differs by "
        f"{check.difference:.3g} where {check.tolerance:.3g} is allowed"
        for check in checks
        if not check.ok
    ]
    return "\n".join(lines)


def _share(check: "Check") -> float:
    if check.tolerance:
        return check.difference / check.tolerance
    return float("inf") if check.difference else 0.0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m reference.glnet", description=command.__doc__)
    command(parser)

    def begin() -> None:
        """Do what the command line says."""
        arguments = parser.parse_args()
        arguments.work(arguments)

    cli.report_errors(begin)
