"""The data sets of the paper, in small archives of exactly their layout, from a real server on
loopback."""

import base64
import hashlib
import io
import json
import re
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import py7zr
import pytest
from conftest import ROOT
from file_server import Server, answer
from PIL import Image

from bench import metrics
from bench.config import open_source, read_suite
from bench.errors import UserError
from data import deepglobe, inria, isic, prepare
from data.dataset import Dataset
from data.fetch import DownloadOptions, partial_folder

QUICK = DownloadOptions(tries=2, first_wait_s=0.01, timeout_s=5, block_bytes=4000)
SIDE = 12
COUNTS = {"train": 5, "val": 3, "test": 2}
GLOBE_IDS = [str(100000 + 37 * number) for number in range(sum(COUNTS.values()))]
CITIES = [f"{city}{number}" for city in ("austin", "tyrol-w") for number in range(1, 6)]


@pytest.fixture(autouse=True)
def _nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials of whoever runs the tests, and a root of its own."""
    for name in ("KAGGLE_API_TOKEN", "KAGGLE_USERNAME", "KAGGLE_KEY", "KAGGLE_CONFIG_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = Path("data/raw/set")
    folder.mkdir(parents=True)
    return folder


def encoded(pixels: np.ndarray, kind: str, **more: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **more)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def lists(ids: list[str], suffix: str) -> dict[str, bytes]:
    """Lists of the published form: train.txt, crossvali.txt, test.txt."""
    found, begin = {}, 0
    for (_, count), name in zip(COUNTS.items(), ("train", "crossvali", "test"), strict=True):
        lines = [f"{id}{suffix}\n" for id in ids[begin : begin + count]]
        found[f"{name}.txt"] = "".join(lines).encode()
        begin += count
    return found


def expect_lists(monkeypatch: pytest.MonkeyPatch, module: Any, found: dict[str, bytes]) -> None:
    """Let a source expect these lists instead of the published ones."""
    known = {
        split: hashlib.sha256(content).hexdigest()
        for split, content in zip(COUNTS, found.values(), strict=True)
    }
    monkeypatch.setattr(module, "PUBLISHED", replace(module.PUBLISHED, lists=known))


def put(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def prepared(module: Any, settings: Any, raw: Path) -> Dataset:
    module.download(settings, raw)
    pairs = module.survey(settings, raw).pairs()
    return prepare.prepare("set", module.about(settings), pairs, {})


def no_partial_files(raw: Path) -> bool:
    """Whether nothing that was fetched lies about any more."""
    partial = partial_folder(raw)
    return not partial.exists() or not list(partial.iterdir())


# --- DeepGlobe ----------------------------------------------------------------------------------

COLOURS = np.array([colour for _, colour in deepglobe.CLASSES], np.uint8)


def globe_index(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 7, (SIDE, SIDE)).astype(np.uint8)


def globe_files(folder: str = "train", noise: int = 0) -> dict[str, bytes]:
    """The archive as Kaggle has it: labelled images, and two folders without labels."""
    files = {"class_dict.csv": b"name,r,g,b\n", "metadata.csv": b"image_id,split\n"}
    for number, id in enumerate(GLOBE_IDS):
        rng = np.random.default_rng(100 + number)
        image = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
        mask = COLOURS[globe_index(number)].astype(int)
        off = rng.integers(0, noise + 1, mask.shape)
        mask = np.where(mask > 0, mask - off, off).astype(np.uint8)
        files[f"{folder}/{id}_sat.jpg"] = encoded(image, "JPEG")
        files[f"{folder}/{id}_mask.png"] = encoded(mask, "PNG")
    files["valid/999_sat.jpg"] = files["test/998_sat.jpg"] = encoded(image, "JPEG")
    return files


@pytest.fixture
def globe(server: Server, monkeypatch: pytest.MonkeyPatch) -> deepglobe.Settings:
    """Kaggle and the repository of lists on loopback."""
    found = lists(GLOBE_IDS, "_sat.jpg")
    expect_lists(monkeypatch, deepglobe, found)
    server.files = {f"/lists/{name}": content for name, content in found.items()}
    server.files["/api/me/globe"] = zipped(globe_files())
    return deepglobe.Settings(
        kaggle="me/globe",
        kaggle_url=f"{server.url}/api",
        lists_url=f"{server.url}/lists",
        side_px=SIDE,
        patience=QUICK,
    )


def check_globe(dataset: Dataset) -> None:
    assert {split: len(ids) for split, ids in dataset.splits.items()} == COUNTS
    assert dataset.splits["val"] == tuple(GLOBE_IDS[5:8])
    for number, id in enumerate(GLOBE_IDS):
        assert np.array_equal(dataset.read(id)[1].numpy(), globe_index(number))
    assert dataset.ignored == ("unknown",)
    assert "454 train, 207 val (crossvali), 142 test; val picks, test reports" in dataset.credit


def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAGGLE_USERNAME", "me")
    monkeypatch.setenv("KAGGLE_KEY", "s3cret")


def test_deepglobe_from_kaggle(
    server: Server, globe: deepglobe.Settings, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token(monkeypatch)
    check_globe(prepared(deepglobe, globe, raw))
    basic = f"Basic {base64.b64encode(b'me:s3cret').decode()}"
    for (path, _), sent in zip(server.asked, server.authorization, strict=True):
        assert sent == (basic if path.startswith("/api") else None)
    assert not list(raw.rglob("99*"))  # images without labels are not unpacked
    assert no_partial_files(raw)
    server.asked.clear()
    deepglobe.download(globe, raw)
    assert not server.asked


@pytest.mark.parametrize("folder", ["train", "land-train", "deepglobe/train"])
@pytest.mark.parametrize("form", ["folder", "archive"])
def test_deepglobe_as_the_user_has_put_it(
    globe: deepglobe.Settings, raw: Path, folder: str, form: str
) -> None:
    files = globe_files(folder)
    put(raw, files if form == "folder" else {"archive.zip": zipped(files)})
    check_globe(prepared(deepglobe, globe, raw))


def test_deepglobe_with_its_lists_put_by_hand_needs_no_network(
    server: Server, globe: deepglobe.Settings, raw: Path
) -> None:
    put(raw, globe_files() | {f"splits/{k}": v for k, v in lists(GLOBE_IDS, "_sat.jpg").items()})
    check_globe(prepared(deepglobe, globe, raw))
    assert not server.asked


def test_deepglobe_masks_with_noise_are_read_by_the_challenges_rule(
    globe: deepglobe.Settings, raw: Path
) -> None:
    put(raw, globe_files(noise=127))
    check_globe(prepared(deepglobe, globe, raw))


def without(name: str) -> Callable[[Path], None]:
    return lambda raw: (raw / "train" / name).unlink()


SPOILED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "image": (
        without(f"{GLOBE_IDS[0]}_sat.jpg"),
        f"{GLOBE_IDS[0]}_sat.jpg is missing, which the published lists name",
    ),
    "masks": (
        lambda raw: [without(f"{id}_mask.png")(raw) for id in GLOBE_IDS[:3]],
        r"_mask.png is missing, which the published lists name \(2 more",
    ),
    "size": (
        lambda raw: [
            Image.new("RGB", (9, 9)).save(raw / f"train/{GLOBE_IDS[0]}{end}")
            for end in ("_sat.jpg", "_mask.png")
        ],
        "is 9 x 9 px, but this data set has 12 x 12",
    ),
    "colour": (
        lambda raw: Image.new("RGB", (12, 12), (255, 0, 0)).save(
            raw / f"train/{GLOBE_IDS[0]}_mask.png"
        ),
        r"has 144 px \(100 %\) whose colour is within 127 grey levels of no class",
    ),
}


@pytest.mark.parametrize("name", SPOILED)
def test_deepglobe_that_is_not_whole(globe: deepglobe.Settings, raw: Path, name: str) -> None:
    spoil, message = SPOILED[name]
    put(raw, globe_files())
    spoil(raw)
    with pytest.raises(UserError, match=message):
        prepared(deepglobe, globe, raw)
    assert not Path("data/prepared/set").exists()


def test_a_list_that_is_not_the_published_one(
    server: Server, globe: deepglobe.Settings, raw: Path
) -> None:
    put(raw, globe_files())
    server.files["/lists/test.txt"] = b"100000_sat.jpg\n100037_sat.jpg\n"
    message = r"test.txt .* has SHA-256 .* it was deleted; put the published list at "
    with pytest.raises(UserError, match=message + "data/raw/set/splits/test.txt"):
        deepglobe.download(globe, raw)
    server.files["/lists/test.txt"] = lists(GLOBE_IDS, "_sat.jpg")["test.txt"]
    deepglobe.download(globe, raw)
    (raw / "splits/test.txt").write_text("100000_sat.jpg\n")
    with pytest.raises(UserError, match=r"test.txt is not the list expected \(SHA-256\)"):
        deepglobe.survey(globe, raw)


def test_without_a_token_three_ways_are_told(globe: deepglobe.Settings, raw: Path) -> None:
    with pytest.raises(
        UserError, match=r"no Kaggle token: set KAGGLE_USERNAME .* the data set's zip"
    ):
        deepglobe.download(globe, raw)


@pytest.mark.parametrize("kind", ["file", "folder", "bearer"])
def test_tokens_are_taken_from_where_kaggle_has_them(
    server: Server,
    globe: deepglobe.Settings,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: Any,
    kind: str,
) -> None:
    if kind == "bearer":
        monkeypatch.setenv("KAGGLE_API_TOKEN", "s3cret")
    else:
        folder = Path.home() / ".kaggle" if kind == "file" else Path("keys").resolve()
        put(folder, {"kaggle.json": json.dumps({"username": "me", "key": "s3cret"}).encode()})
        (folder / "kaggle.json").chmod(0o644 if kind == "file" else 0o600)
        if kind == "folder":
            monkeypatch.setenv("KAGGLE_CONFIG_DIR", str(folder))
    check_globe(prepared(deepglobe, globe, raw))
    assert any(server.authorization)
    said = "".join(capfd.readouterr())
    assert "s3cret" not in said
    assert ("can be read by other users" in said) == (kind == "file")
    assert not [path for path in Path("data").rglob("*.json") if "s3cret" in path.read_text()]


@pytest.mark.parametrize("content", ["{", '{"username": "me"}', '"s3cret"', "[1]"])
def test_a_damaged_token_is_not_told(globe: deepglobe.Settings, raw: Path, content: str) -> None:
    put(Path.home() / ".kaggle", {"kaggle.json": content.encode()})
    with pytest.raises(UserError, match="is not a Kaggle token") as refused:
        deepglobe.download(globe, raw)
    assert "s3cret" not in str(refused.value)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (answer(401), "requires a login .*accept its terms"),
        (answer(403), "refuses access .*open the page of me/globe on Kaggle"),
        (answer(200, b"<html>", Content_Type="text/html"), "is a web page, not deepglobe.zip"),
        (answer(429), "answers 429, 2 times in a row"),
    ],
)
def test_kaggle_refuses(
    server: Server,
    globe: deepglobe.Settings,
    raw: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[Any], bool],
    message: str,
) -> None:
    token(monkeypatch)
    server.always = lambda handler: handler.path.startswith("/api") and fault(handler)
    with pytest.raises(UserError, match=message) as refused:
        deepglobe.download(globe, raw)
    assert "s3cret" not in str(refused.value)
    assert [path.name for path in raw.iterdir()] == ["splits"]
    server.always = None
    check_globe(prepared(deepglobe, globe, raw))


def test_an_archive_that_comes_damaged_is_fetched_again(
    server: Server, globe: deepglobe.Settings, raw: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token(monkeypatch)
    whole = server.files["/api/me/globe"]
    server.files["/api/me/globe"] = whole[: len(whole) // 2]
    with pytest.raises(UserError, match="is damaged, truncated or not an archive"):
        deepglobe.download(globe, raw)
    server.files["/api/me/globe"] = whole
    check_globe(prepared(deepglobe, globe, raw))


# --- ISIC ---------------------------------------------------------------------------------------

INPUT, TRUTH = (part.name for part in isic.PARTS)
ISIC_IDS = [f"ISIC_{number:07}" for number in range(20)]


def isic_pair(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    height, width = rng.integers(5, 20, 2)  # of many sizes
    image = rng.integers(0, 255, (height, width, 3)).astype(np.uint8)
    return image, rng.integers(0, 2, (height, width)).astype(np.uint8)


def isic_files() -> dict[str, bytes]:
    files = {f"{INPUT}/LICENSE.txt": b"-", f"{TRUTH}/ATTRIBUTION.txt": b"-"}
    for number, id in enumerate(ISIC_IDS):
        image, index = isic_pair(number)
        files[f"{INPUT}/{id}.jpg"] = encoded(image, "JPEG")
        files[f"{TRUTH}/{id}_segmentation.png"] = encoded(255 * index, "PNG")
    return files


@pytest.fixture
def skin(server: Server, monkeypatch: pytest.MonkeyPatch) -> isic.Settings:
    """The challenge's bucket on loopback."""
    parts = []
    for part in isic.PARTS:
        files = {k: v for k, v in isic_files().items() if k.startswith(f"{part.name}/")}
        server.files[f"/2018/{part.name}.zip"] = content = zipped(files)
        parts.append(isic.Part(part.name, len(content), part.pattern))
    monkeypatch.setattr(isic, "PARTS", tuple(parts))
    monkeypatch.setattr(isic, "IMAGES", len(ISIC_IDS))
    return isic.Settings(url=f"{server.url}/2018", patience=QUICK)


def check_skin(dataset: Dataset) -> None:
    assert {split: len(ids) for split, ids in dataset.splits.items()} == {
        "train": 16,
        "val": 2,
        "test": 2,
    }
    for number, id in enumerate(ISIC_IDS):
        assert np.array_equal(dataset.read(id)[1].numpy(), isic_pair(number)[1])


def test_isic_from_its_addresses(server: Server, skin: isic.Settings, raw: Path) -> None:
    dataset = prepared(isic, skin, raw)
    check_skin(dataset)
    assert "never published" in dataset.credit
    assert no_partial_files(raw)
    server.asked.clear()
    isic.download(skin, raw)
    assert not server.asked
    other = isic.Settings(url=skin.url, seed=1, patience=QUICK)
    assert prepared(isic, other, raw).splits != dataset.splits


@pytest.mark.parametrize("form", ["folders", "archives"])
def test_isic_as_the_user_has_put_it(
    server: Server, skin: isic.Settings, raw: Path, form: str
) -> None:
    if form == "folders":
        put(raw, isic_files())
    else:
        put(raw, {path.rpartition("/")[2]: content for path, content in server.files.items()})
    check_skin(prepared(isic, skin, raw))
    assert not server.asked


def test_isic_of_another_size_is_refused_before_it_comes(
    server: Server, skin: isic.Settings, raw: Path
) -> None:
    path = f"/2018/{INPUT}.zip"
    server.files[path] += b"-"
    with pytest.raises(UserError, match=r"bytes where \d+ are expected: .*`sizes_checked: false`"):
        isic.download(skin, raw)
    assert len(server.asked) == 1
    check_skin(prepared(isic, isic.Settings(skin.seed, skin.url, False, QUICK), raw))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (f"{TRUTH}/{ISIC_IDS[3]}_segmentation.png", "ISIC_0000003.jpg has no label in"),
        (f"{INPUT}/{ISIC_IDS[3]}.jpg", r"has no image in .*\(1 more"),
    ],
)
def test_isic_with_something_missing(
    skin: isic.Settings, raw: Path, spoil: str, message: str
) -> None:
    put(raw, {name: content for name, content in isic_files().items() if name != spoil})
    with pytest.raises(UserError, match=message):
        isic.download(skin, raw)


# --- Inria --------------------------------------------------------------------------------------


def tile(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    image = rng.integers(0, 255, (SIDE, SIDE, 3)).astype(np.uint8)
    return image, rng.integers(0, 2, (SIDE, SIDE)).astype(np.uint8)


def tile_files() -> dict[str, bytes]:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[33550] = (0.3, 0.3, 0.0)  # ModelPixelScale: a GeoTIFF
    tags[33922] = (0.0, 0.0, 0.0, 5e5, 5e6, 0.0)
    files = {}
    for number, id in enumerate(CITIES):
        image, index = tile(number)
        files[f"AerialImageDataset/train/images/{id}.tif"] = encoded(image, "TIFF", tiffinfo=tags)
        files[f"AerialImageDataset/train/gt/{id}.tif"] = encoded(255 * index, "TIFF")
    files["AerialImageDataset/test/images/sfo1.tif"] = encoded(image, "TIFF")
    return files


@pytest.fixture
def aerial(server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> inria.Settings:
    """Inria's server on loopback: a zip in a 7z in five volumes."""
    found = lists(CITIES, "_sat.tif")
    expect_lists(monkeypatch, inria, found)
    path = tmp_path / "whole.7z"
    with py7zr.SevenZipFile(path, "w") as archive:
        archive.writestr(zipped(tile_files()), "NEW2-AerialImageDataset.zip")
    content = path.read_bytes()
    path.unlink()
    size = -(-len(content) // 5)
    volumes = {
        f"aerialimagelabeling.7z.00{number + 1}": content[number * size : (number + 1) * size]
        for number in range(5)
    }
    sha256 = tuple(hashlib.sha256(piece).hexdigest() for piece in volumes.values())
    monkeypatch.setattr(inria, "VOLUMES", sha256)
    server.files = {f"/lists/{name}": one for name, one in found.items()}
    server.files |= {f"/aerial/{name}": piece for name, piece in volumes.items()}
    return inria.Settings(
        url=f"{server.url}/aerial", lists_url=f"{server.url}/lists", side_px=SIDE, patience=QUICK
    )


def check_aerial(dataset: Dataset) -> None:
    assert {split: len(ids) for split, ids in dataset.splits.items()} == COUNTS
    for number, id in enumerate(CITIES):
        image, label = dataset.read(id)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), tile(number)[0])
        assert np.array_equal(label.numpy(), tile(number)[1])


def test_inria_from_its_volumes(server: Server, aerial: inria.Settings, raw: Path) -> None:
    check_aerial(prepared(inria, aerial, raw))
    assert not list(raw.rglob("sfo*"))
    assert no_partial_files(raw)
    server.asked.clear()
    inria.download(aerial, raw)
    assert not server.asked


@pytest.mark.parametrize("form", ["folder", "train alone", "zip", "volumes"])
def test_inria_as_the_user_has_put_it(
    server: Server, aerial: inria.Settings, raw: Path, form: str
) -> None:
    if form == "folder":
        put(raw, tile_files())
    elif form == "train alone":
        files = tile_files().items()
        put(raw, {n.removeprefix("AerialImageDataset/"): c for n, c in files})
    elif form == "zip":
        put(raw, {"NEW2-AerialImageDataset.zip": zipped(tile_files())})
    else:
        put(raw, {p.rpartition("/")[2]: c for p, c in server.files.items() if "aerial" in p})
    check_aerial(prepared(inria, aerial, raw))
    assert not any(path.startswith("/aerial") for path, _ in server.asked)


def test_a_volume_that_is_not_the_expected_one(
    server: Server, aerial: inria.Settings, raw: Path
) -> None:
    name = "/aerial/aerialimagelabeling.7z.003"
    right = server.files[name]
    server.files[name] = bytes(reversed(right))
    with pytest.raises(UserError, match=r"7z\.003 .* has SHA-256 .* it was deleted"):
        inria.download(aerial, raw)
    server.files[name] = right
    server.asked.clear()
    check_aerial(prepared(inria, aerial, raw))
    assert not any(path.endswith(("001", "002")) for path, _ in server.asked)


def test_a_tile_that_is_missing(aerial: inria.Settings, raw: Path) -> None:
    files = tile_files()
    del files["AerialImageDataset/train/gt/austin2.tif"]
    put(raw, files)
    with pytest.raises(UserError, match=r"gt/austin2\.tif is missing, which the published lists"):
        inria.download(aerial, raw)


@pytest.mark.parametrize("module", [inria, isic])
def test_both_means_of_two_classes(module: Any) -> None:
    """All building: what an ignored background would score 1 with.

    By hand: 30 building and 70 background pixels, all predicted as building."""
    about = module.about(module.Settings())
    matrix = np.array([[0, 70], [0, 30], [0, 0]])
    both = metrics.miou(matrix, about.classes, about.ignored)
    one = metrics.miou(matrix, about.classes, about.ignored, leave_out=about.rare)
    assert one == pytest.approx(0.30)
    assert both == pytest.approx(0.15)


@pytest.mark.parametrize("module", [deepglobe, isic, inria])
def test_the_addresses_are_encrypted_ones(module: Any) -> None:
    settings = module.Settings()
    addresses = [value for key, value in vars(settings).items() if key.endswith("url")]
    assert addresses
    assert all(address.startswith("https://") for address in addresses)


@pytest.mark.parametrize("path", sorted((ROOT / "suites").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_data_sets_of_the_suites_that_come_along_are_right(path: Path) -> None:
    suite = read_suite(path)
    for name in suite.datasets:
        source, settings, _ = open_source(suite, name)
        about = source.about(settings)
        assert len(about.classes) == len(set(about.palette))
        assert {*about.ignored, *about.rare} <= set(about.classes)


def test_the_published_counts_add_up() -> None:
    """Those of the lists are in the text; the lists themselves are known by SHA-256."""
    counts = {
        module: [int(n) for n in re.findall(r"(\d+) (?:train|val|test)\b", module.CREDIT)]
        for module in (deepglobe, inria)
    }
    assert counts[deepglobe] == [454, 207, 142]
    assert sum(counts[deepglobe]) == 803
    assert sum(counts[inria]) == 180
    assert len(inria.VOLUMES) == 5
