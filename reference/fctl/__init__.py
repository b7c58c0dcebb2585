"""Whether this FCtL computes what the released code computes: `python -m reference.__main__ FOLDER`.

Evaluation cases in `golden_*.json` with `golden_*.npz`, of the repository's head (modes 1 to 3)
and of the DeepGlobe variant of its history (mode 4); training steps in `train_*.json`. What is
compared is what the strategies and phases of `fctl` compute on their way, read off by hooks, with
every oddity of the released code (`official`). Weights that are never used are left out, for they
are never used; dropout is off, as in the golden data."""

from pathlib import Path

from bench.errors import UserError
from reference.check import Check
from reference.golden import has_setting, tables


def fits(folder: Path) -> bool:
    """Whether a folder's golden data is of FCtL: its cases alone have factors of contexts."""
    return has_setting(folder, ("context", "context10"))


def compare(folder: Path) -> list[Check]:
    """All comparisons of all cases of a folder, in float32: in float64 these networks
    take minutes a case, and say no more.

    Raises:
        UserError: there are none, or a file is not what it should be.
    """
    from bench import cli
    from reference.fctl.evaluation import check_case, modes_of
    from reference.fctl.training import check_step

    cases, steps = tables(folder, "golden_*.json"), tables(folder, "train_*.json")
    if not cases and not steps:
        raise UserError(f"{folder} has neither golden_*.json nor train_*.json.")
    todo = [(path, case, mode) for path, case in cases.items() for mode in modes_of(case)]
    bar = cli.progress(len(todo) + len(steps), "parity", "comparison")
    checks: list[Check] = []
    for path, case, mode in todo:
        checks += check_case(path, case, mode, "float32")
        bar.update()
    for path, step in steps.items():
        checks += check_step(path, step, "float32")
        bar.update()
    bar.close()
    return checks
