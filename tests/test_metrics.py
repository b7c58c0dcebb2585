"""Metrics against numbers worked out by hand."""

import dataclasses
import inspect
from typing import Any

import numpy as np
import pytest

from bench import metrics
from bench.config import Metric

AB = ("a", "b")


def matrix(truth: list[int], prediction: list[int], classes: int) -> metrics.Matrix:
    return metrics.confusion(np.array(truth, np.uint8), np.array(prediction, np.uint8), classes)


def test_confusion_counts_pixels_and_keeps_the_unlabelled_apart() -> None:
    assert matrix([0, 0, 1, 1, 255], [0, 1, 1, 1, 0], 2).tolist() == [[1, 1], [0, 2], [1, 0]]


def test_iou_by_hand() -> None:
    found = matrix([0, 0, 1, 1, 255], [0, 1, 1, 1, 0], 2)
    assert metrics.iou(found, AB).tolist() == [1 / 2, 2 / 3]
    assert metrics.miou(found, AB) == pytest.approx(7 / 12)
    assert metrics.miou(found, AB, leave_out=["b"]) == 1 / 2
    assert metrics.accuracy(found) == 3 / 4


def test_the_official_mean_counts_unlabelled_pixels_against_the_prediction() -> None:
    found = matrix([0, 0, 1, 1, 255], [0, 1, 1, 1, 0], 2)
    assert metrics.miou_official(found, AB) == pytest.approx((1 / 3 + 2 / 3) / 2)


def test_a_perfect_prediction_with_two_of_six_classes() -> None:
    """1 by our definition, .333 by the official code's, which counts absent classes as 0."""
    names = tuple("abcdef")
    found = matrix([0, 0, 3, 3], [0, 0, 3, 3], 6)
    assert metrics.miou(found, names) == 1
    assert metrics.miou_official(found, names) == pytest.approx(1 / 3)


def test_an_ignored_class_is_in_no_mean_and_its_pixels_only_in_the_official_count() -> None:
    names = ("unknown", "b")
    found = matrix([0, 0, 1, 1], [1, 0, 1, 0], 2)
    assert metrics.miou(found, names, ["unknown"]) == 1 / 2  # one of two b pixels, missed by 0
    assert metrics.miou_official(found, names, ["unknown"]) == pytest.approx(1 / 3)
    assert np.isnan(metrics.iou(found, names, ["unknown"])[0])


def test_nothing_to_count() -> None:
    found = matrix([255], [0], 2)
    assert np.isnan(metrics.miou(found, AB))
    assert np.isnan(metrics.accuracy(found))
    assert metrics.total([found, found]).tolist() == [[0, 0], [0, 0], [2, 0]]


def test_a_prediction_that_is_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="predicted class 2, but there are 2"):
        matrix([0, 1], [0, 2], 2)


NAMES = ("unknown", "a", "b", "c")
# Truth unknown, a, b, c, unlabelled by prediction; c occurs nowhere.
FOUND = np.array([[1, 1, 0, 0], [0, 6, 2, 0], [0, 0, 4, 0], [0, 0, 0, 0], [0, 2, 0, 0]])
LEFT_OUT = (6 / 8, 4 / 6)  # a, b
COUNTED = (6 / 11, 4 / 6)  # what is called a where nothing is known counts against a


@pytest.mark.parametrize(
    ("definition", "mean"),
    [
        ({}, sum(LEFT_OUT) / 2),
        ({"absent": "zero"}, sum(LEFT_OUT) / 3),
        ({"unlabelled": "false-positives"}, sum(COUNTED) / 2),
        ({"unlabelled": "false-positives", "absent": "zero"}, sum(COUNTED) / 3),
        ({"leave_out": ["b"]}, LEFT_OUT[0]),
        ({"leave_out": ["b"], "unlabelled": "false-positives", "absent": "zero"}, COUNTED[0] / 2),
        ({"leave_out": ["a", "b"]}, None),
        ({"leave_out": ["a", "b"], "absent": "zero"}, 0),
    ],
)
def test_every_definition_from_one_matrix(definition: dict[str, Any], mean: float | None) -> None:
    found = metrics.miou(FOUND, NAMES, ["unknown"], **definition)
    assert np.isnan(found) if mean is None else found == pytest.approx(mean)
    words = metrics.describe(**definition)
    assert ("false positives" in words) == ("unlabelled" in definition)
    assert ("counts as 0" in words) == ("absent" in definition)
    assert all(name in words for name in definition.get("leave_out", ()))


def test_the_official_mean_is_one_of_the_definitions() -> None:
    assert metrics.miou_official(FOUND, NAMES, ["unknown"]) == pytest.approx(sum(COUNTED) / 3)


def test_the_suite_and_the_metric_name_the_same_definitions() -> None:
    fields = {field.name: field.type for field in dataclasses.fields(Metric)}
    assert fields["unlabelled"] == metrics.Unlabelled
    assert fields["absent"] == metrics.Absent
    assert fields.keys() == inspect.signature(metrics.describe).parameters.keys()
