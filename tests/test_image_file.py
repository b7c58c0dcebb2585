"""One reader of image files: every kind that the formats allow gives the pixels that were stored, or is
refused in a sentence, whoever reads it."""

import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp

from bench.errors import UserError
from data.image_file import blocks, read_image, read_numbers
from data.image_header import inspect

COLOURS = {"red": ColorInterp.red, "green": ColorInterp.green, "blue": ColorInterp.blue}
RNG = np.random.default_rng(0)
SIDES = st.tuples(st.integers(1, 70), st.integers(1, 70))
PICTURES = settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def tiff(path: Path, bands: np.ndarray, kinds: Sequence[ColorInterp] = (), **more: Any) -> Path:
    """(C, H, W) as a TIFF."""
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"driver": "GTiff", "dtype": bands.dtype, "count": count, **more}
        with rasterio.open(path, "w", height=height, width=width, **options) as file:
            if kinds:
                file.colorinterp = kinds
            file.write(bands)
    return path


def turned(array: np.ndarray, orientation: int) -> np.ndarray:
    """What an image viewer shows of stored rows, by the table of EXIF 2.3: where row 0 and column 0
    are seen."""
    row0, column0 = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }[orientation]  # fmt: skip
    if row0 in ("left", "right"):
        array = array.swapaxes(0, 1)
        return array[:: 1 if column0 == "top" else -1, :: 1 if row0 == "left" else -1]
    return array[:: 1 if row0 == "top" else -1, :: 1 if column0 == "left" else -1]


@st.composite
def layouts(draw: st.DrawFn) -> dict[str, Any]:
    """How a TIFF lays out its pixels; none changes them."""
    found: dict[str, Any] = {
        "compress": draw(st.sampled_from(["none", "lzw", "deflate", "zstd", "lerc", "packbits"])),
        "interleave": draw(st.sampled_from(["pixel", "band"])),
        "endianness": draw(st.sampled_from(["LITTLE", "BIG"])),
        "bigtiff": draw(st.sampled_from(["YES", "NO"])),
    }
    if found["compress"] == "none":  # where GDAL does not turn the bytes of some last blocks
        found["endianness"] = "LITTLE"
    if draw(st.booleans()):
        sides = st.sampled_from([16, 32, 48])
        found |= {"tiled": True, "blockxsize": draw(sides), "blockysize": draw(sides)}
    else:
        found["blockysize"] = draw(st.integers(1, 80))
    return found


@PICTURES
@given(SIDES, layouts(), st.integers(0, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_tiff_layouts_and_the_place_of_alpha(
    tmp_path: Path,
    size: tuple[int, int],
    layout: dict[str, Any],
    place: int,
    named: bool,
    seed: int,
) -> None:
    """RGB with an alpha band before, between, after, or none (4)."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (3, *size), np.uint8)
    alpha = rng.integers(0, 3, (1, *size), np.uint8) * 127
    kinds: list[ColorInterp] = list(COLOURS.values())
    bands = rgb
    if place < 4:
        if layout["compress"] == "lerc":  # libtiff does not store pixels whose fourth band is 0
            layout = layout | {"compress": "zstd"}
        bands = np.concatenate([rgb[:place], alpha, rgb[place:]])
        kinds.insert(place, ColorInterp.alpha)
    elif named:
        kinds = []  # three bands of grey, undefined, undefined: how many programs write RGB
    path = tiff(tmp_path / "a.tif", bands, kinds, **layout)
    pixels, hidden = read_image(path)
    assert np.array_equal(pixels, rgb.transpose(1, 2, 0))
    if place < 4:
        assert hidden is not None
        assert np.array_equal(hidden, alpha[0] == 0)
    else:
        assert hidden is None


@PICTURES
@given(SIDES, st.sampled_from([1, 2, 4, 8]), st.sampled_from(["PNG", "GTiff"]), st.booleans(),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_grey_levels_and_numbers_of_few_bits(
    tmp_path: Path, size: tuple[int, int], bits: int, driver: str, inverted: bool, seed: int
) -> None:
    """As an image the largest level is white (black where the file says so); as a mask a number is a
    number."""
    levels = np.random.default_rng(seed).integers(0, 2**bits, size, np.uint8)
    path = tmp_path / f"a.{'png' if driver == 'PNG' else 'tif'}"
    if driver == "PNG":
        write_png(path, levels, bits)
    else:
        white = "MINISWHITE" if inverted else "MINISBLACK"
        tiff(path, levels[None], nbits=bits, photometric=white)
        if bits == 1:  # GDAL writes some small ones as zeros alone, as Pillow sees too
            assume(np.array_equal(np.asarray(Image.open(path)), levels != inverted))
    numbers, hidden = read_numbers(path)
    assert np.array_equal(numbers, levels)
    assert hidden is None
    pixels, _ = read_image(path)
    shown = levels.astype(int) * 255 // (2**bits - 1)  # exact: 255 is divisible
    shown = 255 - shown if inverted and driver == "GTiff" else shown
    assert np.array_equal(pixels, np.repeat(shown[..., None], 3, 2))


@PICTURES
@given(SIDES, st.lists(st.integers(0, 255), max_size=6), st.sampled_from([1, 2, 4, 8]),
       st.integers(0, 2**32 - 1))  # fmt: skip
def test_palettes_with_any_transparent_entries(
    tmp_path: Path, size: tuple[int, int], alphas: list[int], bits: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    entries = min(2**bits, 6)
    indices = rng.integers(0, entries, size, np.uint8)
    palette = rng.integers(0, 256, (entries, 3), np.uint8)
    alphas = alphas[:entries]
    path = tmp_path / "a.png"
    write_png(path, indices, bits, palette, bytes(alphas))
    pixels, hidden = read_image(path)
    assert np.array_equal(pixels, palette[indices])
    expected = np.array([*alphas, *[255] * (entries - len(alphas))])[indices] == 0
    assert np.array_equal(np.zeros(size, bool) if hidden is None else hidden, expected)
    numbers, hidden = read_numbers(path)
    assert np.array_equal(numbers, indices)  # whatever the palette
    assert hidden is None


@PICTURES
@given(
    SIDES,
    st.integers(1, 8),
    st.sampled_from(["png", "jpg", "tif"]),
    layouts(),
    st.integers(0, 2**32 - 1),
)
def test_orientation(
    tmp_path: Path,
    size: tuple[int, int],
    orientation: int,
    suffix: str,
    layout: dict[str, Any],
    seed: int,
) -> None:
    stored = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    plain, path = tmp_path / f"plain.{suffix}", tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    Image.fromarray(stored).save(plain)
    Image.fromarray(stored).save(path, exif=exif)
    expected, _ = read_image(plain)
    if suffix != "jpg":
        assert np.array_equal(expected, stored)
    found, _ = read_image(path)
    assert np.array_equal(found, turned(expected, orientation))
    image = inspect(path)
    assert (image.height, image.width) == found.shape[:2]


@PICTURES
@given(SIDES, st.sampled_from(["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64",
       "float32", "float64"]), layouts(), st.booleans(), st.integers(0, 2**32 - 1))  # fmt: skip
def test_numbers_of_every_kind_with_any_nodata(
    tmp_path: Path, size: tuple[int, int], kind: str, layout: dict[str, Any], below: bool, seed: int
) -> None:
    numbers = np.random.default_rng(seed).integers(0, 100, size).astype(kind)
    low, high = (-9999, 99999) if kind[0] == "f" else (np.iinfo(kind).min, np.iinfo(kind).max)
    nodata = max(low, -(2**53)) if below else min(high, 2**53)  # which rasterio takes exactly
    blank = np.random.default_rng(seed + 1).random(size) < 0.3
    numbers[blank] = nodata
    if layout["compress"] == "lerc" and kind in ("int64", "uint64"):  # which it cannot store
        layout = layout | {"compress": "zstd"}
    path = tiff(tmp_path / "a.tif", numbers[None], nodata=nodata, **layout)
    found, hidden = read_numbers(path)
    assert hidden is not None
    assert np.array_equal(hidden, numbers == np.array(nodata, kind))
    assert np.array_equal(found[~hidden], numbers[~hidden].astype(np.int64))


@PICTURES
@given(SIDES, st.permutations([1, 2, 3, 4, 5]), st.integers(0, 2**32 - 1))
def test_the_order_of_bands_never_changes_what_is_hidden(
    tmp_path: Path, size: tuple[int, int], order: list[int], seed: int
) -> None:
    bands = np.random.default_rng(seed).integers(0, 2, (5, *size), np.uint8)
    path = tiff(tmp_path / "a.tif", bands, nodata=0)
    image = inspect(path, order[:3])
    for block in blocks(image):
        place = np.s_[
            block.top : block.top + block.pixels.shape[0],
            block.left : block.left + block.pixels.shape[1],
        ]
        stored = bands[(slice(None), *place)]
        assert np.array_equal(
            block.pixels, stored[[band - 1 for band in order[:3]]].transpose(1, 2, 0)
        )
        assert block.hidden is not None
        assert np.array_equal(block.hidden, (stored == 0).all(0))


def test_a_cameras_jpeg_with_a_second_picture_is_its_first(tmp_path: Path) -> None:
    first = RNG.integers(0, 256, (40, 50, 3), np.uint8)
    Image.fromarray(first).save(tmp_path / "plain.jpg")
    second = [Image.fromarray(first[::2, ::2])]
    Image.fromarray(first).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=second)
    assert np.array_equal(read_image(tmp_path / "a.jpg")[0], read_image(tmp_path / "plain.jpg")[0])


def test_files_beside_an_image_are_not_read(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (3, 40, 50), np.uint8)
    path = tiff(tmp_path / "a.tif", rgb, list(COLOURS.values()))
    (tmp_path / "a.tfw").write_text("10\n0\n0\n-10\n500000\n4000000\n")
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><NoDataValue>0</NoDataValue></PAMRasterBand></PAMDataset>'
    )
    tiff(tmp_path / "a.tif.msk", np.zeros((1, 40, 50), np.uint8))
    pixels, hidden = read_image(path)
    assert np.array_equal(pixels, rgb.transpose(1, 2, 0))
    assert hidden is None
    assert inspect(path).georeference == {}


def test_threads_read_at_once_without_warnings(tmp_path: Path) -> None:
    for number in range(8):
        Image.new("L", (9, 9), number).save(tmp_path / f"{number}.png")
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda n: read_numbers(tmp_path / f"{n % 8}.png")[0].max(), range(400))
    assert list(found) == [number % 8 for number in range(400)]


def test_an_internal_mask_hides(tmp_path: Path) -> None:
    rgb = RNG.integers(0, 256, (3, 40, 50), np.uint8)
    mask = RNG.random((40, 50)) < 0.5
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        path = tiff(tmp_path / "a.tif", rgb, list(COLOURS.values()))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with rasterio.open(path, "r+") as file:
                file.write_mask(mask)
    assert np.array_equal(read_image(path)[1], ~mask)


def test_control_points_without_a_crs_and_rational_polynomials_are_kept(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", np.zeros((1, 8, 9), np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(path, "r+") as file:
            file.gcps = ([GroundControlPoint(0, 0, 10, 50)] * 3, rasterio.CRS())
    georeference = inspect(path).georeference
    assert len(georeference["gcps"]) == 3
    copy = tiff(tmp_path / "b.tif", np.zeros((1, 8, 9), np.uint8), **georeference)
    assert len(inspect(copy).georeference["gcps"]) == 3


def _pages(path: Path) -> None:
    page = Image.new("RGB", (20, 10))
    page.save(path, save_all=True, append_images=[page, page])


def _with_exif(exif: bytes) -> Callable[[Path], None]:
    return lambda path: Image.new("RGB", (9, 9)).save(path, exif=exif)


REFUSED = {
    "pages": ("a.tif", _pages, "has 3 pages"),
    "animation": ("a.png", _pages, "is animated"),
    "CMYK": ("a.tif", lambda path: Image.new("CMYK", (9, 9)).save(path), "CMYK"),
    "CMYK JPEG": ("a.jpg", lambda path: Image.new("CMYK", (9, 9)).save(path), "CMYK"),
    "Lab": ("a.tif", lambda path: Image.new("LAB", (9, 9)).save(path), "L\\*a\\*b\\*"),
    "16 bits": ("a.png", lambda path: Image.new("I;16", (9, 9)).save(path), "uint16"),
    "floats": ("a.tif", lambda path: tiff(path, np.zeros((3, 9, 9), np.float32)), "float32"),
    "two bands": ("a.tif", lambda path: tiff(path, np.zeros((2, 9, 9), np.uint8)), "has the bands"),
    "cut EXIF": ("a.png", _with_exif(b"II*\0\x08\0\0\0\x02\0\x12\x01"), "it is damaged"),
    "EXIF elsewhere": ("a.png", _with_exif(b"II+\0\x08\0\0\0" + b"\xff" * 8), "it is damaged"),
    "GIF": (
        "a.png",
        lambda path: Image.new("P", (9, 9)).save(path, "GIF"),
        "not a PNG, JPEG or TIFF",
    ),
    "empty": ("a.png", lambda path: path.write_bytes(b""), "not a PNG, JPEG or TIFF"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_images_that_are_refused(tmp_path: Path, name: str) -> None:
    file, make, said = REFUSED[name]
    make(tmp_path / file)
    with pytest.raises(UserError, match=said) as refused:
        read_image(tmp_path / file)
    assert file in str(refused.value)


def write_png(
    path: Path,
    levels: np.ndarray,
    bits: int,
    palette: np.ndarray | None = None,
    alphas: bytes = b"",
) -> None:
    """A PNG of one channel, by its specification."""
    height, width = levels.shape
    spread = (levels[..., None] >> np.arange(bits)[::-1] & 1).reshape(height, width * bits)
    rows = np.packbits(spread, axis=1)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    kind = 0 if palette is None else 3

    def chunk(name: bytes, content: bytes) -> bytes:
        checked = name + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    parts = [chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))]
    if palette is not None:
        parts.append(chunk(b"PLTE", palette.tobytes()))
    if alphas:
        parts.append(chunk(b"tRNS", alphas))
    parts += [chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b"")]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
