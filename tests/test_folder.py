"""Your own images: from two folders and a few lines of a suite to a prepared data set, and a look
at them beforehand."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, run, write_suite
from PIL import Image
from ruamel.yaml import YAML

from bench.commands import check as check_command
from bench.config import strict
from bench.errors import UserError
from bench.pipeline import inputs
from data import check, folder, prepare
from data.dataset import open_dataset
from data.image_file import read_image
from data.splits import draw_splits

COLOURS = {"ground": (0, 0, 0), "house": (255, 0, 0), "water": (0, 0, 255)}
SIZE = (8, 12)
MINE = argparse.Namespace(dataset="mine")


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = rng.integers(0, 3, SIZE).astype(np.uint8)
    return rng.integers(0, 255, (*SIZE, 3)).astype(np.uint8), index


def fill(raw: Path, names: str = "abcdefghij", image: str = ".png", label: str = ".png") -> None:
    """Images and RGB masks, one of each a name."""
    for kind in ("images", "labels"):
        (raw / kind).mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        pixels, index = picture(seed)
        Image.fromarray(pixels).save(raw / "images" / f"{name}{image}")
        mask = np.array(list(COLOURS.values()), np.uint8)[index]
        Image.fromarray(mask).save(raw / "labels" / f"{name}{label}")


def settings(**other: Any) -> folder.Settings:
    values = {
        "classes": [{"name": name, "colour": list(colour)} for name, colour in COLOURS.items()],
        "labels": "colours",
        "splits": {"train": 0.6, "val": 0.2, "test": 0.2},
        "credit": "Mine.",
    }
    return strict(folder.Settings, values | other, "params.yaml: datasets.mine.settings")


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("data/raw/mine")


def prepared(given: folder.Settings, raw: Path) -> Any:
    folder.download(given, raw)
    return prepare.prepare("mine", folder.about(given), folder.survey(given, raw).pairs(), {})


@pytest.mark.parametrize(
    ("image", "label"),
    [(".png", ".png"), (".tif", ".tiff"), (".PNG", ".tif"), ("_sat.png", "_m.png")],
)
def test_two_folders_become_a_data_set(raw: Path, image: str, label: str) -> None:
    fill(raw, image=image, label=label)
    suffixes = {"image_suffix": "_sat", "label_suffix": "_m"} if "_" in image else {}
    dataset = prepared(settings(**suffixes), raw)
    assert {split: len(ids) for split, ids in dataset.splits.items()} == {
        "train": 6,
        "val": 2,
        "test": 2,
    }
    assert sorted(id for ids in dataset.splits.values() for id in ids) == list("abcdefghij")
    for seed, id in enumerate("abcdefghij"):
        pixels, index = picture(seed)
        found, labelled = dataset.read(id)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), pixels)
        assert np.array_equal(labelled.numpy(), index)
    assert dataset.credit == "Mine."


def test_a_jpeg_is_an_image_too(raw: Path) -> None:
    fill(raw, image=".jpg")
    dataset = prepared(settings(), raw)
    decoded, _ = read_image(raw / "images/a.jpg")
    assert np.array_equal(dataset.read("a")[0].permute(1, 2, 0).numpy(), decoded)


def test_shares_are_drawn_by_the_seed_alone() -> None:
    shares = {"train": 0.8, "val": 0.1, "test": 0.1}
    ids = [str(number) for number in range(2594)]
    first = draw_splits(ids, shares, 0)
    assert {name: len(members) for name, members in first.items()} == {
        "train": 2076,
        "val": 259,
        "test": 259,
    }
    assert sorted(id for members in first.values() for id in members) == sorted(ids)
    assert first == draw_splits(list(reversed(ids)), shares, 0)
    assert first != draw_splits(ids, shares, 1)
    # One image more moves others at the borders alone.
    more = draw_splits([*ids, "new"], shares, 0)
    assert sum(len(set(first[name]) - set(more[name])) for name in first) <= 3
    # By hand: sha256sum of "0 a", "0 b" and "0 c" begins with cf6d, 840f and edc8.
    thirds = {"train": 1 / 3, "val": 1 / 3, "test": 1 / 3}
    assert draw_splits("abc", thirds, 0) == {"train": ["b"], "val": ["a"], "test": ["c"]}


@pytest.mark.parametrize("by", ["names", "files"])
def test_splits_by_list(raw: Path, by: str) -> None:
    fill(raw, "abcd")
    lists: dict[str, Any] = {"train": ["a", "b.png"], "val": ["c"], "test": ["d"]}
    if by == "files":
        for name, members in lists.items():
            (raw / f"{name}.txt").write_text("\n".join(members) + "\n\n")
        lists = {name: f"{name}.txt" for name in lists}
    dataset = prepared(settings(splits=lists), raw)
    assert dataset.splits == {"train": ("a", "b"), "val": ("c",), "test": ("d",)}


E_ACUTE = "\u00e9"


@pytest.mark.parametrize(
    ("files", "lists", "more"),
    [
        ("abc", {"train": "\ufeffa\r\n", "val": "b\r\n", "test": "c\r\n"}, {}),  # of Notepad
        ("abc", {"train": "a\r\n".encode("utf-16"), "val": "b", "test": "c"}, {}),  # of PowerShell
        ("abc", {"train": "a_sat.png", "val": "b_sat", "test": "c_mask.png"}, {}),
        ("abc", ["a", "b", "c"], {"image_suffix": "_sat.png", "label_suffix": "_mask.png"}),
        (["119", "b", "c"], [119, "b", "c"], {}),
        ([E_ACUTE, "b", "c"], ["e\u0301", "b", "c"], {}),  # of macOS
        (["e\u0301", "b", "c"], [E_ACUTE, "b", "c"], {}),
    ],
    ids=["byte order mark", "16 bits", "suffixes", "extension", "number", "composed", "decomposed"],
)
def test_lists_as_people_have_them(raw: Path, files: Any, lists: Any, more: Any) -> None:
    fill(raw, files)
    for kind, suffix in (("images", "_sat"), ("labels", "_mask")):
        for path in list((raw / kind).iterdir()):
            path.rename(path.with_stem(path.stem + suffix))
    if isinstance(lists, dict):
        splits: dict[str, Any] = {name: f"{name}.txt" for name in lists}
        for name, text in lists.items():
            content = text if isinstance(text, bytes) else text.encode()
            (raw / f"{name}.txt").write_bytes(content)
    else:
        splits = {name: [one] for name, one in zip(("train", "val", "test"), lists, strict=True)}
    given = settings(splits=splits, **{"image_suffix": "_sat", "label_suffix": "_mask", **more})
    assert [len(ids) for ids in prepared(given, raw).splits.values()] == [1, 1, 1]


def test_ids_and_unlabelled(raw: Path) -> None:
    fill(raw, "abc")
    for seed, name in enumerate("abc"):
        _, index = picture(seed)
        Image.fromarray(np.array([10, 20, 0], np.uint8)[index]).save(raw / f"labels/{name}.png")
    classes = [
        {"name": "ground", "colour": [0, 0, 0], "id": 10},
        {"name": "house", "colour": [9, 9, 9], "id": 20},
    ]
    lists = {"train": ["a"], "val": ["b"], "test": ["c"]}
    given = settings(classes=classes, labels="ids", unlabelled=[0], splits=lists, ignored=["house"])
    dataset = prepared(given, raw)
    assert np.array_equal(
        dataset.read("a")[1].numpy(), np.array([0, 1, 255], np.uint8)[picture(0)[1]]
    )
    assert dataset.ignored == ("house",)


def spoiled(raw: Path, **_: Any) -> None: ...


def twice(raw: Path) -> None:
    (raw / "images/B.png").write_bytes((raw / "images/b.png").read_bytes())


def copy(kind: str, one: str, other: str) -> Callable[[Path], object]:
    return lambda raw: (raw / kind / other).write_bytes((raw / kind / one).read_bytes())


SPOILED: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no label": (
        lambda raw: (raw / "labels/a.png").unlink(),
        {},
        "images/a.png has no label in data/raw/mine/labels",
    ),
    "no image": (lambda raw: (raw / "images/a.png").unlink(), {}, "a.png has no image in"),
    "two of them": (
        lambda raw: [(raw / f"labels/{name}.png").unlink() for name in "ab"],
        {},
        r"has no label in data/raw/mine/labels \(1 more: `glnet-bench check` lists them\)",
    ),
    "case": (copy("images", "b.png", "B.png"), {}, "images/B.png and .*b.png have the same name"),
    "two formats": (copy("images", "b.png", "b.tif"), {}, "b.png and .*b.tif have the same name"),
    "size": (
        lambda raw: Image.new("RGB", (12, 9)).save(raw / "labels/a.png"),
        {},
        "labels/a.png is 9 x 12 px, its image 8 x 12",
    ),
    "colour": (
        lambda raw: Image.new("RGB", (12, 8), (0, 9, 0)).save(raw / "labels/a.png"),
        {"tolerance": 8},
        r"a.png has 96 px \(100 %\) whose colour is within 8 grey levels of no class",
    ),
    "leak": (
        lambda raw: [copy("images", "a.png", f"{name}.png")(raw) for name in "bcdefghij"],
        {},
        r"are one image, so that test would not be unseen",
    ),
    "no folder": (
        lambda raw: (raw / "labels").rename(raw / "masks"),
        {},
        "labels is missing: put PNG, JPEG or TIFF files there",
    ),
    "empty folder": (
        lambda raw: [path.unlink() for path in (raw / "images").iterdir()],
        {},
        "images holds no PNG, JPEG or TIFF",
    ),
    "shares": (
        spoiled,
        {"splits": {"train": 0.6, "val": 0.2, "test": 0.1}},
        "The shares of the splits add up to 0.9, not to 1",
    ),
    "small share": (
        spoiled,
        {"splits": {"train": 0.98, "val": 0.01, "test": 0.01}},
        "10 images leave none for the split val",
    ),
    "mixed": (
        spoiled,
        {"splits": {"train": 0.6, "val": ["a"], "test": 0.1}},
        "mix shares and lists",
    ),
    "unknown name": (
        spoiled,
        {"splits": {"train": ["a"], "val": ["b"], "test": ["z"]}},
        r"splits\.test lists z, but there is no such image",
    ),
    "two splits": (
        spoiled,
        {"splits": {"train": ["a"], "val": ["b"], "test": ["a"]}},
        r"splits\.test lists a, which is in the split train too",
    ),
    "no list": (
        spoiled,
        {"splits": {"train": "a.txt", "val": ["b"], "test": ["c"]}},
        "a.txt is missing: write a text file",
    ),
    "empty list": (
        lambda raw: (raw / "a.txt").write_text("\n"),
        {"splits": {"train": "a.txt", "val": ["b"], "test": ["c"]}},
        "a.txt is empty: write one image name a line",
    ),
    "list elsewhere": (
        lambda raw: (raw.parent / "a.txt").write_text("a"),
        {"splits": {"train": "../a.txt", "val": ["b"], "test": ["c"]}},
        r"splits\.train is '\.\./a\.txt': put the list into data/raw/mine",
    ),
    "list of the system": (
        spoiled,
        {"splits": {"train": "/etc/passwd", "val": ["b"], "test": ["c"]}},
        "put the list into data/raw/mine",
    ),
    "class of no label": (
        spoiled,
        {"classes": [{"name": "unlabelled", "colour": [0, 0, 0]}]},
        "'unlabelled' is not a class",
    ),
    "ignored": (
        spoiled,
        {"ignored": ["moon"]},
        "'moon' is in `ignored` or `rare`, but not a class",
    ),
    "number": (spoiled, {"unlabelled": [3]}, "Labels are colours, but 3 is a number"),
    "no numbers": (
        spoiled,
        {"labels": "ids", "unlabelled": [[1, 2, 3]]},
        r"Labels are ids, but \(1, 2, 3\) is a colour",
    ),
    "two meanings": (
        spoiled,
        {"labels": "ids", "unlabelled": [1]},
        "The number 1 is used twice, once for 'house'",
    ),
    "two names": (
        spoiled,
        {"classes": [{"name": "a", "colour": [0, 0, i]} for i in range(2)]},
        "Two classes are called 'a'",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_is_wrong_is_one_sentence_and_nothing_is_left(raw: Path, name: str) -> None:
    fill(raw)
    spoil, other, message = SPOILED[name]
    spoil(raw)
    with pytest.raises(UserError, match=message) as refused:
        prepared(settings(**other), raw)
    assert "\n" not in str(refused.value)
    assert not Path("data/prepared/mine").exists()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"labels": "pictures"}, r"datasets\.mine\.settings: the key labels is 'pictures'"),
        ({"classes": []}, "the key classes is"),
        ({"classes": [{"name": "", "colour": [0, 0, 0]}]}, r"the key classes\.0\.name is ''"),
        ({"classes": [{"name": "a", "colour": [0, 0, 256]}]}, r"the key classes\.0\.colour\.2"),
        ({"tolerance": 128}, "the key tolerance is 128"),
        ({"label": "ids"}, "the key label is unknown"),
    ],
)
def test_settings_are_checked(other: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**other)


def test_leaks_may_be_let_through_and_are_told(raw: Path, capsys: Any) -> None:
    fill(raw)
    for name in "bcdefghij":
        copy("images", "a.png", f"{name}.png")(raw)
    prepared(settings(duplicates="warn"), raw)
    assert "are one image." in capsys.readouterr().out
    about = json.loads(Path("data/prepared/mine/dataset.json").read_text())
    assert len(about["warnings"]) == 11  # 4 across splits, 5 + 1 + 1 within one


# --- the look beforehand ------------------------------------------------------------------------


@pytest.fixture
def project(raw: Path) -> Path:
    """The suite that comes along, in a root of its own, and ten images for it."""
    suite = YAML(typ="safe").load((ROOT / "suites/own.yaml").read_text())
    suite["datasets"]["mine"]["settings"]["splits"] |= {"train": 0.6, "val": 0.2, "test": 0.2}
    write_suite(Path(), suite)
    for name in ("dvc.yaml", "pyproject.toml"):
        Path(name).symlink_to(ROOT / name)
    fill(raw)
    return raw


def test_a_look_counts_and_draws(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out = run(sys.executable, "-m", "bench", "check", "mine", cwd=Path()).stdout
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line}
    assert rows["split"] == ["train", "val", "test"]
    assert rows["images"] == ["6", "2", "2"]
    for place in range(3):
        parts = [float(rows[name][2 * place]) for name in (*COLOURS, "unlabelled")]
        assert sum(parts) == pytest.approx(100, abs=0.05)
    assert "sizes: 10 of 8 x 12 px" in out
    with Image.open("data/prepared/mine.contact.png") as sheet:
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(2**20)}
    assert set(COLOURS.values()) <= colours
    assert not Path("data/prepared/mine").exists()


def test_a_look_lists_all_that_is_wrong(project: Path, capsys: Any) -> None:
    (project / "labels/a.png").unlink()
    (project / "images/b.png").write_bytes(b"what?")
    Image.new("RGB", (12, 8), (0, 9, 0)).save(project / "labels/c.png")
    (project / "images/notes.txt").write_text("-")
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(picture(3)[0]).save(project / "images/d.png", exif=exif)
    wrong = "cannot be prepared: correct the 3 errors above"
    with pytest.raises(UserError, match=wrong):
        check_command.work(MINE)
    out = capsys.readouterr().out
    for message in (
        "error: data/raw/mine/images/a.png has no label",
        "error: data/raw/mine/images/b.png is not a PNG, JPEG or TIFF",
        "error: data/raw/mine/labels/c.png has 96 px",
        "warning: data/raw/mine/images/notes.txt is left out",
        "warning: data/raw/mine/images/d.png is rotated according to its orientation tag",
    ):
        assert message in out


def test_the_suite_that_comes_along_prepares(project: Path) -> None:
    inputs.download_raw("mine")
    inputs.prepare_dataset("mine")
    assert open_dataset("mine").classes == ("ground", "house", "water")


def test_a_look_at_a_source_without_files(raw: Path) -> None:
    """Drawn data: nothing but pairs."""
    about = folder.about(settings())
    pairs = [prepare.Pair("train", str(seed), *picture(seed)) for seed in range(3)]
    pairs.append(prepare.Pair("test", "same", *picture(0)))
    pairs.append(prepare.Pair("test", "blank", picture(9)[0], np.full(SIZE, 255, np.uint8)))
    found = check.check_pairs(about, pairs)
    assert found.errors == ["0 (train) and same (test) are one image."]
    assert "blank (test) has no labelled pixel." in found.warnings
    text = check.table(about, found)
    assert "error: 0 (train)" in text
    assert check.contact_sheet(about, found).width > 3 * check.THUMBNAIL_PX
