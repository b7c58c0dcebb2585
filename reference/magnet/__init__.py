"""Whether this MagNet computes what the released code computes: `python -m reference.__main__
FOLDER`.

Whole images in `golden_*.json` with `golden_*.npz`; networks alone, and steps of the refinement's
training, in `golden_modules.*`. What is compared is what `baselines.magnet.inference.progress` makes on its
way, with every oddity of the released code (`official`); images are resized as OpenCV does. Which
of equally worthy pixels are replaced is a matter of topk's internals, and is taken from the golden
data once it is clear that only such pixels differ."""

from pathlib import Path

from bench.errors import UserError
from reference.check import FLOATS, Check
from reference.golden import has_setting, tables

MODULES = "golden_modules.json"


def fits(folder: Path) -> bool:
    """Whether a folder's golden data is of MagNet: its cases alone have scales, its modules alone a
    refinement."""
    modules = tables(folder, MODULES).values()
    return has_setting(folder, ("scales_wh",)) or any("ref_logits" in one for one in modules)


def compare(folder: Path) -> list[Check]:
    """All comparisons of all cases of a folder, in both precisions.

    Raises:
        UserError: there are none, or a file is not what it should be.
    """
    from bench import cli
    from reference.magnet.evaluation import check_case
    from reference.magnet.modules import check_modules

    found = tables(folder, "golden_*.json")
    if not found:
        raise UserError(f"{folder} has no golden_*.json.")
    bar = cli.progress(len(found) * len(FLOATS), "parity", "comparison")
    checks: list[Check] = []
    for dtype in FLOATS:
        for path, golden in found.items():
            check = check_modules if path.name == MODULES else check_case
            checks += check(path, golden, dtype)
            bar.update()
    bar.close()
    return checks
