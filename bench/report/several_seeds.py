"""Several seeds of one setting, beside the limits that a synthetic data set states."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial

from bench.report import figures, style
from bench.report.evaluations import ONE_VIEW, Group
from bench.report.load_records import Entry
from bench.report.section import Image, Section, table

CHANCE = 0.02
"""mIoU by which two trainings of one model may well differ."""
ADDITIVE = (
    "This is a property of the architecture: behind the encoders GLNet is affine, without an "
    "activation in its FPNs or its aggregation, so shared features can only add to a branch's own "
    "evidence, which the aggregation does as well (docs/mechanism.md)."
)


def seeds_section(dataset: str, found: Sequence[Group], limits: Mapping[str, float]) -> Section:
    """One line a group, shares 0..1.

    Args:
        limits: mIoU 0..1 that cannot be passed, by what limits it.
    """
    sharing = {True: "yes", False: "no", None: style.NOTHING}
    rows = (
        {
            "runs": one.name,
            "strategy": one.strategy,
            "feature_sharing": sharing[None if one.strategy in ONE_VIEW else one.feature_sharing],
            "seeds": len(one.mious),
            "mean": one.mean,
            "from": one.interval[0],
            "to": one.interval[1],
            "lowest": min(one.mious),
            "highest": max(one.mious),
        }
        for one in found
    )
    name = f"seeds_{dataset}"
    names = "runs strategy feature_sharing seeds mean from to lowest highest"
    headings = {"mean": "mean mIoU %", "from": "95 % CI from"}
    caption = "Each mark is one seed; the number and the bar are the mean. "
    if limits:
        caption += (
            f"Dashed: the best possible mIoU on test under the named limit, computed from how "
            f"{dataset} is generated. "
        )
    return Section(
        name,
        "Several seeds" + (", and upper limits" if limits else ""),
        rows=table(rows, names),
        show=names,
        columns={one: (headings.get(one, one), style.percent) for one in names.split()[4:]},
        caption="Mean and range over seeds, mIoU on test.",
        figures=(
            Image(
                name,
                "mIoU of several seeds",
                f"{caption}Grey: no feature sharing; only the aggregation joins the branches.",
                partial(figures.curves.seeds, found, limits),
            ),
        )
        if found
        else (),
        findings=lambda rows: sentences(found, limits),
    )


def ceilings(entries: Iterable[Entry]) -> dict[str, float]:
    """What the data set of these runs states as limits: mIoU 0..1 by what limits it."""
    return next((dict(e.evaluation.get("ceilings", {})) for e in entries if e.evaluation), {})


def sentences(found: Sequence[Group], limits: Mapping[str, float]) -> list[str]:
    """What the groups say of GLNet's mechanism, worked out from the numbers."""
    own = [group for group in found if group.network == "glnet"]
    single = [group for group in own if group.strategy in ONE_VIEW]
    both = [group for group in own if group.strategy not in ONE_VIEW and group.feature_sharing]
    said = []
    for group in both:
        apart = [f"; {_apart(group.mean - one.mean)} {one.name}" for one in single]
        said.append(
            f"{group.name}: {style.percent(group.mean)} % mIoU, mean of {len(group.mious)} seeds"
            f"{''.join(apart)}."
        )
        passed = [name for name, limit in limits.items() if group.mean > limit]
        if passed:
            said.append(f"{group.name} passes the limit of: {', '.join(passed)}.")
    for group in both:
        for other in own:
            if other.strategy == group.strategy and not other.feature_sharing:
                gain = group.mean - other.mean
                adds = f"{style.percent(gain)} points." if gain > 0 else "nothing."
                said.append(
                    f"Without feature sharing (the aggregation alone, {other.name}) "
                    f"{group.strategy} reaches {style.percent(other.mean)} %: sharing adds {adds}"
                    + (f" {ADDITIVE}" if gain < CHANCE else "")
                )
    return said


def _apart(difference: float) -> str:
    side = "above" if difference >= 0 else "below"
    return f"{style.percent(abs(difference))} points {side}"
