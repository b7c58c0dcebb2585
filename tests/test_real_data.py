"""IDRiD and Dubai, in small files of exactly their layout, from a real server on loopback."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from file_server import Server, answer
from test_paper_data import QUICK, encoded, zipped

from bench.errors import UserError
from data import dubai, idrid, prepare
from data.dataset import UNLABELLED
from data.repository import Repository
from data.splits import draw_splits

SIZE = (6, 8)
RETINAS = {"train": (1, 2, 3), "test": (55,)}


@pytest.fixture
def raw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = Path("data/raw/set")
    folder.mkdir(parents=True)
    return folder


def retinas() -> dict[str, bytes]:
    """An image's lesions are single pixels in its first row; the disc is the last row."""
    found = {}
    for split, numbers in RETINAS.items():
        for number in numbers:
            name, folder = f"IDRiD_{number:02}", idrid.FOLDERS[split]
            image = np.full((*SIZE, 3), number, np.uint8)
            found[f"1. Original Images/{folder}/{name}.jpg"] = encoded(image, "JPEG")
            for column, place in enumerate(idrid.MASKS.values()):
                mask = np.zeros(SIZE, np.uint8)
                mask[0, column : column + 2] = 1  # two masks hold each pixel but the ends
                if "OD" in place:
                    mask[-1] = 1
                if "_SE" in place and number == 2:
                    continue
                masks = f"2. All Segmentation Groundtruths/{folder}/{place.format(name)}"
                found[masks] = encoded(mask, "TIFF")
                if "_EX" in place and number == 55:  # the one file that stores colours
                    red = np.stack([255 * mask, 0 * mask, 0 * mask, 255 + 0 * mask], -1)
                    found[masks] = encoded(red, "TIFF")
    return found


def mosaics() -> dict[str, bytes]:
    """Nine parts of 2 x 3 px a mosaic, each of one class, but for a pixel of another colour."""
    found = {}
    for tile in range(1, 9):
        for number in range(1, 10):
            mask = np.zeros((2, 3, 3), np.uint8)
            mask[:] = dubai.CLASSES[number % 5][1]
            mask[0, 0] = (0x9B, 0x9B, 0x9B)
            image = np.full((2, 3, 3), 10 * number + tile, np.uint8)
            name = f"Tile {tile}/images/image_part_{number:03}.jpg"
            found[name] = encoded(image, "JPEG", quality=100)
            found[f"Tile {tile}/masks/image_part_{number:03}.png"] = encoded(mask, "PNG")
    return found


def serve(
    server: Server, module: Any, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> Repository:
    """The files at the addresses of the module's repository, whose manifest lists them."""
    manifest = Path("manifest")
    sums = {path: hashlib.sha256(content).hexdigest() for path, content in files.items()}
    manifest.write_text("".join(f"{sha256}  {path}\n" for path, sha256 in sums.items()))
    repository: Repository = replace(module.FILES, manifest=manifest.resolve())
    monkeypatch.setattr(module, "FILES", repository)
    root = f"/{repository.name}/{repository.commit}/{repository.folder}"
    server.files = {quote(f"{root}/{path}"): content for path, content in files.items()}
    return repository


def retina_settings(server: Server, **more: Any) -> idrid.Settings:
    return idrid.Settings(url=server.url, patience=QUICK, **more)


def test_retinas(server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, idrid, retinas(), monkeypatch)
    settings = retina_settings(server)
    idrid.download(settings, raw)
    asked = len(server.asked)
    idrid.download(settings, raw)
    assert len(server.asked) == asked  # all are there
    survey = idrid.survey(settings, raw)
    found = prepare.prepare("set", idrid.about(settings), survey.pairs(), {})
    assert found.splits == {
        "train": ("IDRiD_02", "IDRiD_03"),
        "val": ("IDRiD_01",),
        "test": ("IDRiD_55",),
    }
    assert found.rare == ("background",)
    for name in ("IDRiD_01", "IDRiD_55"):
        label = found.arrays(name)[1]
        # Disc and soft exudate share column 1, and so on; the later one of MASKS counts.
        assert label[0].tolist() == [5, 4, 2, 3, 1, 1, 0, 0]
        assert label[-1].tolist() == [5] * 8
        assert not label[1:-1].any()
    assert found.arrays("IDRiD_02")[1][0].tolist() == [5, 5, 2, 3, 1, 1, 0, 0]


def test_one_class_of_the_retina(
    server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, idrid, retinas(), monkeypatch)
    settings = retina_settings(server, alone="hard_exudate")
    idrid.download(settings, raw)
    about = idrid.about(settings)
    assert about.classes == ("background", "hard_exudate")
    pairs = {pair.id: pair.label for pair in idrid.survey(settings, raw).pairs()}
    assert pairs["IDRiD_55"][0].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]


def test_the_validation_images_are_drawn_by_a_seed() -> None:
    ids = {f"IDRiD_{number:02}": number for number in range(1, 55)}
    shares = {"train": 5 / 6, "val": 1 / 6, "test": 0}
    assert {ids[name] for name in draw_splits(ids, shares, 0)["val"]} == idrid.VAL


@pytest.mark.parametrize("above", ["", "EyeDisease_IDRiD-b82ed3a/dataset/A. Segmentation/"])
def test_an_archive_or_a_folder_of_the_user(
    above: str, server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = retinas()
    serve(server, idrid, files, monkeypatch)
    (raw / "mine.zip").write_bytes(zipped({f"{above}{path}": one for path, one in files.items()}))
    idrid.download(retina_settings(server), raw)
    assert server.asked == []
    (raw / "mine.zip").unlink()
    idrid.download(retina_settings(server), raw)
    assert server.asked == []


def test_other_files_than_the_repositorys(
    server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = serve(server, idrid, retinas(), monkeypatch)
    settings = retina_settings(server)
    with pytest.raises(UserError, match=r"holds no files of .* run `dvc repro download`"):
        idrid.survey(settings, raw)
    idrid.download(settings, raw)
    root = repository.root(raw)
    assert root
    first = root / next(iter(repository.files))
    first.write_bytes(b"another")
    with pytest.raises(UserError, match=r"IDRiD_01.jpg is not the file of .* at commit b82ed3a"):
        idrid.survey(settings, raw).valid_entries()
    server.asked.clear()
    idrid.download(settings, raw)  # only that one
    assert {path for path, _ in server.asked} == {next(iter(server.files))}
    server.files[next(iter(server.files))] = b"changed on the server"
    first.unlink()
    with pytest.raises(UserError, match=r"has SHA-256 .* put an archive or a folder of"):
        idrid.download(settings, raw)
    assert not first.exists()


def test_a_server_that_refuses_is_asked_no_more(
    server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, dubai, mosaics(), monkeypatch)
    server.always = answer(404)
    patience = replace(QUICK, connections=1)
    with pytest.raises(UserError, match="does not exist"):
        dubai.download(dubai.Settings(fold="A", url=server.url, patience=patience), raw)
    assert len(server.asked) < 10  # of 144 files


@pytest.mark.parametrize(("fold", "scenes"), [("A", 8), ("B", 10)])
def test_mosaics(
    fold: Any, scenes: int, server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(server, dubai, mosaics(), monkeypatch)
    shared = {(4, 8): (slice(0, 3), slice(0, 9)), (8, 4): (slice(3, 6), slice(0, 9))}
    monkeypatch.setattr(dubai, "OVERLAPS", shared)
    settings = dubai.Settings(fold=fold, url=server.url, patience=QUICK)
    dubai.download(settings, raw)
    pairs = {pair.id: pair for pair in dubai.pairs(settings, raw)}
    assert len([one for one in pairs.values() if one.split == "test"]) == scenes
    assert len(pairs) == 18
    # Mosaic 1 whole: 6 x 9 px of nine parts; the first pixel of each has a foreign colour.
    own = pairs["tile1"]
    numbers = np.kron(np.arange(1, 10).reshape(3, 3), np.ones((2, 3), int))
    wanted = np.where(numbers % 5 >= 0, numbers % 5, 0)
    wanted[::2, ::3] = UNLABELLED
    assert np.array_equal(own.label, wanted)
    assert np.abs(own.image[..., 0].astype(int) - (10 * numbers + 1)).max() <= 1
    # Mosaic 7 in 3 x 2 scenes, 8 in 2 x 3.
    assert pairs["tile7-32"].label.shape == (2, 4)
    assert pairs["tile8-23"].label.shape == (3, 3)
    # The ground that 4 and 8 share: unlabelled in the one that is not test.
    whole = {"A": "tile4", "B": "tile8-21"}[fold]
    assert (pairs[whole].label[:3] == UNLABELLED).all()
    tested = {"A": "tile8-21", "B": "tile4"}[fold]
    assert not (pairs[tested].label[:3] == UNLABELLED).all()


def test_seams(server: Server, raw: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(server, dubai, mosaics(), monkeypatch)
    settings = dubai.Settings(fold="A", seam_px=2, url=server.url, patience=QUICK)
    dubai.download(settings, raw)
    label = next(pair.label for pair in dubai.pairs(settings, raw) if pair.id == "tile1")
    labelled = label != UNLABELLED
    # Rows 0 and 5 remain, columns 0, 1, 4, 7 and 8; (0, 0) has a foreign colour.
    assert np.argwhere(labelled.any(1)).ravel().tolist() == [0, 5]
    assert np.argwhere(labelled.any(0)).ravel().tolist() == [0, 1, 4, 7, 8]


def test_every_mosaic_is_in_one_split_of_a_fold_and_in_one_test() -> None:
    tests = [one for fold in dubai.FOLDS.values() for one in fold["test"]]
    assert sorted(tests) == list(range(1, 9))
    for fold in dubai.FOLDS.values():
        assert sorted(one for split in fold.values() for one in split) == list(range(1, 9))


@pytest.mark.parametrize(("module", "count"), [(idrid, 446), (dubai, 145)])
def test_the_manifests(module: Any, count: int) -> None:
    files = module.FILES.files
    assert len(files) == count
    assert all(len(sha256) == 64 for sha256 in files.values())
    assert not any(Path(path).is_absolute() or ".." in path for path in files)
