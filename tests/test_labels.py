"""Images and labels as people have them: every case becomes what its rule says, or one sentence."""

import re
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import Affine

from bench.errors import UserError
from data import image_file
from data.image_file import read_image
from data.image_header import has_orientation
from data.labels import Entry, Survey, colour_decoder, id_decoder

RGB = ((0, 0, 0), (255, 0, 0), (0, 0, 255))
INDEX = np.array([[0, 1, 2, 0, 1, 2]] * 4, np.uint8)
MASK = np.array(RGB, np.uint8)[INDEX]
IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
IDS = {0: 0, 1: 1, 2: 2}


def saved(path: Path, pixels: Any, **more: Any) -> Path:
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    picture.save(path, **more)
    return path


def png16(path: Path, pixels: np.ndarray) -> Path:
    """A PNG of 16 bits a channel, RGB or grey, which Pillow cannot write."""
    height, width = pixels.shape[:2]
    kind = 2 if pixels.ndim == 3 else 0
    rows = pixels.astype(">u2").reshape(height, -1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", body), (b"IEND", b""))
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )
    return path


def palette(index: np.ndarray) -> Image.Image:
    picture = Image.fromarray(index, mode="P")
    picture.putpalette([level for colour in RGB for level in colour])
    return picture


def with_alpha(pixels: np.ndarray, alpha: int) -> np.ndarray:
    full = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    full[0, 1] = alpha
    return np.concatenate([pixels, full], -1)


def seen(path: Path) -> np.ndarray:
    """An image none of whose pixels is hidden."""
    pixels, hidden = read_image(path)
    assert hidden is None or not hidden.any()
    return pixels


# --- images -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more"),
    [("a.png", {}), ("a.tif", {}), ("a.TIFF", {}), ("a.tif", {"compression": "tiff_lzw"})],
)
def test_an_image_is_what_it_is(tmp_path: Path, name: str, more: dict[str, Any]) -> None:
    assert np.array_equal(seen(saved(tmp_path / name, IMAGE, **more)), IMAGE)


def test_a_geotiff_is_read_without_its_place(tmp_path: Path) -> None:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    tags[33550] = (0.3, 0.3, 0.0)  # ModelPixelScale
    tags[33922] = (0.0, 0.0, 0.0, 5e5, 5e6, 0.0)  # ModelTiepoint
    path = saved(tmp_path / "a.tif", IMAGE, tiffinfo=tags)
    assert np.array_equal(seen(path), IMAGE)
    mask = saved(tmp_path / "l.tif", np.where(INDEX == 1, 255, 0).astype(np.uint8), tiffinfo=tags)
    assert np.array_equal(id_decoder({0: 0, 255: 1})(mask), INDEX == 1)


def test_grey_becomes_rgb_and_opaque_alpha_goes(tmp_path: Path) -> None:
    grey = seen(saved(tmp_path / "g.png", IMAGE[..., 0]))
    assert np.array_equal(grey, np.repeat(IMAGE[..., :1], 3, -1))
    assert np.array_equal(seen(saved(tmp_path / "a.png", with_alpha(IMAGE, 255))), IMAGE)
    assert np.array_equal(seen(saved(tmp_path / "p.png", palette(INDEX))), MASK)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_exif_turns_image_and_label_alike(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = {1: 0, 3: 2, 6: -1, 8: 1}[orientation]
    image = saved(tmp_path / "a.png", IMAGE, exif=exif)
    label = saved(tmp_path / "l.png", MASK, exif=exif)
    assert np.array_equal(seen(image), np.rot90(IMAGE, turned))
    pair = Entry("train", "a", image, label, colour_decoder(RGB)).read()
    assert np.array_equal(pair.label, np.rot90(INDEX, turned))
    assert has_orientation(image) == (orientation != 1)


def test_a_label_that_was_made_of_the_unturned_image_does_not_fit(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = saved(tmp_path / "a.png", IMAGE, exif=exif)
    label = saved(tmp_path / "l.png", MASK)
    with pytest.raises(UserError, match="is 4 x 6 px, its image 6 x 4"):
        Entry("train", "a", image, label, colour_decoder(RGB)).read()


def cut(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def renamed(path: Path, name: str) -> Path:
    return path.rename(path.with_name(name))


NOISE = np.random.default_rng(0).integers(0, 255, (40, 60, 3)).astype(np.uint8)
BAD_IMAGES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "16 bit RGB": (lambda p: png16(p / "a.png", IMAGE), "a.png holds uint16"),
    "16 bit grey": (lambda p: png16(p / "a.png", INDEX), "a.png holds uint16"),
    "16 bit TIFF": (lambda p: saved(p / "a.tif", INDEX.astype(np.uint16)), "holds uint16"),
    "float TIFF": (lambda p: saved(p / "a.tif", INDEX.astype(np.float32)), "holds float32"),
    "CMYK": (lambda p: saved(p / "a.jpg", Image.new("CMYK", (6, 4))), "has CMYK colours"),
    "cut PNG": (lambda p: cut(saved(p / "a.png", NOISE)), "is damaged: it is truncated"),
    "cut JPEG": (lambda p: cut(saved(p / "a.jpg", NOISE)), "cannot be decoded"),
    "cut TIFF": (lambda p: cut(saved(p / "a.tif", NOISE)), "cannot be decoded"),
    "another format": (
        lambda p: renamed(saved(p / "a.gif", INDEX), "a.png"),
        "is not a PNG, JPEG or TIFF",
    ),
    "text": (lambda p: [q := p / "a.png", q.write_text("a,b")][0], "is not a PNG"),
    "empty": (lambda p: [q := p / "a.png", q.touch()][0], "is not a PNG"),
    "missing": (lambda p: p / "a.png", "a.png is missing"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_an_image_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    make, message = BAD_IMAGES[name]
    with pytest.raises(UserError, match=message) as refused:
        seen(make(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_picture_that_claims_to_be_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path / "a.png", IMAGE)
    monkeypatch.setattr(image_file, "LARGEST_PX", 23)
    with pytest.raises(UserError, match="has 6 x 4 px, more than fits"):
        seen(path)
    monkeypatch.setattr(image_file, "LARGEST_PX", 24)
    seen(path)


# --- labels by colour ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["RGB", "P", "RGBA", "TIFF"])
def test_colours_become_classes(tmp_path: Path, kind: str) -> None:
    pictures = {"RGB": MASK, "P": palette(INDEX), "RGBA": with_alpha(MASK, 255), "TIFF": MASK}
    path = saved(tmp_path / ("a.tif" if kind == "TIFF" else "a.png"), pictures[kind])
    assert np.array_equal(colour_decoder(RGB)(path), INDEX)


def test_a_colour_may_mean_unlabelled(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", MASK)
    found = colour_decoder(RGB[:2], unlabelled=[RGB[2]])(path)
    assert np.array_equal(found, np.where(INDEX == 2, 255, INDEX))


def test_near_colours_are_taken_within_the_tolerance_alone(tmp_path: Path) -> None:
    near = MASK.copy()
    near[0, 1] = (245, 10, 3)
    path = saved(tmp_path / "a.png", near)
    assert np.array_equal(colour_decoder(RGB, tolerance=10)(path), INDEX)
    message = (
        r"a\.png has 1 px \(4.17 %\) whose colour is within 9 grey levels of no class, the first "
        r"\(245, 10, 3\) at row 0, column 1: name the colour"
    )
    with pytest.raises(UserError, match=message):
        colour_decoder(RGB, tolerance=9)(path)
    with pytest.raises(UserError, match="within 0 grey levels"):
        colour_decoder(RGB)(path)


def test_a_tolerance_of_127_is_the_threshold_at_128(tmp_path: Path) -> None:
    """DeepGlobe's own rule: a channel is on from 128."""
    levels = np.random.default_rng(1).integers(0, 256, (50, 60, 3)).astype(np.uint8)
    levels[..., 1:] = levels[..., 2:]  # no (255, 0, 0) and the like: every colour has a class
    corners = [(a, b, b) for a in (0, 255) for b in (0, 255)]
    found = colour_decoder(corners, tolerance=127)(saved(tmp_path / "a.png", levels))
    assert np.array_equal(found, 2 * (levels[..., 0] >= 128) + (levels[..., 1] >= 128))


def test_a_mask_that_was_a_jpeg(tmp_path: Path) -> None:
    big = np.kron(MASK, np.ones((16, 16, 1), np.uint8))
    path = saved(tmp_path / "a.jpg", big, quality=95, subsampling=0)
    assert (
        colour_decoder(RGB, tolerance=100)(path) == np.kron(INDEX, np.ones((16, 16)))
    ).mean() > 0.99
    with pytest.raises(UserError, match=r"whose colour is within 0 grey levels of no class"):
        colour_decoder(RGB)(path)


def test_colours_that_leave_a_choice_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"are 255 grey levels apart, too close for a tolerance of 128"
    ):
        colour_decoder(RGB, tolerance=128)
    with pytest.raises(UserError, match="are 0 grey levels apart"):
        colour_decoder([*RGB, RGB[0]])


# --- labels by number ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["L", "P", "RGB", "LA", "16 bit PNG", "16 bit TIFF", "1"])
def test_numbers_become_classes(tmp_path: Path, kind: str) -> None:
    wanted = INDEX % 2 if kind == "1" else INDEX
    make = {
        "L": lambda: saved(tmp_path / "a.png", INDEX),
        "P": lambda: saved(tmp_path / "a.png", palette(INDEX)),
        "RGB": lambda: saved(tmp_path / "a.png", np.repeat(INDEX[..., None], 3, -1)),
        "LA": lambda: saved(tmp_path / "a.png", with_alpha(INDEX[..., None], 255)),
        "16 bit PNG": lambda: png16(tmp_path / "a.png", INDEX),
        "16 bit TIFF": lambda: saved(tmp_path / "a.tif", INDEX.astype(np.uint16)),
        "1": lambda: saved(tmp_path / "a.png", (INDEX % 2).astype(bool)),
    }[kind]
    assert np.array_equal(id_decoder(IDS)(make()), wanted)


def test_numbers_are_mapped_and_255_is_unlabelled_unless_it_is_a_class(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", np.array([[7, 255, 0, 3]], np.uint8))
    assert id_decoder({7: 0, 0: 1, 3: 255})(path).tolist() == [[0, 255, 1, 255]]
    assert id_decoder({7: 0, 0: 1, 3: 2, 255: 3})(path).tolist() == [[0, 3, 1, 2]]
    wide = saved(tmp_path / "a.tif", np.array([[70, 1000]], np.uint16))
    assert id_decoder({70: 0, 1000: 1})(wide).tolist() == [[0, 1]]


BAD_LABELS: dict[str, tuple[Callable[[Path], Path], str]] = {
    "unknown": (
        lambda p: saved(p / "a.png", np.array([[0, 1], [9, 9]], np.uint8)),
        r"has 2 px \(50 %\) with a number that is no class, the first 9 at row 1, column 0; known "
        "are 0, 1, 2",
    ),
    "16 bit": (
        lambda p: saved(p / "a.tif", np.array([[0, 256]], np.uint16)),
        "the first 256 at row 0, column 1",
    ),
    "colours": (
        lambda p: saved(p / "a.png", MASK),
        "is an RGB mask where class numbers are expected: set",
    ),
    "JPEG": (lambda p: saved(p / "a.jpg", INDEX), "is a JPEG, which distorts class numbers"),
    "fractions": (
        lambda p: saved(p / "a.tif", INDEX.astype(np.float32) / 2),
        "has fractions where class numbers are expected",
    ),
    "cut": (lambda p: cut(saved(p / "a.png", NOISE[..., 0])), "is damaged: it is truncated"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_a_label_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    make, message = BAD_LABELS[name]
    with pytest.raises(UserError, match=message) as refused:
        id_decoder(IDS)(make(tmp_path))
    assert "\n" not in str(refused.value)


def geotiff(path: Path, bands: np.ndarray, left: float = 0.0, **more: Any) -> Path:
    """(C, H, W), `left` px to the right of a common place."""
    count, height, width = bands.shape
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 5e5 + 10 * left, 0, -10, 4e6), **more}
    options = {"driver": "GTiff", "dtype": bands.dtype, "count": count, **place}
    with rasterio.open(path, "w", height=height, width=width, **options) as file:
        file.write(bands)
    return path


@pytest.mark.parametrize("kind", ["int16", "int32", "float32", "float64"])
def test_nodata_of_geographic_software_is_unlabelled(tmp_path: Path, kind: str) -> None:
    numbers = INDEX.astype(kind)
    numbers[0, 0] = -9999
    path = geotiff(tmp_path / "a.tif", numbers[None], nodata=-9999)
    wanted = INDEX.copy()
    wanted[0, 0] = 255
    assert np.array_equal(id_decoder(IDS)(path), wanted)
    assert np.array_equal(id_decoder({**IDS, -9999: 255})(path), wanted)
    with pytest.raises(
        UserError, match="declares -9999 as nodata, which the settings make a class"
    ):
        id_decoder({**IDS, -9999: 3})(path)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("nodata", [np.nan, np.inf, -np.inf, 0.5])
def test_nodata_that_is_no_whole_number_is_unlabelled(
    tmp_path: Path, kind: str, nodata: float
) -> None:
    numbers = INDEX.astype(kind)
    numbers[0, 0] = nodata
    wanted = INDEX.copy()
    wanted[0, 0] = 255
    path = geotiff(tmp_path / "a.tif", numbers[None], nodata=nodata)
    assert np.array_equal(id_decoder(IDS)(path), wanted)


def test_a_label_that_lies_elsewhere_than_its_image(tmp_path: Path) -> None:
    image = geotiff(tmp_path / "a.tif", IMAGE.transpose(2, 0, 1), photometric="rgb")
    label = geotiff(tmp_path / "l.tif", INDEX[None], left=0.4)
    assert np.array_equal(Entry("train", "a", image, label, id_decoder(IDS)).read().label, INDEX)
    label = geotiff(tmp_path / "l.tif", INDEX[None], left=3)
    with pytest.raises(UserError, match=r"l\.tif begins 3\.0 px to the right of .*a\.tif"):
        Entry("train", "a", image, label, id_decoder(IDS)).read()


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"transform": Affine(20, 0, 5e5, 0, -20, 4e6)}, "ends 7.2 px away from its end"),
        ({"transform": Affine(0, 10, 5e5, -10, 0, 4e6)}, "ends 8.5 px away"),
        ({"transform": Affine(10, 0, 5e5, 0, 10, 4e6 - 40)}, "4.0 px below it"),
        ({"crs": "EPSG:32632"}, "px to the right of"),
        (
            {"crs": "EPSG:4326", "transform": Affine(1e-4, 0, 10, 0, -1e-4, 50)},
            "px to the right of",
        ),
        ({"crs": 'LOCAL_CS["site",UNIT["metre",1]]'}, None),  # nothing relates it to the earth
        ({"transform": Affine(0, 0, 5e5, 0, 0, 4e6)}, "px away"),
        ({"crs": None}, None),
    ],
)
def test_a_label_of_other_pixels_or_of_another_system(
    tmp_path: Path, other: dict[str, Any], said: str | None
) -> None:
    image = geotiff(tmp_path / "a.tif", IMAGE.transpose(2, 0, 1), photometric="rgb")
    entry = Entry(
        "train", "a", image, geotiff(tmp_path / "l.tif", INDEX[None], **other), id_decoder(IDS)
    )
    if said:
        with pytest.raises(UserError, match=re.escape(said)):
            entry.read()
    else:
        assert np.array_equal(entry.read().label, INDEX)


def test_an_image_whose_georeference_says_nothing(tmp_path: Path) -> None:
    nowhere = {"transform": Affine(0, 0, 5e5, 0, 0, 4e6), "photometric": "rgb"}
    image = geotiff(tmp_path / "a.tif", IMAGE.transpose(2, 0, 1), **nowhere)
    label = geotiff(tmp_path / "l.tif", INDEX[None])
    assert np.array_equal(Entry("train", "a", image, label, id_decoder(IDS)).read().label, INDEX)


def test_transparent_pixels_are_unlabelled(tmp_path: Path) -> None:
    label = saved(tmp_path / "l.png", INDEX)
    for alpha in (0, 1, 254):
        image = saved(tmp_path / "a.png", with_alpha(IMAGE, alpha))
        pair = Entry("train", "a", image, label, id_decoder(IDS)).read()
        assert np.array_equal(pair.image, IMAGE)
        assert (pair.label[0, 1] == 255) == (alpha == 0)
    label = saved(tmp_path / "l.png", with_alpha(INDEX[..., None], 0))
    assert id_decoder(IDS)(label)[0, 1] == 255


def test_a_label_of_another_size(tmp_path: Path) -> None:
    image = saved(tmp_path / "a.png", IMAGE)
    label = saved(tmp_path / "l.png", MASK[:3])
    with pytest.raises(UserError, match=r"l\.png is 3 x 6 px, its image 4 x 6"):
        Entry("train", "a", image, label, colour_decoder(RGB)).read()


def test_images_of_a_set_of_squares_have_its_size_in_both_axes(tmp_path: Path) -> None:
    for height, width in ((4, 4), (4, 6), (6, 4)):
        image, label = tmp_path / "image.png", tmp_path / "label.png"
        Image.new("RGB", (width, height)).save(image)
        Image.new("L", (width, height)).save(label)
        survey = Survey([Entry("train", "a", image, label, id_decoder({0: 0}))], [], square_px=4)
        if height == width:
            assert [pair.label.shape for pair in survey.pairs()] == [(4, 4)]
        else:
            with pytest.raises(UserError, match=f"is {height} x {width} px, but this data set has"):
                list(survey.pairs())
