"""Whether this ISDNet computes what the released code computes: `python -m reference.__main__
FOLDER`.

Evaluation cases in `golden_*.json` with `golden_*.npz`, training steps in `train_*.json`. What is
compared is what the strategy and the losses of `isdnet` compute on their way, read off by hooks,
with every oddity of the released code (`official`)."""

from pathlib import Path

from bench.errors import UserError
from reference.check import FLOATS, Check
from reference.golden import has_setting, tables


def fits(folder: Path) -> bool:
    """Whether a folder's golden data is of ISDNet: its cases alone have a depth."""
    return has_setting(folder, ("depth",))


def compare(folder: Path) -> list[Check]:
    """All comparisons of all cases of a folder, in both precisions.

    Raises:
        UserError: there are none, or a file is not what it should be.
    """
    from bench import cli
    from reference.isdnet.evaluation import check_case
    from reference.isdnet.training import MODES, check_step

    cases, steps = tables(folder, "golden_*.json"), tables(folder, "train_*.json")
    if not cases and not steps:
        raise UserError(f"{folder} has neither golden_*.json nor train_*.json.")
    modes = [(path, step, mode) for path, step in steps.items() for mode in MODES if mode in step]
    bar = cli.progress((len(cases) + len(modes)) * len(FLOATS), "parity", "comparison")
    checks: list[Check] = []
    for dtype in FLOATS:
        for path, case in cases.items():
            checks += check_case(path, case, dtype)
            bar.update()
        for path, step, mode in modes:
            checks += check_step(path, step, mode, dtype)
            bar.update()
    bar.close()
    return checks
