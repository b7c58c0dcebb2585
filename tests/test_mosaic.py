"""Mosaic: the same on every machine, of any size, and its upper bounds true to the pixel: twins, lines
that shrinking cancels, oracles that reach each bound, and none that passes it."""

import hashlib
import itertools
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from numpy.typing import NDArray
from torch import Tensor

from bench.config import read_suite, strict
from bench.errors import UserError
from bench.metrics import confusion, miou, total
from bench.tiling import resize, shrink_image, shrink_label
from data import mosaic
from data.dataset import open_dataset
from data.mosaic import Scene, Settings
from data.prepare import prepare

SMALL = Settings(
    size_px=256,
    seed=3,
    train_twins=1,
    val_twins=1,
    test_twins=2,
    beacon_spacing_px=120,
    global_px=32,
    patch_px=32,
    overlap_px=4,
)
NAMES = tuple(name for name, _ in mosaic.CLASSES)


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [mosaic.draw(SMALL, "test", number) for number in range(SMALL.test_twins)]


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1).contiguous()


def score(predicted: list[NDArray[np.uint8]], truth: list[NDArray[np.uint8]]) -> float:
    pairs = zip(truth, predicted, strict=True)
    return miou(total([confusion(one, other, 4) for one, other in pairs]), NAMES)


def labels(scenes: list[Scene]) -> list[NDArray[np.uint8]]:
    return [mosaic.label_of(scene, twin) for scene in scenes for twin in (False, True)]


# --- what is drawn ------------------------------------------------------------------------------


def test_the_same_pixels_everywhere(tmp_path: Path) -> None:
    """If this digest changes, every result on Mosaic does."""
    digest = hashlib.sha256()
    for pair in mosaic.pairs(SMALL, tmp_path):
        digest.update(pair.image.tobytes() + pair.label.tobytes())
    assert digest.hexdigest() == (
        "c40eb552e1716dae593aa4761af015b7b3ae858d2ebd431b30b7f230e7857044"
    )


def test_a_seed_a_split_and_a_number_each_draw_another_scene() -> None:
    drawn = [
        mosaic.draw(SMALL, "test", 0),
        mosaic.draw(SMALL, "test", 1),
        mosaic.draw(SMALL, "val", 0),
        mosaic.draw(replace(SMALL, seed=4), "test", 0),
    ]
    for one, other in itertools.combinations(drawn, 2):
        for name in asdict(one):
            assert not np.array_equal(getattr(one, name), getattr(other, name))


def test_more_scenes_leave_the_others_as_they_are(tmp_path: Path) -> None:
    few = {pair.id: pair for pair in mosaic.pairs(SMALL, tmp_path)}
    many = {pair.id: pair for pair in mosaic.pairs(replace(SMALL, train_twins=2), tmp_path)}
    assert len(many) == len(few) + 2
    for id, pair in few.items():
        assert np.array_equal(pair.image, many[id].image)


@pytest.mark.parametrize(
    ("size", "side"), [(96, 12), (128, 8), (200, 25), (256, 8), (320, 40), (1024, 128)]
)
def test_any_size(size: int, side: int) -> None:
    settings = replace(
        SMALL, size_px=size, global_px=side, beacon_spacing_px=max(size // 3, 48), patch_px=size
    )
    for number in range(5):
        scene = mosaic.draw(settings, "train", number)
        assert mosaic.image_of(scene).shape == (size, size, 3)
        assert set(np.unique(mosaic.label_of(scene))) == {0, 1, 2, 3, 255}
    assert mosaic.upper_bounds([scene], settings)["one patch"] == 1


def test_what_is_prepared_states_its_upper_bounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mosaic.download(SMALL, tmp_path / "raw")
    pairs = mosaic.pairs(SMALL, tmp_path / "raw")
    dataset = prepare("mosaic", mosaic.about(SMALL), pairs, asdict(SMALL))
    assert dataset == open_dataset("mosaic")
    assert dataset.ids("test") == ["test000", "test000-twin", "test001", "test001-twin"]
    assert list(dataset.ceilings) == ["labels at 1/4", "one patch", "shrunken image"]
    assert all(0.2 < bound < 1 for bound in dataset.ceilings.values())


def test_nothing_is_clipped(scenes: list[Scene]) -> None:
    """Then adding lines and taking them away are exact, whatever the noise."""
    values = (mosaic.GROUND, *itertools.chain(*mosaic.BEACONS))
    assert min(values) - mosaic.NOISE + 2 * min(mosaic.LINE) >= 0
    assert max(values) + mosaic.NOISE + 2 * max(mosaic.LINE) <= 255
    for scene in scenes:
        assert scene.relief.min() >= 2 * min(mosaic.LINE)
        assert scene.relief.max() <= 2 * max(mosaic.LINE)
        assert not scene.relief[~scene.line].any()


# --- the bound of one patch -------------------------------------------------------------------


def test_twins_differ_in_beacons_alone_and_all_labels_are_swapped(scenes: list[Scene]) -> None:
    for scene in scenes:
        one, other = mosaic.image_of(scene), mosaic.image_of(scene, twin=True)
        assert np.array_equal((one != other).any(-1), scene.beacon)
        one, other = mosaic.label_of(scene), mosaic.label_of(scene, twin=True)
        assert np.array_equal(one == 255, scene.beacon)
        assert np.array_equal(other == 255, scene.beacon)
        assert np.array_equal((one ^ 1)[~scene.beacon], other[~scene.beacon])


def test_a_region_is_that_of_the_nearest_beacon(scenes: list[Scene]) -> None:
    """By brute force, from the image alone: the nearest coloured pixel says the region, but for
    pixels about as far from two colours, since discs are round only up to a pixel."""
    for scene in scenes:
        image = mosaic.image_of(scene).astype(int)
        rows, columns = np.nonzero(scene.beacon)
        blue = image[rows, columns, 2] > image[rows, columns, 0]
        for row, column in itertools.product(range(0, 256, 16), repeat=2):
            away = np.hypot(rows - row, columns - column)
            to_a, to_b = away[~blue].min(), away[blue].min()
            if abs(to_a - to_b) > 2:
                assert scene.region_b[row, column] == (to_b < to_a)


def test_pixels_whose_patches_show_a_beacon(scenes: list[Scene]) -> None:
    boxes = mosaic.grid(256, 256, 32, 4)
    for scene in scenes:
        shown = mosaic.shows_beacon(scene, boxes)
        assert 0.1 < shown.mean() < 0.9
        for row, column in itertools.product(range(0, 256, 24), repeat=2):
            over = [
                scene.beacon[top : top + 32, left : left + 32].any()
                for top, left, *_ in boxes
                if top <= row < top + 32 and left <= column < left + 32
            ]
            assert shown[row, column] == any(over)


def test_an_oracle_of_one_patch_reaches_its_ceiling(scenes: list[Scene]) -> None:
    """It knows all but a or b where it sees no beacon; there it says a in half of the pixels."""
    boxes = mosaic.grid(256, 256, 32, 4)
    guess = np.indices((256, 256)).sum(0) % 2 == 1
    predicted = []
    for scene, twin in itertools.product(scenes, (False, True)):
        shown = mosaic.shows_beacon(scene, boxes)
        region_b = np.where(shown, scene.region_b ^ twin, guess)
        predicted.append((2 * scene.line + region_b).astype(np.uint8))
    bound = mosaic.upper_bounds(scenes, SMALL)["one patch"]
    assert score(predicted, labels(scenes)) == pytest.approx(bound, abs=1e-3)


def test_no_labels_that_twins_share_pass_the_ceiling() -> None:
    """Every way to label a scene of six pixels, two of which are known."""
    line = np.array([[0, 0, 0, 1, 0, 1]], bool)
    region = np.array([[0, 1, 1, 0, 0, 1]], bool)
    beacon = np.array([[0, 1, 0, 0, 0, 0]], bool)  # shown to the patch of the first two pixels
    nothing = np.zeros((1, 6), np.int16)
    scene = Scene(region, line, beacon, nothing, nothing[..., None])
    boxes = [mosaic.Box(0, left, 1, 2) for left in (0, 2, 4)]
    truth = labels([scene])
    best = 0.0
    for guess in itertools.product(range(4), repeat=4):
        predicted = [np.append(one[:, :2] % 4, [guess], 1).astype(np.uint8) for one in truth]
        best = max(best, score(predicted, truth))
    bound = mosaic._one_patch([scene], boxes)
    assert best <= bound + 1e-9
    # ground: 3 labelled of which 1 known; line: 2 labelled, none known: 2/4 and 1/3
    assert bound == pytest.approx((2 / 4 + 1 / 3) / 2)
    assert best == pytest.approx(bound)


# --- the bound of the shrunken image ----------------------------------------------------------


@pytest.mark.parametrize(("size", "side"), [(256, 32), (320, 40), (512, 32), (512, 16)])
@pytest.mark.parametrize("twin", [False, True])
def test_the_shrunken_image_shows_no_line(size: int, side: int, twin: bool) -> None:
    """Not one grey level of one pixel is other than without lines, turned and mirrored too."""
    settings = replace(SMALL, size_px=size, global_px=side)
    for number in range(2):
        scene = mosaic.draw(settings, "test", number)
        assert scene.line.mean() > 0.02
        drawn = as_tensor(mosaic.image_of(scene, twin))
        plain = as_tensor(mosaic.image_of(scene, twin, lines=False))
        assert (drawn != plain).any(0).float().mean() > 0.02
        for turns, mirrored in itertools.product(range(4), (False, True)):
            small = []
            for image in (drawn, plain):
                image = torch.rot90(image.flip(-1) if mirrored else image, turns, (-2, -1))
                small.append(shrink_image(image.contiguous(), (side, side)))
            assert torch.equal(*small)


def test_lines_can_be_seen_in_a_patch(scenes: list[Scene]) -> None:
    """Against the two pixels beside it, the middle of a line is darker than any noise."""
    for scene in scenes:
        grey = mosaic.image_of(scene).mean(-1)
        middle = scene.relief <= mosaic.LINE[1]
        assert grey[middle & ~scene.beacon].max() < grey[~scene.line & ~scene.beacon].min()


def test_lines_are_drawn_from_a_stream_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    before = mosaic.draw(SMALL, "test", 0)
    monkeypatch.setattr(mosaic, "GAP_BLOCKS", (5, 5))
    after = mosaic.draw(SMALL, "test", 0)
    assert not np.array_equal(before.line, after.line)
    for name in ("region_b", "beacon", "noise"):
        assert np.array_equal(getattr(before, name), getattr(after, name))


def test_no_place_is_likelier_to_have_a_line_than_another() -> None:
    """But for the margin and the place in a block: else guesses could gain more than is counted."""
    rng = np.random.Generator(np.random.PCG64(0))
    drawn = 3000
    found = np.mean([mosaic._lines(96, 8, rng)[1] for _ in range(drawn)], axis=0)
    margin = mosaic.margin_px(8)
    assert not np.delete(found, np.s_[margin:-margin], 0).any()
    assert not np.delete(found, np.s_[margin:-margin], 1).any()
    inside = found[margin:-margin, margin:-margin]
    for row, column in itertools.product(range(4), repeat=2):
        alike = inside[row::4, column::4]
        deviation = np.sqrt(alike.mean() * (1 - alike.mean()) / drawn)
        assert np.abs(alike - alike.mean()).max() < 5 * deviation
        assert abs(alike.mean() - inside[(3 - row) :: 4, column::4].mean()) < 0.01


def test_an_oracle_of_the_shrunken_image_reaches_its_ceiling(scenes: list[Scene]) -> None:
    """It knows every region and no line: ground everywhere is just below the bound."""
    rng = np.random.default_rng(0)
    bound = mosaic.upper_bounds(scenes, SMALL)["shrunken image"]
    lattice = np.indices((256, 256)) % 4
    inner = np.isin(lattice, (1, 2)).all(0)  # where a block has its lines most often
    inner &= np.pad(np.ones((232, 232), bool), 12)  # and none are nearer to the edge
    reached = {}
    for share in (0, 0.1, 0.2, 0.3, 0.5, 1):
        predicted = []
        for scene, twin in itertools.product(scenes, (False, True)):
            guess = inner & (rng.random((256, 256)) < share)
            predicted.append((2 * guess + (scene.region_b ^ twin)).astype(np.uint8))
        reached[share] = score(predicted, labels(scenes))
    assert reached[0] < max(reached.values())
    assert max(reached.values()) == pytest.approx(bound, abs=0.003)
    everything = [2 + (scene.region_b ^ twin) for scene in scenes for twin in (False, True)]
    assert score([one.astype(np.uint8) for one in everything], labels(scenes)) < bound - 0.2


def test_the_best_guess_against_all_guesses() -> None:
    """Groups of 6, 4 and 5 pixels with 3, 1 and 0 lines: every number of guesses in each."""
    pixels, lines = np.array([5.0, 6.0, 4.0]), np.array([0.0, 3.0, 1.0])
    best = 0.0
    for guesses in itertools.product(*(np.linspace(0, n, 41) for n in pixels)):
        right = (np.array(guesses) * lines / pixels).sum()
        missed, wrong = lines.sum() - right, sum(guesses) - right
        ground = pixels.sum() - right - missed - wrong
        best = max(
            best, (right / (right + missed + wrong) + ground / (ground + missed + wrong)) / 2
        )
    assert mosaic.best_guess(pixels, lines) == pytest.approx(best, abs=1e-4)
    assert mosaic.best_guess(pixels, lines) >= best


# --- the bound of labels at 1/4 ---------------------------------------------------------------


def test_an_oracle_at_a_quarter_reaches_its_ceiling(scenes: list[Scene]) -> None:
    predicted = []
    for scene, twin in itertools.product(scenes, (False, True)):
        found = torch.from_numpy(mosaic.classes_of(scene, twin))
        cells = enlarged_from_a_quarter(found)
        predicted.append(cells.numpy())
    bound = mosaic.upper_bounds(scenes, SMALL)["labels at 1/4"]
    assert score(predicted, labels(scenes)) == pytest.approx(bound, abs=1e-12)
    assert bound > 0.8


def enlarged_from_a_quarter(label: Tensor) -> Tensor:
    """Labels as a network is taught them at 1/4, and enlarged as it enlarges its own."""
    small = shrink_label(label, (label.shape[0] // 4, label.shape[1] // 4))
    return resize(small[None, None], (label.shape[0], label.shape[1]), "nearest")[0, 0]


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size_px": 257}, "size_px is 257, but must be 8, 16 or 32 times global_px"),
        ({"size_px": 128}, "must be 8, 16 or 32 times"),
        ({"beacon_spacing_px": 129}, "beacon_spacing_px is 129, .* at most half of size_px"),
        ({"overlap_px": 32}, "overlap_px is 32, but must be less than patch_px"),
        ({"patch_px": 30}, "a patch begins at .* px, but all must at multiples of 4"),
    ],
)
def test_settings_that_break_a_ceiling_are_refused(
    changes: dict[str, int], message: str, tmp_path: Path
) -> None:
    settings = replace(SMALL, **changes)
    for refused in (
        lambda: mosaic.about(settings),
        lambda: mosaic.download(settings, tmp_path),
        lambda: next(mosaic.pairs(settings, tmp_path)),
    ):
        with pytest.raises(UserError, match=message) as error:
            refused()
        assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_settings_out_of_range_are_refused_by_name() -> None:
    for name, value in {"size_px": 0, "seed": -1, "test_twins": 0, "patch_px": "x"}.items():
        with pytest.raises(UserError, match=f"here: the key {name} is "):
            strict(Settings, {**asdict(SMALL), name: value}, "here")


def test_the_suites_networks_see_what_the_upper_bounds_assume() -> None:
    suite = read_suite(ROOT / "suites/mosaic.yaml")
    settings = suite.datasets["mosaic"].settings
    strict(Settings, settings, "suite")
    views = {"patch_px", "overlap_px", "global_px"}
    # What others shrink the whole image to has other names; ISDNet and PointRend see all of it.
    whole = dict.fromkeys(("input_px", "whole_px", "base_px"), settings["global_px"])
    expected = {name: settings[name] for name in views} | whole
    for model in suite.models.values():
        given = expected.keys() & model.spec.keys()
        assert {name: model.spec[name] for name in given} == {n: expected[n] for n in given}
        assert given >= views or model.method != "glnet"
        assert given or model.method in ("baselines/isdnet", "baselines/pointrend")
    assert settings["overlap_px"] == 0
    for run in suite.runs.values():
        assert not expected.keys() & run.overrides.keys()
