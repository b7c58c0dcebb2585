"""From an image file to a label file, whatever the image's size."""

import contextlib
import errno
import functools
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from bench import cli
from bench.errors import UserError, out_of_memory
from bench.files import file_sha256
from bench.memory.rss import PeakResident
from bench.run import Run, device_facts, set_up
from bench.streaming import raster
from bench.streaming.budget import GIB, choose
from bench.streaming.image import LargeImage
from bench.streaming.job import Job
from bench.streaming.partial import Partial
from bench.streaming.planes import Plane


@dataclass(frozen=True)
class FilePrediction:
    """The result of labelling one file."""

    height_px: int
    width_px: int
    seconds: float
    """From opening the file to the last rename, weights and memory prediction included; of this
    process only, if it resumed an earlier one."""
    label_s: float
    """The part of them from the first patch to the last label."""
    peak_rss_bytes: int
    """Peak resident memory of the process."""
    predicted_bytes: int
    sub_batch: int | None
    by_windows: bool

    @property
    def megapixels_per_s(self) -> float:
        """Throughput of the whole process."""
        return self.height_px * self.width_px / 1e6 / self.seconds


def predict_file(
    image: Path,
    output: Path,
    job: Job,
    max_memory_bytes: int | None = None,
    bands: Sequence[int] = (),
    cog: bool = False,
    fresh: bool = False,
    silent: bool = False,
) -> FilePrediction:
    """Write the labels of an image file, with its georeference and the classes' colours.

    Intermediate results are in a folder beside the output, from which a later process resumes if
    this one is killed. The output gets its name when it is complete.

    Args:
        image: PNG, JPEG or TIFF, see `data.image_header`.
        output: ends in .tif, .tiff or .png.
        max_memory_bytes: limit for this process and for the GPU.
        bands: red, green and blue, counted from 1.
        cog: write a cloud-optimised GeoTIFF with overviews.
        fresh: do not resume an earlier process.

    Raises:
        UserError: an argument does not fit, or the disk is full.
    """
    begun = time.perf_counter()
    driver = _check_output(image, output, cog)
    source = raster.inspect_large(image, bands)
    size = (source.height, source.width)
    device = set_up(job.compute)
    run, need, by_windows = choose(job.run, size, device.type, max_memory_bytes)
    job = replace(job, run=run)
    progress = functools.partial(cli.progress, unit="px", silent=silent)
    with PeakResident() as peak, _disk(output):
        network, weights = job.network()
        fingerprint = {
            **job.fingerprint(),
            "weights": weights,
            "image": file_sha256(image),
            "bands": list(source.bands),
            **device_facts(device, job.compute),
        }
        partial = Partial(output, fingerprint, fresh)
        with contextlib.ExitStack() as stack:
            stack.callback(partial.release)
            _check_disk(output, partial, size)

            def plane(name: str, depth: int = 1) -> Plane:
                open_image = Plane(partial.folder / name, *size, depth)
                return stack.enter_context(contextlib.closing(open_image))

            pixels, labels = plane("pixels", 3), plane("labels")
            mask = plane("mask") if source.has_hidden_pixels else None
            if "pixels" not in partial.done:
                with contextlib.closing(progress(size[0] * size[1], "reading")) as bar:
                    raster.unpack(source, pixels, mask, bar.update)
                for written in filter(None, (pixels, mask)):
                    written.file.sync()
                partial.note("pixels", 1)
            large = LargeImage(pixels, labels, partial, progress)
            started = time.perf_counter()
            if "labels" not in partial.done:
                _label(run, network.to(device), large, by_windows)
                labels.file.sync()
                partial.note("labels", 1)
            label_s = time.perf_counter() - started
            result = partial.folder / f"result{output.suffix}"
            with contextlib.closing(progress(size[0] * size[1], "writing")) as bar:
                raster.encode(labels, mask, source, job.palette, result, driver, bar.update)
            with result.open("rb") as file:
                os.fsync(file.fileno())
            result.replace(output)
            partial.remove()
    return FilePrediction(
        height_px=size[0],
        width_px=size[1],
        seconds=time.perf_counter() - begun,
        label_s=label_s,
        peak_rss_bytes=peak.peak_bytes,
        predicted_bytes=need.bytes,
        sub_batch=getattr(run.spec, "sub_batch", None),
        by_windows=by_windows,
    )


def _label(run: Run, network: torch.nn.Module, image: LargeImage, by_windows: bool) -> None:
    with torch.inference_mode():
        streamed = run.strategy.by_windows(run.spec)
        if by_windows and streamed:
            streamed(network, image, run.spec)
            return
        whole = image.whole()
        try:
            labels = run.predict(network, whole)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(
                f"Memory ran out: strategy {run.config.strategy} takes an image whole; take one that "
                "works by windows, or a smaller image."
            ) from None
        image.labels.write(0, 0, labels.numpy())


def _check_output(image: Path, output: Path, cog: bool) -> str:
    """GDAL's driver for the output; refuses an output that cannot be written."""
    suffix = output.suffix.lower()
    if suffix not in raster.WRITTEN:
        raise UserError(f"{output} is to be a label file: give a name that ends in .tif or .png.")
    if cog and raster.WRITTEN[suffix] != "GTiff":
        raise UserError(f"{output} cannot be a COG: give a name that ends in .tif.")
    if not output.parent.is_dir():
        raise UserError(f"The folder {output.parent} of {output.name} is not there: make it first.")
    if output.is_dir():
        raise UserError(f"{output} is a folder: give the name of a file.")
    if output.exists() and image.exists() and output.samefile(image):
        raise UserError(f"{output} is the image itself: give the labels another name.")
    return "COG" if cog else raster.WRITTEN[suffix]


def _check_disk(output: Path, partial: Partial, size: tuple[int, int]) -> None:
    """Refuse, before any work, an image for which the disk is too small: pixels, a mask, labels, and
    the encoded labels."""
    wanted = 6 * size[0] * size[1]
    held = sum(path.stat().st_blocks * 512 for path in partial.folder.iterdir())
    free = shutil.disk_usage(output.parent).free
    if wanted > free + held:
        raise UserError(
            f"{size[0]} x {size[1]} px need {wanted / GIB:.1f} GiB beside {output} until they are "
            f"done, and {free / GIB:.1f} are free: free some, or write to another disk."
        )


@contextlib.contextmanager
def _disk(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The disk of {output} is full: free some space and give the same command again; what "
            "is done is kept."
        ) from None
