"""Bootstrap intervals against numbers worked out by hand and against all draws that there are."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from bench import metrics
from bench.report import bootstrap, findings
from bench.report.bootstrap import Difference, Sample


def sample(run: str, matrices: Any, trained: str = "", **more: Any) -> Sample:
    """Of matrices (seeds, scenes, K, K), without unlabelled pixels."""
    counted = np.array(matrices, np.int64)
    seeds, scenes, classes, _ = counted.shape
    return Sample(
        run=run,
        trained=trained or run,
        scenes=tuple("abcdefgh"[:scenes]),
        matrices=np.concatenate([counted, np.zeros((seeds, scenes, 1, classes), np.int64)], 2),
        classes=tuple("xyz"[:classes]),
        **more,
    )


EASY, HARD = [[3, 1], [0, 4]], [[1, 1], [2, 0]]
TWO = sample("two", [[EASY, HARD]])


def test_two_scenes_by_hand() -> None:
    """Either scene twice in a quarter of the draws each, both once in the other half."""
    easy, hard, both = (3 / 4 + 4 / 5) / 2, (1 / 4 + 0) / 2, (4 / 8 + 4 / 8) / 2
    drawn, times = np.unique(bootstrap.mious(TWO).round(12), return_counts=True)
    assert drawn == pytest.approx([hard, both, easy])
    assert times / bootstrap.DRAWS == pytest.approx([0.25, 0.5, 0.25], abs=0.02)
    found = bootstrap.interval(TWO)
    assert (found.value, found.low, found.high) == pytest.approx((both, hard, easy))
    x = bootstrap.class_intervals(TWO)["x"]
    assert (x.value, x.low, x.high) == pytest.approx((4 / 8, 1 / 4, 3 / 4))


def test_the_draws_are_those_of_an_exhaustive_enumeration() -> None:
    """3 scenes and 2 seeds: 27 x 4 equally likely draws, each worked out by itself."""
    rng = np.random.default_rng(1)
    one = sample("one", rng.integers(0, 90, (2, 3, 3, 3)))
    every = [
        np.mean([metrics.miou(one.matrices[s][list(chosen)].sum(0), one.classes) for s in seeds])
        for chosen in product(range(3), repeat=3)
        for seeds in product(range(2), repeat=2)
    ]
    values, times = np.unique(np.round(every, 12), return_counts=True)
    drawn, drawn_times = np.unique(bootstrap.mious(one).round(12), return_counts=True)
    assert drawn == pytest.approx(values)
    shares, expected = drawn_times / bootstrap.DRAWS, times / len(every)
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / bootstrap.DRAWS)
    found = bootstrap.interval(one)
    assert found.low == pytest.approx(np.quantile(every, 0.025), abs=0.005)
    assert found.high == pytest.approx(np.quantile(every, 0.975), abs=0.005)
    assert found.value == pytest.approx(
        np.mean([metrics.miou(m.sum(0), "xyz") for m in one.matrices])
    )


def test_a_small_gain_on_every_scene_is_significant_although_scenes_differ_far_more() -> None:
    shares = [10, 30, 50, 70, 90]
    worse = sample("worse", [[[[s, 100 - s], [100 - s, s]] for s in shares]])
    better = sample("better", [[[[s + 2, 98 - s], [98 - s, s + 2]] for s in shares]])
    assert bootstrap.interval(worse).high > bootstrap.interval(better).low
    found = bootstrap.difference(better, worse)
    assert 0 < found.low < found.value < found.high
    assert (found.verdict, found.significant) == ("beats", True)
    back = bootstrap.difference(worse, better)
    assert back.verdict == "is beaten by"
    assert (back.value, back.low, back.high) == pytest.approx(
        (-found.value, -found.high, -found.low)
    )


def test_a_gain_on_some_scenes_and_a_loss_on_others_is_not_significant() -> None:
    found = bootstrap.difference(
        sample("a", [[EASY, HARD, EASY]]), sample("b", [[HARD, EASY, EASY]])
    )
    assert found.low < 0 < found.high
    assert (found.verdict, found.significant) == ("no significant difference", False)
    assert not Difference("a", "b", 0.1, float("nan"), float("nan")).significant


def test_seeds_are_drawn_alike_only_where_the_networks_are_the_same() -> None:
    one = sample("one", [[EASY, EASY], [HARD, HARD]], trained="net")
    same = bootstrap.difference(one, replace(one, run="same"))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    other = bootstrap.difference(one, replace(one, run="other", trained="net2"))
    assert other.value == 0
    assert other.low < 0 < other.high


def test_every_pair_is_what_it_is_alone_and_other_scenes_make_no_pair() -> None:
    swapped = sample("swapped", [[HARD, EASY]])
    elsewhere = replace(TWO, run="elsewhere", scenes=("q", "r"))
    found = bootstrap.differences([TWO, elsewhere, swapped])
    assert found == [bootstrap.difference(TWO, swapped)]
    with pytest.raises(ValueError, match="two and elsewhere were evaluated on different scenes"):
        bootstrap.difference(TWO, elsewhere)
    with pytest.raises(ValueError, match="both: its seeds were evaluated on different scenes"):
        bootstrap.joined("both", "net", [TWO, elsewhere])


def test_ignored_classes_and_other_definitions() -> None:
    absent = sample("absent", [[[[5, 0, 0], [0, 3, 0], [0, 2, 0]]] * 2], ignored=("z",))
    assert list(bootstrap.class_intervals(absent)) == ["x", "y"]
    assert bootstrap.interval(absent).value == 1
    official = {"unlabelled": "false-positives", "absent": "zero"}
    (counted,) = metrics.mious(absent.matrices.sum(1), absent.classes, absent.ignored, **official)
    assert counted == pytest.approx((1 + 3 / 5) / 2)
    # A class that one scene alone has: draws without that scene say nothing of it.
    once = sample("once", [[[[5, 0], [0, 0]], [[4, 1], [1, 4]]]])
    y = bootstrap.class_intervals(once)["y"]
    assert (y.value, y.low, y.high) == pytest.approx((4 / 6, 4 / 6, 4 / 6))


def test_a_record_with_several_seeds_is_as_the_seeds_joined() -> None:
    def values(seed: int) -> dict[str, Any]:
        scenes = {
            "b": (np.eye(3, 2, dtype=int) + seed).tolist(),
            "a": np.ones((3, 2), int).tolist(),
        }
        return {"splits": {"test": scenes}, "classes": ["x", "y"], "ignored": []}

    together = values(3) | {"other_seeds": {"5": values(5)["splits"]}}
    found = bootstrap.sample("run", "net", together)
    assert found.scenes == ("a", "b")
    alone = [bootstrap.sample("run", "net", values(seed)) for seed in (3, 5)]
    joined = bootstrap.joined("run", "net", alone)
    assert np.array_equal(found.matrices, joined.matrices)
    assert found.matrices[1, 1].tolist() == [[6, 5], [5, 6], [5, 5]]


def test_what_intervals_cannot_say_is_said() -> None:
    assert findings.limits([]) == ""
    few = findings.limits([TWO])
    assert "2 test scenes" in few
    assert "too short" in few
    assert "one seed" in few
    many = sample("many", np.ones((2, 8, 2, 2), int))
    enough = replace(
        many, scenes=tuple(map(str, range(16))), matrices=np.repeat(many.matrices, 2, axis=1)
    )
    said = findings.limits([enough])
    assert "as many seeds" in said
    assert "too short" not in said
    assert "one seed" not in said
