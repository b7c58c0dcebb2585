"""Metrics against numbers worked out by hand."""

import numpy as np
import pytest

from bench import metrics

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
