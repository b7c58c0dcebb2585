"""Image files, read by windows, and label files, through GDAL (rasterio).

PNG, JPEG and TIFF (GeoTIFF, COG) of 8 bits a channel are read: RGB as it is, grey as three equal
channels, a palette by its colours. Pixels that the file marks as nodata or transparent pass through
the network like all others, and are unlabelled in the output. Other files are refused."""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from bench.errors import UserError
from bench.streaming.planes import Bytes, Plane

SIGNATURES = {
    b"\x89PNG": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"II*\x00": "GTiff",
    b"MM\x00*": "GTiff",
    b"II+\x00": "GTiff",
    b"MM\x00+": "GTiff",
}
"""First bytes of the supported files -> the only driver that may open them."""
WRITTEN = {".tif": "GTiff", ".tiff": "GTiff", ".png": "PNG"}
COG = {"driver": "COG", "compress": "deflate", "overview_resampling": "mode"}
"""With overviews of the most frequent label."""
MIB = 2**20
CACHE_BYTES = 16 * MIB
"""GDAL's block cache, which is small since each block is used once."""
BLOCK_BYTES = 64 * MIB
"""Largest block that is decoded at once."""
CHUNK_BYTES = 4 * MIB
"""Rows read at once from a file without tiles."""
TILE_PX = 512
UNLABELLED = 255
Advance = Callable[[int], None]
"""Called with the number of pixels that were just done."""


@dataclass(frozen=True)
class Source:
    """An image file that can be read."""

    path: Path
    height: int
    width: int
    bands: tuple[int, ...]
    """Three, or one of grey levels or indices; counted from 1, as by GDAL."""
    colours: NDArray[np.uint8] | None
    """(256, 3): the palette, if there is one."""
    masked: bool
    """Whether some pixels may be nodata or transparent."""
    block: tuple[int, int]
    """(height, width) that is decoded at once."""
    place: dict[str, Any]
    """The georeference, as rasterio writes it."""


@contextmanager
def gdal() -> Iterator[None]:
    """GDAL with a bounded cache, strict about damage, without warnings about images that have no
    georeference."""
    with (
        warnings.catch_warnings(),
        rasterio.Env(
            GDAL_CACHEMAX=CACHE_BYTES,
            GDAL_PAM_ENABLED="NO",
            GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR",
            GDAL_ERROR_ON_LIBJPEG_WARNING="YES",
            GTIFF_IGNORE_READ_ERRORS="NO",
        ),
    ):
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        yield


def inspect(path: Path, bands: Sequence[int] = ()) -> Source:
    """Properties of an image file.

    Args:
        bands: red, green and blue, counted from 1.

    Raises:
        UserError: the file is missing or not supported.
    """
    if not path.is_file():
        raise UserError(f"There is no image {path}.")
    with gdal(), _readable(path), rasterio.open(path, driver=_driver(path)) as file:
        found = tuple(bands) or _bands(path, file)
        wrong = [band for band in found if not 1 <= band <= file.count]
        if wrong or len(found) not in (1, 3):
            raise UserError(
                f"{path} has {file.count} bands: --bands takes three of them, from 1, for instance "
                "--bands 1 2 3."
            )
        kinds = {file.dtypes[band - 1] for band in found}
        if kinds != {"uint8"}:
            raise UserError(
                f"{path} holds {', '.join(sorted(kinds))}, and networks take 8 bits a channel: "
                "scale it first, in the way its training images were (`gdal_translate -ot Byte "
                "-scale`, for instance)."
            )
        _check_pixels(path, file, found[0])
        source = Source(
            path=path,
            height=file.height,
            width=file.width,
            bands=found,
            colours=_palette(file, found),
            masked=MaskFlags.all_valid not in file.mask_flag_enums[found[0] - 1],
            block=_block(path, file),
            place=_georeference(file),
        )
        size = source.block[0] * source.block[1] * file.count
        if size > BLOCK_BYTES:
            raise UserError(
                f"{path} can only be decoded {source.block[0]} x {source.block[1]} px at once "
                f"({size / MIB:.0f} MiB; {BLOCK_BYTES // MIB} are taken): write it with tiles "
                "first (`gdal_translate -co TILED=YES -co COMPRESS=DEFLATE`)."
            )
        return source


def unpack(source: Source, pixels: Plane, mask: Plane | None, advance: Advance) -> None:
    """Decode every block of a file once into a plane of three bytes a pixel.

    Args:
        mask: gets 0 where a pixel is nodata or transparent.

    Raises:
        UserError: the file is damaged.
    """
    driver = _driver(source.path)
    with gdal(), _readable(source.path), rasterio.open(source.path, driver=driver) as file:
        for top, left, height, width in _windows(source):
            window = Window(left, top, width, height)
            found: Bytes = file.read(source.bands, window=window).transpose(1, 2, 0)
            if source.colours is not None:
                found = source.colours[found[..., 0]]
            elif len(source.bands) == 1:
                found = np.repeat(found, 3, 2)
            pixels.write(top, left, found)
            if mask:
                mask.write(top, left, file.dataset_mask(window=window))
            advance(height * width)


def encode(
    labels: Plane,
    mask: Plane | None,
    source: Source,
    palette: Sequence[tuple[int, int, int]],
    path: Path,
    driver: str,
    advance: Advance,
) -> None:
    """Write labels to an image file of indices with a palette and the source's georeference, and
    verify it by reading it back.

    Args:
        path: of the file; its folder also holds an intermediate file.
        driver: a value of `WRITTEN`, or `COG`.

    Raises:
        UserError: it could not be written completely.
    """
    colours = {number: (*colour, 255) for number, colour in enumerate(palette)}
    tiled = path.with_name("labels.tif")
    profile = {
        "driver": "GTiff",
        "dtype": "uint8",
        "count": 1,
        "height": labels.height,
        "width": labels.width,
        "nodata": UNLABELLED,
        "tiled": True,
        "blockxsize": TILE_PX,
        "blockysize": TILE_PX,
        "compress": "deflate",
        "bigtiff": "if_safer",
        **source.place,
    }
    try:
        with gdal():
            with rasterio.open(tiled, "w", **profile) as file:
                file.write_colormap(1, colours)
                for window, tile in _tiles(labels, mask):
                    file.write(tile, 1, window=window)
                    advance(tile.size)
            if driver == "GTiff":
                tiled.replace(path)
            else:
                options = COG if driver == "COG" else {"driver": driver}
                rasterio.shutil.copy(tiled, path, **options)
                tiled.unlink()
            _check(path, labels, mask)
    except (RasterioError, OSError) as error:
        raise UserError(
            f"The labels cannot be written to {path.parent} ({_first_line(error)}): free some "
            "space there and run this again; what is done is kept."
        ) from None


def _tiles(labels: Plane, mask: Plane | None) -> Iterator[tuple[Window, Bytes]]:
    for top in range(0, labels.height, TILE_PX):
        for left in range(0, labels.width, TILE_PX):
            height = min(TILE_PX, labels.height - top)
            width = min(TILE_PX, labels.width - left)
            tile = labels.read(top, left, height, width)[..., 0]
            if mask:
                tile[mask.read(top, left, height, width)[..., 0] == 0] = UNLABELLED
            yield Window(left, top, width, height), tile


def _check(path: Path, labels: Plane, mask: Plane | None) -> None:
    """Compare the file with the labels: GDAL writes the last blocks when it closes a file, where an
    error is easily lost."""
    with rasterio.open(path) as file:
        step = max(1, CHUNK_BYTES // labels.width)
        for top in range(0, labels.height, step):
            height = min(step, labels.height - top)
            found = file.read(1, window=Window(0, top, labels.width, height))
            wanted = labels.read(top, 0, height, labels.width)[..., 0]
            if mask:
                wanted[mask.read(top, 0, height, labels.width)[..., 0] == 0] = UNLABELLED
            if not np.array_equal(found, wanted):
                raise OSError(f"rows from {top} on read back differently")


def _driver(path: Path) -> str:
    with path.open("rb") as file:
        begin = file.read(4)
    for signature, driver in SIGNATURES.items():
        if begin.startswith(signature):
            if driver == "PNG" and not _has_end(path):
                raise UserError(f"{path} is cut off: it is damaged.")
            return driver
    raise UserError(f"{path} is no PNG, JPEG or TIFF.")


def _has_end(path: Path) -> bool:
    """Whether a PNG's chunks are all there: GDAL fills up what is missing at its end."""
    with path.open("rb") as file:
        place = 8
        while len(chunk := os.pread(file.fileno(), 8, place)) == 8:
            if chunk[4:] == b"IEND":
                return True
            place += 12 + int.from_bytes(chunk[:4])
    return False


def _bands(path: Path, file: Any) -> tuple[int, ...]:
    """The default bands."""
    seen = [one for one in file.colorinterp if one != ColorInterp.alpha]
    names = [one.name for one in seen]
    if len(seen) == 1 and seen[0] in (ColorInterp.gray, ColorInterp.palette, ColorInterp.undefined):
        return (1,)
    if len(seen) == 3 and names in (["red", "green", "blue"], ["gray", "undefined", "undefined"]):
        return (1, 2, 3)
    raise UserError(
        f"{path} has the bands {', '.join(names)}: save it as RGB or grey, or choose three bands "
        "as red, green and blue, for instance --bands 1 2 3."
    )


def _check_pixels(path: Path, file: Any, band: int) -> None:
    """Refuse files that GDAL would silently misinterpret."""
    whole, one = file.tags(ns="IMAGE_STRUCTURE"), file.tags(ns="IMAGE_STRUCTURE", bidx=band)
    if whole.get("SOURCE_COLOR_SPACE") in ("CMYK", "YCbCrK"):
        raise UserError(f"{path} has CMYK colours: save it as RGB.")
    if one.get("NBITS", "8") != "8" and file.colorinterp[band - 1] != ColorInterp.palette:
        raise UserError(f"{path} has {one['NBITS']} bits a channel: save it with 8.")
    turned = file.tags().get("EXIF_Orientation", "1")
    if turned.strip() not in ("", "0", "1"):
        raise UserError(
            f"{path} is rotated by its EXIF orientation ({turned}): save it "
            "upright, so that its labels match."
        )


def _palette(file: Any, bands: Sequence[int]) -> NDArray[np.uint8] | None:
    if len(bands) == 3 or file.colorinterp[bands[0] - 1] != ColorInterp.palette:
        return None
    colours = np.zeros((256, 3), np.uint8)
    for number, (red, green, blue, _) in file.colormap(bands[0]).items():
        colours[number] = red, green, blue
    return colours


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
    """CRS and transform, or ground control points."""
    points, system = file.gcps
    if points:
        return {"gcps": points, "crs": system}
    plain = file.transform.is_identity and file.crs is None
    return {} if plain else {"crs": file.crs, "transform": file.transform}


def _windows(source: Source) -> Iterator[tuple[int, int, int, int]]:
    """(top, left, height, width), each block once."""
    height, width = source.block
    if width >= source.width:  # rows: some at a time
        row = source.width * max(3, len(source.bands))
        height = max(1, CHUNK_BYTES // (row * height)) * height
    for top in range(0, source.height, height):
        for left in range(0, source.width, width):
            yield (
                *(top, left),
                *(min(height, source.height - top), min(width, source.width - left)),
            )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except RasterioError as error:
        raise UserError(f"{path} cannot be read ({_first_line(error)}): it is damaged.") from None


def _first_line(error: BaseException) -> str:
    """GDAL's reason, which is the cause of rasterio's error."""
    why = error.__cause__ or error
    return str(why).split("\n", 1)[0].rstrip(".")
