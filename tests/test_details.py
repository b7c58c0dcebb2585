"""Counts beyond the confusion matrix, against values worked out by hand or by a plain definition."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench import record
from bench.config import read_suite
from bench.errors import UserError
from bench.metrics import average_precision
from bench.pipeline.details import (
    BINS,
    DIAMETERS_PX,
    boundary_counts,
    object_counts,
    score_counts,
)
from bench.pipeline.evaluate import evaluate
from bench.pipeline.train import train
from bench.report import evaluations, runs
from bench.report.load_records import load_records
from bench.report.section import Image
from bench.run import open_run
from bench.tiling import importance

Edit = Callable[[Callable[[dict[str, Any]], None]], None]


def test_average_precision_of_a_perfect_and_a_blind_network() -> None:
    truth = np.array([[0, 0, 0, 1]], np.uint8)
    perfect = torch.tensor([[[9.0, 9, 9, 0]], [[0.0, 0, 0, 9]]])
    assert average_precision(score_counts(perfect, None, truth)[1]) == 1
    blind = torch.zeros(2, 1, 4)
    assert average_precision(score_counts(blind, None, truth)[1]) == 0.25  # the class's share


def test_average_precision_by_hand() -> None:
    """Scores in falling order: right, wrong, right; precision 1 and 2/3 at the two gains."""
    truth = np.array([[1, 0, 1]], np.uint8)
    scores = torch.stack([torch.zeros(1, 3), torch.tensor([[3.0, 2.0, 1.0]])])
    counts = score_counts(scores, None, truth)[1]
    assert average_precision(counts) == pytest.approx((1 + 2 / 3) / 2)


def test_a_class_without_pixels_has_no_average_precision() -> None:
    counts = score_counts(torch.zeros(2, 1, 2), None, np.zeros((1, 2), np.uint8))
    assert np.isnan(average_precision(counts[1]))


def test_unlabelled_pixels_are_not_counted() -> None:
    truth = np.array([[0, 255, 1]], np.uint8)
    counts = score_counts(torch.randn(3, 1, 3), None, truth)
    assert counts[:, 1].sum() == 3 * 2
    assert counts.shape == (3, 2, BINS)


def test_scores_of_overlapping_patches_count_as_their_mean() -> None:
    one = torch.randn(3, 4, 6)
    truth = np.zeros((4, 6), np.uint8)
    coverage = torch.tensor([1.0, 1, 2, 2, 1, 1]).expand(4, 6)
    summed = score_counts(one * coverage, coverage, truth)
    assert (summed == score_counts(one, None, truth)).all()


def test_coverage_counts_the_patches_of_a_strategy(project: Path) -> None:
    suite = read_suite()
    run = open_run(suite, "fpn-patch", {"size_px": 32, "overlap_px": 8})
    found = run.coverage(32, 80)
    assert found is not None
    starts_px = [0, 24, 48]
    assert found[0].tolist() == [sum(s <= x < s + 32 for s in starts_px) for x in range(80)]
    assert open_run(suite, "fpn-whole").coverage(32, 80) is None
    blended = run.varied(blend="gaussian").coverage(32, 80)
    assert blended is not None
    weights = importance(32, 32)[0]
    torch.testing.assert_close(blended[0, :24], weights[:24])
    torch.testing.assert_close(blended[0, 24:32], weights[24:] + weights[:8])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(60, 140), st.integers(60, 140))
def test_boundaries_are_what_erosion_leaves(seed: int, height: int, width: int) -> None:
    """A pixel is inside if all pixels of the square around it are of its class."""
    rng = np.random.default_rng(seed)
    truth = np.kron(rng.integers(0, 3, (4, 4)), np.ones((height // 4, width // 4)))
    truth = truth.astype(np.uint8)
    prediction = np.roll(truth, 3, 1)
    reach = max(1, round(0.02 * np.hypot(*truth.shape)))

    def boundary(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        padded = np.pad(mask, reach)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (2 * reach + 1,) * 2)
        inside: NDArray[np.bool_] = windows.all((-1, -2))
        return mask & ~inside

    for k, (both, either) in enumerate(boundary_counts(truth, prediction, 3)):
        true, predicted = boundary(truth == k), boundary(prediction == k)
        assert (both, either) == ((true & predicted).sum(), (true | predicted).sum())


def test_objects_are_counted_by_size() -> None:
    truth = np.zeros((64, 64), np.uint8)
    truth[2:5, 2:5] = 1  # 3.4 px wide as a circle
    truth[5, 5] = 1  # touches it at a corner
    truth[20:40, 20:40] = 1  # 22.6 px
    truth[60, 60] = 255
    prediction = np.zeros_like(truth)
    prediction[20:40, 20:30] = 1
    prediction[60, 58:62] = 1  # of these 4 px one is unlabelled, so two objects are left
    counts = object_counts(truth, prediction, 2)[1]
    assert counts[0].tolist() == [1, 10, 0, 3, 0]
    assert counts[1].tolist() == [0, 0, 0, 200, 200]  # 16.0 px, just below
    assert counts[2].tolist() == [1, 400, 200, 0, 0]
    assert counts.shape == (len(DIAMETERS_PX) + 1, 5)
    assert counts.sum(0)[[1, 3]].tolist() == [410, 203]


def test_evaluate_counts_details_where_the_suite_wants_them(
    project: Path, edit_suite: Edit
) -> None:
    """With the same labels as without: they are then taken from the scores."""
    suite = read_suite()
    names = [name for name, run in suite.runs.items() if run.model in ("glnet", "fpn")]
    assert names
    for model in {suite.runs[name].model for name in names}:
        train(suite, model)
    plain = {name: evaluate(open_run(suite, name), suite).values for name in names}
    edit_suite(lambda values: values.update(details=True))
    suite = read_suite()
    for name in names:
        found = evaluate(open_run(suite, name), suite)
        assert found.values["splits"] == plain[name]["splits"], name
        assert "details" not in plain[name]
        [by_split] = found.values["details"].values()
        for split, scenes in found.values["splits"].items():
            details = by_split[split]
            assert details["scenes"].keys() == scenes.keys()
            matrix = np.sum(list(scenes.values()), 0)[:-1]
            counts = np.array(details["scores"])
            assert (counts[:, 0].sum(-1) == matrix.sum(1)).all()
            assert (counts[:, 1].sum(-1) == matrix.sum()).all()
            objects = np.sum([one["objects"] for one in details["scenes"].values()], 0)
            assert (objects[..., 1].sum(-1) == matrix.sum(1)).all()
            assert (objects[..., 2].sum(-1) == np.diag(matrix)).all()
            assert (objects[..., 3].sum(-1) == matrix.sum(0)).all()
        record.write(record.path_of("tiny", "evaluate", name), found)
    _the_report_shows_them(names)


def _the_report_shows_them(names: list[str]) -> None:
    inputs = load_records(read_suite())
    entries = [one for one in inputs.entries if one.name in names]
    found = runs.details_section(entries).rows
    assert list(found.run.unique()) == [one.name for one in entries]
    for entry in entries:
        values = entry.evaluation
        [details] = [splits["test"] for splits in values["details"].values()]
        own = found[found.run == entry.name].set_index("class")
        for k, name in enumerate(values["classes"]):
            counts = np.array(details["scores"][k])
            assert own.average_precision[name] == pytest.approx(average_precision(counts))
            both, either = np.sum([s["boundaries"][k] for s in details["scenes"].values()], 0)
            assert own.boundary_iou[name] == pytest.approx(both / either)
    section = runs.objects_section(entries, runs.runs(entries).assign(excluded=None))
    for entry in entries:
        own = section.rows[section.rows.run == entry.name]
        matrix = np.sum(list(entry.evaluation["splits"]["test"].values()), 0)[:-1]
        [details] = [splits["test"] for splits in entry.evaluation["details"].values()]
        objects = np.sum([one["objects"] for one in details["scenes"].values()], 0)
        for line in own.itertuples():
            k = entry.evaluation["classes"].index(line[own.columns.get_loc("class") + 1])
            pixels = objects[k, line.group, 1]
            assert line.found_share == pytest.approx(objects[k, line.group, 2] / pixels)
        assert own.objects.sum() == objects[..., 0].sum()
        assert matrix.sum() == objects[..., 1].sum()
    [image] = section.figures
    assert isinstance(image, Image)
    assert image.draw
    several = section.rows.groupby("class").group.nunique() > 1
    drawn = image.draw()
    assert len(drawn.axes) == 2 * several.drop("background", errors="ignore").sum() > 0
    above, below = drawn.axes[0], drawn.axes[len(drawn.axes) // 2]
    assert "found" in above.get_title("left")
    assert "right" in below.get_title("left")
    first = section.rows[section.rows["class"] == above.get_title("left").split(":")[0]]
    found = {round(y, 6) for points in above.collections for _, y in points.get_offsets()}
    best: dict[str, str] = {}  # by strategy, of GLNet over all
    for one in sorted(entries, key=lambda one: -evaluations.accuracies(one, "test")["miou"]):
        best.setdefault(one.network if one.network == "glnet" else one.run.strategy, one.name)
    drawn_shares = first.found_share[first.run.isin(best.values())]
    assert {round(100 * share, 6) for share in drawn_shares} == found


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("diameters_px",), [8, 16]),
        (("diameters_px",), []),
        (("details", "0"), {}),
        (("details", "0", "test", "scenes"), {}),
        (("details", "0", "test", "scenes", "d", "boundaries"), [[1, 2]]),
        (("details", "0", "test", "scenes", "d", "boundaries", 0), [1, None]),
        (("details", "0", "test", "scenes", "d", "objects", 1), [[1] * 5]),
        (("details", "0", "test", "scenes", "d", "objects", 1, 1), [1] * 4),
        (("details", "0", "test", "scores"), [[[1], [2]]]),
        (("details", "0", "test", "scores", 0), [[], []]),
        (("details", "0", "test", "scores", 0), [[1, 1], [2]]),
        (None, None),
    ],
)
def test_counts_that_do_not_fit_are_refused_in_a_sentence(
    tmp_path: Path, place: tuple[Any, ...] | None, value: Any
) -> None:
    scene = {"boundaries": [[1, 2], [1, 2]], "objects": [[[1] * 5, [0] * 5] for _ in "ab"]}
    split = {"scenes": {"d": scene}, "scores": [[[1], [2]], [[0], [2]]]}
    values = {"classes": ["a", "b"], "ignored": [], "diameters_px": [8]}
    values |= {
        "splits": {"test": {"d": [[1, 0], [0, 1], [0, 0]]}},
        "details": {"0": {"test": split}},
    }
    path = tmp_path / "unet.json"
    inner: Any = values
    for key in place[:-1] if place else ():
        inner = inner[key]
    if place:
        inner[place[-1]] = value
    record.write(path, record.Record("evaluate", "unet", {}, values, {}))
    if place is None:
        record.read(path)
    else:
        with pytest.raises(UserError, match=r"unet\.json is damaged .*(details|diameters_px)"):
            record.read(path)
