"""The headers of image files: what a file holds, and whether it is supported.

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
"""First bytes of the supported files -> the only driver that may open them."""
MIB = 2**20
CACHE_BYTES = 16 * MIB
"""GDAL's block cache, which is small since each block is used once."""
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
"""What image files in a folder are called."""
COLOUR_SPACES = {"CMYK": "CMYK", "YCbCrK": "CMYK", "CIELAB": "L*a*b*", "ICCLAB": "L*a*b*"}
"""GDAL's names of the colour spaces that it does not convert to RGB -> the usual ones."""
RGB = (
    [ColorInterp.red, ColorInterp.green, ColorInterp.blue],
    [ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined],
)
DAMAGED = (RasterioError, CPLE_BaseError, struct.error, OverflowError, UnicodeDecodeError)
"""What damaged files lead to: rasterio does not wrap all errors of GDAL."""
_LOCK = threading.Lock()
ORIENTATION = 274  # tag of EXIF and TIFF
TURNS = {
    1: (False, False, False),
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, False, True),
    7: (True, True, True),
    8: (True, True, False),
}
"""Orientation -> whether rows and columns are exchanged, then rows reversed, and columns."""


@dataclass(frozen=True)
class ImageFile:
    """What the header of an image file says."""

    path: Path
    height: int
    width: int
    """In px, of the upright image."""
    bands: tuple[int, ...]
    """Three, or one of grey levels, indices or numbers; counted from 1, as by GDAL."""
    colours: Bytes | None
    """(256, 4): RGB and alpha of what the one band stores. None if it is grey levels or numbers."""
    count: int
    """Of all bands in the file."""
    alpha: int | None
    """The alpha band."""
    marked: tuple[int, ...]
    """Bands with nodata or a mask in the file. Where they are all invalid, a pixel is hidden."""
    nodata: float | None
    orientation: int
    """As in EXIF: 1 to 8, 1 is upright."""
    block: tuple[int, int]
    """(height, width) that is decoded at once, as stored."""
    georeference: dict[str, Any]
    """CRS with transform or control points, and rational polynomial coefficients, as rasterio
    writes them."""

    @property
    def hides(self) -> bool:
        """Whether some pixels may be hidden."""
        transparent = self.colours is not None and bool((self.colours[:, 3] == 0).any())
        return transparent or self.alpha is not None or bool(self.marked)


def inspect(path: Path, bands: Sequence[int] = (), numbers: bool = False) -> ImageFile:
    """Check the header of an image, or of a mask of `numbers`.

    Args:
        bands: red, green and blue, counted from 1; by default those that the file names so.

    Raises:
        UserError: the file is missing or not supported.
    """
    with opened(path) as file:
        if len(file.subdatasets) > 1:
            raise UserError(
                f"{path} has {len(file.subdatasets)} pages: save the one that is meant as a file "
                "of its own."
            )
        if file.driver == "PNG" and b"fdAT" in _png_chunks(path):
            raise UserError(
                f"{path} is animated: save the picture that is meant as a file of its own."
            )
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
        height, width = sides[::-1] if TURNS[orientation][0] else sides
        return ImageFile(
            path=path,
            height=height,
            width=width,
            bands=found,
            colours=None if numbers or len(found) > 1 else _colours(file, found[0]),
            count=file.count,
            alpha=_alpha(file),
            # A PNG's nodata is the transparent entry of its palette, whose indices are numbers too.
            marked=() if numbers and file.driver == "PNG" else _marked(file),
            nodata=file.nodata,
            orientation=orientation,
            block=_block(path, file),
            georeference=georeference,
        )


def is_turned(path: Path) -> bool:
    """Whether an orientation tag rotates or mirrors what is stored."""
    with opened(path) as file:
        return _orientation(path, file) != 1


def check_places(image: Path, label: Path) -> None:
    """Refuse a label of the image's size whose georeference puts a corner more than half a pixel away
    from the image's."""
    with opened(image) as one, opened(label) as other:
        known = one.crs and other.crs and not one.transform.is_degenerate
        if not known or one.shape != other.shape:
            return
        corners = [(x, y) for y in (0, one.height) for x in (0, one.width)]
        places = [other.transform @ corner for corner in corners]
        if one.crs != other.crs:
            try:
                x, y = transform(other.crs, one.crs, *zip(*places, strict=True))
            except DAMAGED:  # systems that nothing relates
                return
            places = list(zip(x, y, strict=True))
        seen = [~one.transform @ place for place in places]
    left, top = seen[0]
    if max(abs(left), abs(top)) > 0.5:
        raise UserError(
            f"{label} begins {left:.1f} px to the right of {image} and {top:.1f} px below it: cut "
            "both to the same place."
        )
    far = max(math.dist(*pair) for pair in zip(corners, seen, strict=True))
    if far > 0.5:
        raise UserError(
            f"{label} begins where {image} does, and ends {far:.1f} px away from its end: save both "
            "with the same size of pixels and direction."
        )


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL with a bounded cache, strict about damage, blind to files beside an image, without
    warnings about images that have no georeference."""
    # Not catch_warnings: the first of several threads that leaves it would end it for all.
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
    """GDAL's reason, which is the cause of rasterio's error."""
    why = error.__cause__ or error
    return str(why).split("\n", 1)[0].rstrip(".")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    try:
        with path.open("rb") as file:
            begin = file.read(4)
    except FileNotFoundError:
        raise UserError(f"{path} is missing.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None
    driver = next((SIGNATURES[one] for one in SIGNATURES if begin.startswith(one)), None)
    if driver is None:
        raise UserError(f"{path} is no PNG, JPEG or TIFF.")
    if driver == "PNG" and b"IEND" not in _png_chunks(path):
        raise UserError(f"{path} is cut off: it is damaged.")  # GDAL fills up what is missing
    with gdal():
        try:
            with rasterio.open(path, driver=driver) as file:
                yield file
        except DAMAGED as error:
            raise UserError(
                f"{path} cannot be decoded ({first_line(error)}): it is damaged; make or get it "
                "again."
            ) from None


def _png_chunks(path: Path) -> dict[bytes, bytes]:
    """The chunks of a PNG by type, with the content of eXIf alone."""
    found = {}
    with path.open("rb") as file:
        place = 8
        while len(chunk := os.pread(file.fileno(), 8, place)) == 8:
            length = int.from_bytes(chunk[:4])
            found[chunk[4:]] = (
                os.pread(file.fileno(), length, place + 8) if chunk[4:] == b"eXIf" else b""
            )
            if chunk[4:] == b"IEND":
                break
            place += 12 + length
    return found


def _bands(path: Path, file: Any, numbers: bool) -> tuple[int, ...]:
    """The bands without alpha: one, or RGB."""
    seen = [
        (band, kind) for band, kind in enumerate(file.colorinterp, 1) if kind != ColorInterp.alpha
    ]
    kinds = [kind for _, kind in seen]
    if len(seen) == 1 or kinds in RGB:
        return tuple(band for band, _ in seen)
    names = ", ".join(kind.name for kind in kinds)
    if numbers:
        raise UserError(f"{path} has the bands {names} where numbers of classes are due.")
    raise UserError(
        f"{path} has the bands {names}: save it as RGB or grey, or choose three bands as red, green "
        "and blue, for instance --bands 1 2 3."
    )


def _check_depth(path: Path, file: Any, bands: Sequence[int]) -> None:
    kinds = {file.dtypes[band - 1] for band in bands}
    if kinds != {"uint8"}:
        raise UserError(
            f"{path} holds {', '.join(sorted(kinds))}, and networks take 8 bits a channel: scale it "
            "first, in the way its training images were (`gdal_translate -ot Byte -scale`, for "
            "instance)."
        )
    if len(bands) == 3 and _bits(file, bands[0]) != 8:
        raise UserError(f"{path} has {_bits(file, bands[0])} bits a channel: save it with 8.")


def _check_numbers(path: Path, file: Any) -> None:
    if file.driver == "JPEG":
        raise UserError(f"{path} is a JPEG, which blurs the numbers of classes: use PNG or TIFF.")
    if np.dtype(file.dtypes[0]).kind not in "iuf":
        raise UserError(f"{path} holds {file.dtypes[0]} where numbers of classes are due.")


def _bits(file: Any, band: int) -> int:
    return int(file.tags(ns="IMAGE_STRUCTURE", bidx=band).get("NBITS", 8))


def _colours(file: Any, band: int) -> Bytes | None:
    """What the levels of a palette, of fewer bits than 8, or of an inverted band stand for."""
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


def _marked(file: Any) -> tuple[int, ...]:
    """Bands whose invalid pixels are known other than by an alpha band, where all bands have such."""
    own = {MaskFlags.nodata, MaskFlags.per_dataset}
    bands = [band for band in range(1, file.count + 1) if band != _alpha(file)]
    flags = [set(file.mask_flag_enums[band - 1]) for band in bands]
    marked = all(one & own and MaskFlags.alpha not in one for one in flags)
    return tuple(bands) if marked else ()


def _orientation(path: Path, file: Any) -> int:
    if file.driver == "JPEG":
        found: Any = file.tags().get("EXIF_Orientation", "1").strip() or 1
    elif file.driver == "PNG":
        exif = _png_chunks(path).get(b"eXIf", b"").removeprefix(b"Exif\0\0")
        found = _tiff_short(io.BytesIO(exif), ORIENTATION) if exif else 1
    else:
        with path.open("rb") as stream:
            found = _tiff_short(stream, ORIENTATION)
    return int(found) if str(found) in map(str, TURNS) else 1


def _tiff_short(file: BinaryIO, tag: int) -> int | None:
    """A number of 16 bits in the first directory of a TIFF: GDAL does not tell the orientation, and
    Pillow does not read every TIFF.

    Raises:
        struct.error: it ends before the directory does.
    """
    begin = file.read(16)
    order = "<" if begin[:2] == b"II" else ">"
    wide = b"+" in begin[2:4]  # BigTIFF
    start, entry = (begin[8:16], 20) if wide else (begin[4:8], 12)
    file.seek(*struct.unpack(order + ("Q" if wide else "I"), start))
    (count,) = struct.unpack(order + ("Q" if wide else "H"), file.read(8 if wide else 2))
    for _ in range(count):
        (found,) = struct.unpack(f"{entry}s", file.read(entry))
        if found[:2] == struct.pack(order + "H", tag):
            value: int
            (value,) = struct.unpack(order + "H", found[entry - (8 if wide else 4) :][:2])
            return value
    return None


def _block(path: Path, file: Any) -> tuple[int, int]:
    """Size that is decoded at once; some formats can only be decoded whole."""
    if _whole_at_once(path, file.driver):
        return file.height, file.width
    height, width = file.block_shapes[0]
    return int(height), int(width)


def _whole_at_once(path: Path, driver: str) -> bool:
    """Whether a PNG is interlaced, or a JPEG progressive."""
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
    points, system = file.gcps
    found: dict[str, Any] = {"rpcs": file.rpcs} if file.rpcs else {}
    if points:
        found |= {"gcps": points, "crs": system or rasterio.CRS()}
    elif file.crs is not None or not file.transform.is_identity:
        found |= {"crs": file.crs, "transform": file.transform}
    return found
