"""Labels an image file of any size and writes a label file."""

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
from bench.streaming.bands import Spread, SpreadImage
from bench.streaming.budget import GIB, fit_memory
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
    """Total time, weights and memory prediction included; of this process only if it resumed."""
    label_s: float
    """Time from the first patch to the last label."""
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
    spread: Spread | None = None,
) -> FilePrediction:
    """Write the labels of an image file, with its georeference and the classes' colours.

    Intermediate results are stored in a folder beside the output; a later process resumes from them.
    The output appears when it is complete.

    Args:
        image: PNG, JPEG or TIFF; see `data.image_header`.
        output: ends in .tif, .tiff or .png.
        max_memory_bytes: limit of predicted memory, for this process and for the GPU.
        bands: red, green and blue, counted from 1.
        cog: write a cloud-optimised GeoTIFF with overviews.
        fresh: do not resume.
        silent: show no progress bars.
        spread: has bands labelled by other processes.

    Raises:
        UserError: an argument does not fit, or the disk is full.
    """
    begun = time.perf_counter()
    driver = _check_output(image, output, cog)
    source = raster.inspect_large(image, bands)
    size = (source.height, source.width)
    device = set_up(job.compute)
    run, need, by_windows = fit_memory(job.run, size, device.type, max_memory_bytes)
    job = replace(job, run=run)
    if spread and not by_windows:
        raise UserError(
            f"Strategy {run.config.strategy} processes a whole image with these settings, so that no "
            "bands of it can be labelled apart: leave out --cluster, or give several images."
        )
    progress = functools.partial(cli.progress, unit="px", silent=silent)
    with PeakResident() as peak, _report_full_disk(output):
        network, weights = job.network()
        fingerprint = {
            **job.fingerprint(),
            "weights": weights,
            "image": file_sha256(image),
            "size": size,
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
                partial.mark_done("pixels", 1)
            large = (SpreadImage if spread else LargeImage)(pixels, labels, partial, progress)
            if spread and isinstance(large, SpreadImage):
                large.spread, large.job = spread, job
            started = time.perf_counter()
            if "labels" not in partial.done:
                _label(run, network.to(device), large, by_windows)
                labels.file.sync()
                partial.mark_done("labels", 1)
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
                f"Memory ran out: strategy {run.config.strategy} processes a whole image; use one that "
                "works by windows, or a smaller image."
            ) from None
        image.labels.write(0, 0, labels.numpy())


def _check_output(image: Path, output: Path, cog: bool) -> str:
    """GDAL's driver for the output; raises a `UserError` if the output cannot be written."""
    suffix = output.suffix.lower()
    if suffix not in raster.DRIVERS:
        raise UserError(
            f"{output} is not a supported label file: use a name that ends in .tif or .png."
        )
    if cog and raster.DRIVERS[suffix] != "GTiff":
        raise UserError(f"{output} cannot be a COG: use a name that ends in .tif.")
    if not output.parent.is_dir():
        raise UserError(
            f"The folder {output.parent} of {output.name} does not exist: create it first."
        )
    if output.is_dir():
        raise UserError(f"{output} is a folder: use the name of a file.")
    if output.exists() and image.exists() and output.samefile(image):
        raise UserError(f"{output} is the image itself: use another name for the labels.")
    return "COG" if cog else raster.DRIVERS[suffix]


def _check_disk(output: Path, partial: Partial, size: tuple[int, int]) -> None:
    """Raise a `UserError` if the disk is too small for pixels, mask, labels and encoded labels."""
    needed = 6 * size[0] * size[1]
    held = sum(path.stat().st_blocks * 512 for path in partial.folder.iterdir())
    free = shutil.disk_usage(output.parent).free
    if needed > free + held:
        raise UserError(
            f"{size[0]} x {size[1]} px need {needed / GIB:.1f} GiB beside {output} until they are "
            f"done, but {free / GIB:.1f} GiB are free: free some space, or write to another disk."
        )


@contextlib.contextmanager
def _report_full_disk(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise UserError(
            f"The disk of {output} is full: free some space and run the same command again; it "
            "resumes."
        ) from None
