"""The headers of image files: size, bands, orientation, georeference, and whether it is supported.

PNG, JPEG and TIFF (BigTIFF, GeoTIFF, COG) are recognised by their first bytes. Files beside an image
(world files, statistics, external masks) are not read."""

import io
import math
import os
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.warp import transform

from bench.errors import UserError

Bytes = NDArray[np.uint8]

TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
SIGNATURES = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", **dict.fromkeys(TIFF, "GTiff")}
"""First bytes of supported files -> the GDAL driver that may open them."""
MIB = 2**20
CACHE_BYTES = 16 * MIB
"""Size of GDAL's block cache; small, since each block is used once."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""Suffixes of image files in a folder."""
COLOUR_SPACES = {"CMYK": "CMYK", "YCbCrK": "CMYK", "CIELAB": "L*a*b*", "ICCLAB": "L*a*b*"}
"""GDAL's names of the colour spaces that it does not convert to RGB -> their usual names."""
RGB = (
    [ColorInterp.red, ColorInterp.green, ColorInterp.blue],
    [ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined],
)
DAMAGED = (RasterioError, CPLE_BaseError, struct.error, OverflowError, UnicodeDecodeError)
"""Errors that damaged files raise: rasterio does not wrap all errors of GDAL."""
_LOCK = threading.Lock()
ORIENTATION = 274  # tag of EXIF and TIFF
ORIENTATIONS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""EXIF orientation -> (transpose, then flip rows, then flip columns)."""


@dataclass(frozen=True)
class ImageFile:
    """The header of an image file."""

    path: Path
    height: int
    width: int
    """In px, of the upright image."""
    bands: tuple[int, ...]
    """Three bands, or one of grey levels, indices or numbers; counted from 1, as in GDAL."""
    colours: Bytes | None
    """(256, 4): RGB and alpha by value of the single band. None for grey levels and numbers."""
    count: int
    """Number of bands in the file."""
    alpha: int | None
    """The alpha band."""
    mask_bands: tuple[int, ...]
    """Bands with nodata or a mask in the file. A pixel is hidden if it is invalid in all of them."""
    nodata: float | None
    orientation: int
    """As in EXIF: 1 to 8, 1 is upright."""
    block: tuple[int, int]
    """(height, width) of the block that is decoded at once, as stored."""
    georeference: dict[str, Any]
    """CRS with transform or control points, and rational polynomial coefficients, as keyword arguments
    of `rasterio.open`."""

    @property
    def has_hidden_pixels(self) -> bool:
        """Whether the file can hide pixels: it has transparency, nodata or a mask."""
        transparent = self.colours is not None and bool((self.colours[:, 3] == 0).any())
        return transparent or self.alpha is not None or bool(self.mask_bands)


def inspect(path: Path, bands: Sequence[int] = (), numbers: bool = False) -> ImageFile:
    """Read and check the header of an image, or of a mask of `numbers`.

    Args:
        bands: red, green and blue, counted from 1; by default as the file declares them.

    Raises:
        UserError: the file is missing or not supported.
    """
    with open_image(path) as file:
        if len(file.subdatasets) > 1:
            raise UserError(
                f"{path} has {len(file.subdatasets)} pages: save the one to use as a separate file."
            )
        if file.driver == "PNG" and b"fdAT" in _png_chunks(path):
            raise UserError(f"{path} is animated: save the frame to use as a separate file.")
        space = COLOUR_SPACES.get(file.tags(ns="IMAGE_STRUCTURE").get("SOURCE_COLOR_SPACE", ""))
        if space:
            raise UserError(f"{path} has {space} colours: save it as RGB.")
        found = tuple(bands) or _bands(path, file, numbers)
        if len(found) not in (1, 3) or not all(1 <= band <= file.count for band in found):
            raise UserError(
                f"{path} has {file.count} bands: --bands takes three of them, from 1, for instance "
                "--bands 1 2 3."
            )
        if numbers:
            _check_numbers(path, file)
        else:
            _check_depth(path, file, found)
        orientation = _orientation(path, file)
        georeference = _georeference(file)
        if orientation != 1 and georeference:
            raise UserError(
                f"{path} has a georeference and an orientation tag ({orientation}) that turns it: "
                "save it upright, without the tag."
            )
        sides = (file.height, file.width)
        height, width = sides[::-1] if ORIENTATIONS[orientation][0] else sides
        return ImageFile(
            path=path,
            height=height,
            width=width,
            bands=found,
            colours=None if numbers or len(found) > 1 else _colours(file, found[0]),
            count=file.count,
            alpha=_alpha(file),
            # A PNG's nodata is the transparent entry of its palette, whose indices are numbers too.
            mask_bands=() if numbers and file.driver == "PNG" else _mask_bands(file),
            nodata=file.nodata,
            orientation=orientation,
            block=_block(path, file),
            georeference=georeference,
        )


def has_orientation(path: Path) -> bool:
    """Whether an orientation tag rotates or mirrors the stored pixels."""
    with open_image(path) as file:
        return _orientation(path, file) != 1


def check_alignment(image: Path, label: Path) -> None:
    """Raise a `UserError` if the georeference of a label of the image's size puts a corner more than
    half a pixel away from the image's corner."""
    with open_image(image) as one, open_image(label) as other:
        georeferenced = one.crs and other.crs and not one.transform.is_degenerate
        if not georeferenced or one.shape != other.shape:
            return
        corners = [(x, y) for y in (0, one.height) for x in (0, one.width)]
        points = [other.transform @ corner for corner in corners]
        if one.crs != other.crs:
            try:
                x, y = transform(other.crs, one.crs, *zip(*points, strict=True))
            except DAMAGED:  # no transformation between the two systems
                return
            points = list(zip(x, y, strict=True))
        pixels = [~one.transform @ point for point in points]
    left, top = pixels[0]
    if max(abs(left), abs(top)) > 0.5:
        raise UserError(
            f"{label} begins {left:.1f} px to the right of {image} and {top:.1f} px below it: crop "
            "both to the same area."
        )
    error_px = max(math.dist(*pair) for pair in zip(corners, pixels, strict=True))
    if error_px > 0.5:
        raise UserError(
            f"{label} begins where {image} does, and ends {error_px:.1f} px away from its end: save "
            "both with the same pixel size and direction."
        )


@contextmanager
def gdal() -> Iterator[None]:
    """A GDAL environment with a bounded cache that is strict about damage, ignores files beside an
    image, and does not warn of images without a georeference."""
    # Not catch_warnings, which is not thread-safe.
    with _LOCK:
        if all(category is not NotGeoreferencedWarning for _, _, category, *_ in warnings.filters):
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
    with rasterio.Env(
        GDAL_CACHEMAX=CACHE_BYTES,
        GDAL_PAM_ENABLED="NO",
        GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
        GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
        GTIFF_IGNORE_READ_ERRORS="NO",
    ):
        yield


def first_line(error: BaseException) -> str:
    """The first line of GDAL's message, which is the cause of rasterio's error."""
    return str(error.__cause__ or error).split("\n", 1)[0].rstrip(".")


@contextmanager
def open_image(path: Path) -> Iterator[Any]:
    """Open a file with rasterio; raises a `UserError` if it is missing, unsupported or damaged."""
    try:
        with path.open("rb") as file:
            signature = file.read(4)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    driver = next((SIGNATURES[one] for one in SIGNATURES if signature.startswith(one)), None)
    if driver is None:
        raise UserError(f"{path} is not a PNG, JPEG or TIFF file.")
    if driver == "PNG" and b"IEND" not in _png_chunks(path):
        raise UserError(f"{path} is damaged: it is truncated.")  # GDAL fills missing rows
    with gdal():
        try:
            with rasterio.open(path, driver=driver) as file:
                yield file
        except DAMAGED as error:
            raise UserError(
                f"{path} cannot be decoded ({first_line(error)}): it is damaged; create or "
                "download it again."
            ) from None


def _png_chunks(path: Path) -> dict[bytes, bytes]:
    """The chunks of a PNG by type; the content of all but eXIf is left out."""
    found = {}
    with path.open("rb") as file:
        offset = 8
        while len(chunk := os.pread(file.fileno(), 8, offset)) == 8:
            length = int.from_bytes(chunk[:4])
            found[chunk[4:]] = (
                os.pread(file.fileno(), length, offset + 8) if chunk[4:] == b"eXIf" else b""
            )
            if chunk[4:] == b"IEND":
                break
            offset += 12 + length
    return found


def _bands(path: Path, file: Any, numbers: bool) -> tuple[int, ...]:
    """The bands without alpha: one, or RGB."""
    kinds = {
        band: kind for band, kind in enumerate(file.colorinterp, 1) if kind != ColorInterp.alpha
    }
    if len(kinds) == 1 or list(kinds.values()) in RGB:
        return tuple(kinds)
    names = ", ".join(kind.name for kind in kinds.values())
    if numbers:
        raise UserError(f"{path} has the bands {names} where class numbers are expected.")
    raise UserError(
        f"{path} has the bands {names}: save it as RGB or grey, or choose three bands as red, green "
        "and blue, for instance --bands 1 2 3."
    )


def _check_depth(path: Path, file: Any, bands: Sequence[int]) -> None:
    kinds = {file.dtypes[band - 1] for band in bands}
    if kinds != {"uint8"}:
        raise UserError(
            f"{path} holds {', '.join(sorted(kinds))}, and networks take 8 bits a channel: scale it "
            "first, as its training images were (for instance with `gdal_translate -ot Byte -scale`)."
        )
    if len(bands) == 3 and _bits(file, bands[0]) != 8:
        raise UserError(f"{path} has {_bits(file, bands[0])} bits a channel: save it with 8.")


def _check_numbers(path: Path, file: Any) -> None:
    if file.driver == "JPEG":
        raise UserError(f"{path} is a JPEG, which distorts class numbers: use PNG or TIFF.")
    if np.dtype(file.dtypes[0]).kind not in "iuf":
        raise UserError(f"{path} holds {file.dtypes[0]} where class numbers are expected.")


def _bits(file: Any, band: int) -> int:
    return int(file.tags(ns="IMAGE_STRUCTURE", bidx=band).get("NBITS", 8))


def _colours(file: Any, band: int) -> Bytes | None:
    """RGB and alpha by stored value, for a palette, fewer than 8 bits, or an inverted band."""
    if file.colorinterp[band - 1] == ColorInterp.palette:
        table = np.full((256, 4), (0, 0, 0, 255), np.uint8)
        for number, colour in file.colormap(band).items():
            table[number] = colour
        return table
    bits, inverted = _bits(file, band), "MINISWHITE" in file.tags(ns="IMAGE_STRUCTURE")
    if bits == 8 and not inverted:
        return None
    levels = np.rint(np.minimum(np.arange(256) * 255 / (2**bits - 1), 255)).astype(np.uint8)
    levels = 255 - levels if inverted else levels
    return np.stack([levels, levels, levels, np.full(256, 255, np.uint8)], 1)


def _alpha(file: Any) -> int | None:
    kinds = list(file.colorinterp)
    return kinds.index(ColorInterp.alpha) + 1 if ColorInterp.alpha in kinds else None


def _mask_bands(file: Any) -> tuple[int, ...]:
    """All bands but alpha, if each has nodata or a mask of its own."""
    kinds = {MaskFlags.nodata, MaskFlags.per_dataset}
    bands = [band for band in range(1, file.count + 1) if band != _alpha(file)]
    flags = [set(file.mask_flag_enums[band - 1]) for band in bands]
    masked = all(one & kinds and MaskFlags.alpha not in one for one in flags)
    return tuple(bands) if masked else ()


def _orientation(path: Path, file: Any) -> int:
    if file.driver == "JPEG":
        found: Any = file.tags().get("EXIF_Orientation", "1").strip() or 1
    elif file.driver == "PNG":
        exif = _png_chunks(path).get(b"eXIf", b"").removeprefix(b"Exif\0\0")
        found = _tiff_short(io.BytesIO(exif), ORIENTATION) if exif else 1
    else:
        with path.open("rb") as stream:
            found = _tiff_short(stream, ORIENTATION)
    return int(found) if str(found) in map(str, ORIENTATIONS) else 1


def _tiff_short(file: BinaryIO, tag: int) -> int | None:
    """The 16-bit value of a tag in the first directory of a TIFF. GDAL does not report the orientation,
    and Pillow does not read every TIFF.

    Raises:
        struct.error: the file ends within the directory.
    """
    header = file.read(16)
    order = "<" if header[:2] == b"II" else ">"
    # A BigTIFF has wider fields. An entry is tag, type, count and value.
    formats = ("8xQ", "Q", "HHQH6x") if b"+" in header[2:4] else ("4xI", "H", "HHIH2x")
    offset, count, entry = (struct.Struct(order + one) for one in formats)
    file.seek(*offset.unpack_from(header))
    (entries,) = count.unpack(file.read(count.size))
    for _ in range(entries):
        found, _, _, value = entry.unpack(file.read(entry.size))
        if found == tag:
            return int(value)
    return None


def _block(path: Path, file: Any) -> tuple[int, int]:
    """(height, width) of the block that is decoded at once; some files can only be decoded whole."""
    if _is_sequential(path, file.driver):
        return file.height, file.width
    height, width = file.block_shapes[0]
    return int(height), int(width)


def _is_sequential(path: Path, driver: str) -> bool:
    """Whether a file must be decoded whole: an interlaced PNG or a progressive JPEG."""
    with path.open("rb") as file:
        if driver == "PNG":
            return file.read(29)[28:] == b"\x01"
        if driver != "JPEG":
            return False
        file.seek(2)
        while len(marker := file.read(4)) == 4 and marker[0] == 0xFF:
            if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
                return marker[1] in (0xC2, 0xC6, 0xCA, 0xCE)
            file.seek(int.from_bytes(marker[2:]) - 2, 1)
    return False


def _georeference(file: Any) -> dict[str, Any]:
    """CRS and transform, or control points, or rational polynomial coefficients."""
    points, crs = file.gcps
    found: dict[str, Any] = {"rpcs": file.rpcs} if file.rpcs else {}
    if points:
        found |= {"gcps": points, "crs": crs or rasterio.CRS()}
    elif file.crs is not None or not file.transform.is_identity:
        found |= {"crs": file.crs, "transform": file.transform}
    return found
