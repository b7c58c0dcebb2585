"""Image files in, label files out: formats, georeference, kills, memory, and what is refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import ROOT, scene
from PIL import Image
from rasterio.control import GroundControlPoint
from rasterio.rpc import RPC
from rasterio.transform import Affine
from test_contract import spec

from bench import record
from bench.config import Compute, read_suite
from bench.errors import UserError
from bench.experiments.growth import draw
from bench.files import file_sha256
from bench.parallel import Report, run_isolated
from bench.run import open_run, run_of, save
from bench.streaming import Job, open_job, predict_file, raster
from bench.streaming.planes import Plane
from data.image_file import read_image
from data.image_header import gdal
from data.labels import Entry, id_decoder

PALETTE = ((200, 30, 30), (30, 200, 30), (30, 30, 200))
SIZE = (101, 75)
CPU = Compute(device="cpu", threads=1)


def job_of(method: str = "baselines/generic", strategy: str = "patch", **more: Any) -> Job:
    """A small network with random weights."""
    settings = spec(method, "unet" if method == "baselines/generic" else "", **more)
    return Job(run_of(method, strategy, settings, len(PALETTE)), PALETTE, CPU, 0)


def pixels(size: tuple[int, int] = SIZE) -> np.ndarray:
    return scene(3, size)[0]


def tiff(path: Path, bands: np.ndarray, **more: Any) -> Path:
    """(C, H, W) as a GeoTIFF."""
    count, height, width = bands.shape
    profile = {"driver": "GTiff", "dtype": bands.dtype, "count": count, "height": height}
    with gdal(), rasterio.open(path, "w", **profile, width=width, **more) as file:
        file.write(bands)
    return path


def in_memory(job: Job, image: np.ndarray) -> np.ndarray:
    network, _ = job.network()
    tensor = torch.from_numpy(image).permute(2, 0, 1).contiguous()
    with torch.inference_mode():
        return job.run.predict(network, tensor).numpy()


def read(path: Path) -> np.ndarray:
    with gdal(), rasterio.open(path) as file:
        labels: np.ndarray = file.read(1)
        return labels


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize(
    "save",
    [
        lambda folder: _saved(folder / "a.png", pixels()),
        lambda folder: _saved(folder / "a.jpg", pixels(), quality=95, subsampling=0),
        lambda folder: _saved(folder / "a.tif", pixels()),
        lambda folder: tiff(
            folder / "a.tif",
            pixels().transpose(2, 0, 1),
            photometric="rgb",
            tiled=True,
            blockxsize=16,
            blockysize=32,
            compress="lzw",
        ),
    ],
    ids=["png", "jpeg", "tiff-in-strips", "tiff-in-tiles"],
)
def test_formats(save: Callable[[Path], Path], suffix: str, tmp_path: Path) -> None:
    image, output = save(tmp_path), tmp_path / f"labels{suffix}"
    job = job_of()
    done = predict_file(image, output, job, silent=True)
    wanted = in_memory(job, read_image(image)[0])
    with Image.open(output) as labels:
        assert labels.mode == "P"
        palette = labels.getpalette()
        assert palette is not None
        assert palette[:9] == [channel for colour in PALETTE for channel in colour]
        assert np.array_equal(np.array(labels), wanted)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([image.name, output.name])
    assert (done.height_px, done.width_px, done.by_windows) == (*SIZE, True)


def _saved(path: Path, image: np.ndarray, **more: Any) -> Path:
    Image.fromarray(image).save(path, **more)
    return path


@pytest.mark.parametrize("size", [(101, 75), (40, 30)])
def test_blended_patches(size: tuple[int, int], tmp_path: Path) -> None:
    """The labels are those in memory, and others than of the plain mean where patches overlap."""
    image = pixels(size)
    job = job_of(blend="gaussian")
    path, output = _saved(tmp_path / "a.png", image), tmp_path / "labels.tif"
    assert predict_file(path, output, job, silent=True).by_windows
    labels = read(output)
    assert np.array_equal(labels, in_memory(job, image))
    assert not np.array_equal(labels, in_memory(job_of(), image))


def test_a_georeference_and_nodata(tmp_path: Path) -> None:
    bands = pixels().transpose(2, 0, 1).copy()
    bands[:, :30, :20] = 7
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 4600000)}
    image = tiff(tmp_path / "a.tif", bands, photometric="rgb", nodata=7, **place)
    job = job_of()
    predict_file(image, tmp_path / "labels.tif", job, silent=True)
    wanted = in_memory(job, bands.transpose(1, 2, 0))
    wanted[:30, :20] = 255
    with rasterio.open(tmp_path / "labels.tif") as file:
        assert file.crs == place["crs"]
        assert file.transform == place["transform"]
        assert file.nodata == 255
        assert file.colormap(1)[2] == (30, 30, 200, 255)
        assert np.array_equal(file.read(1), wanted)


def test_control_points(tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, x=10 + c, y=50 - r) for r, c in ((0, 0), (0, 70), (90, 0))]
    image = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), gcps=points, crs="EPSG:4326")
    predict_file(image, tmp_path / "labels.tif", job_of(), silent=True)
    with gdal(), rasterio.open(tmp_path / "labels.tif") as file:
        kept, system = file.gcps
    assert [(p.row, p.col, p.x, p.y) for p in kept] == [(p.row, p.col, p.x, p.y) for p in points]
    assert system == "EPSG:4326"


def test_a_cog_keeps_labels_palette_and_place(tmp_path: Path) -> None:
    place = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 4600000)}
    whole = np.kron(np.eye(30, dtype=np.uint8) + 1, np.ones((50, 40), np.uint8))
    source = raster.inspect_large(
        tiff(tmp_path / "a.tif", whole[None].repeat(3, 0), photometric="rgb", **place)
    )
    plane = Plane(tmp_path / "plane", *whole.shape)
    plane.write(0, 0, whole)
    made = tmp_path / "result.tif"
    raster.encode(plane, None, source, PALETTE, made, "COG", lambda _: None)
    plane.close()
    with rasterio.open(made) as file:
        assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert file.overviews(1)
        assert (file.crs, file.transform) == (place["crs"], place["transform"])
        assert file.colormap(1)[2] == (30, 30, 200, 255)
        assert np.array_equal(file.read(1), whole)


def test_a_palette_grey_and_alpha(tmp_path: Path) -> None:
    job = job_of()
    grey = pixels()[..., 0]
    few = Image.fromarray(pixels()).quantize(40)
    few.save(tmp_path / "palette.png")
    _saved(tmp_path / "grey.png", grey)
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[5:9, 5:9] = 0
    _saved(tmp_path / "alpha.png", np.concatenate([pixels(), alpha], 2))
    for name, image in (
        ("palette", np.array(few.convert("RGB"))),
        ("grey", grey[..., None].repeat(3, 2)),
        ("alpha", pixels()),
    ):
        predict_file(tmp_path / f"{name}.png", tmp_path / "labels.tif", job, silent=True)
        wanted = in_memory(job, image)
        if name == "alpha":
            wanted[5:9, 5:9] = 255
        assert np.array_equal(read(tmp_path / "labels.tif"), wanted), name


def _cut_off(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    return path


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "truncated-tiff": (lambda f: _cut_off(_saved(f / "a.tif", pixels())), "is damaged"),
    "truncated-png": (lambda f: _cut_off(_saved(f / "a.png", pixels())), "is damaged"),
    "truncated-jpeg": (lambda f: _cut_off(_saved(f / "a.jpg", pixels())), "is damaged"),
    "text": (lambda f: _text(f / "a.png"), "not a PNG, JPEG or TIFF"),
    "missing": (lambda f: f / "a.png", "a.png is missing"),
    "16-bit": (lambda f: tiff(f / "a.tif", np.ones((3, 9, 9), np.uint16)), "holds uint16"),
    "cmyk-jpeg": (lambda f: _of(Image.fromarray(pixels()).convert("CMYK"), f / "a.jpg"), "CMYK"),
    "cmyk-tiff": (lambda f: _of(Image.fromarray(pixels()).convert("CMYK"), f / "a.tif"), "CMYK"),
    "four-bands": (lambda f: tiff(f / "a.tif", np.ones((5, 9, 9), np.uint8)), "--bands"),
}


def _text(path: Path) -> Path:
    path.write_text("GIF89a, or not")
    return path


def _of(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


@pytest.mark.parametrize(("make", "said"), REFUSED.values(), ids=REFUSED)
def test_images_that_are_refused(make: Callable[[Path], Path], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        predict_file(make(tmp_path), tmp_path / "labels.tif", job_of(), silent=True)
    assert {path.stem for path in tmp_path.iterdir()} <= {"a"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_an_orientation_turns_image_and_labels(tmp_path: Path, suffix: str) -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels()).save(path, exif=tags)
    job = job_of()
    done = predict_file(path, tmp_path / "labels.png", job, silent=True)
    assert (done.height_px, done.width_px) == SIZE[::-1]
    seen, _ = read_image(path)
    assert np.array_equal(read(tmp_path / "labels.png"), in_memory(job, seen))


def test_training_and_prediction_see_the_same_pixels_and_hide_the_same(tmp_path: Path) -> None:
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    alpha[5:9, 5:9] = 0
    image = _saved(tmp_path / "a.png", np.concatenate([pixels(), alpha], 2))
    label = _saved(tmp_path / "l.png", np.zeros(SIZE, np.uint8))
    pair = Entry("train", "a", image, label, id_decoder({0: 0})).read()
    predict_file(image, tmp_path / "labels.png", job_of(), silent=True)
    hidden = read(tmp_path / "labels.png") == 255
    assert hidden.sum() == 16
    assert np.array_equal(hidden, pair.label == 255)
    assert np.array_equal(pair.image, pixels())


def test_rational_polynomials_and_control_points_without_a_system_are_kept(tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, x=10 + c, y=50 - r) for r, c in ((0, 0), (0, 70), (90, 0))]
    line, sample = [0.0] * 20, [0.0] * 20
    line[2] = sample[1] = 1.0
    one = [1.0] + [0.0] * 19
    rpcs = RPC(10, 500, 50, 0.1, one, line, 40, 40, 10, 0.1, one, sample, 45, 45)
    image = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), rpcs=rpcs)
    predict_file(image, tmp_path / "labels.tif", job_of(), silent=True)
    with gdal(), rasterio.open(image) as one, rasterio.open(tmp_path / "labels.tif") as other:
        assert one.rpcs is not None
        assert other.rpcs == one.rpcs
    image = tiff(tmp_path / "b.tif", pixels().transpose(2, 0, 1), gcps=points, crs=rasterio.CRS())
    predict_file(image, tmp_path / "labels.tif", job_of(), silent=True)
    with gdal(), rasterio.open(tmp_path / "labels.tif") as file:
        assert [(p.row, p.col, p.x, p.y) for p in file.gcps[0]] == [
            (p.row, p.col, p.x, p.y) for p in points
        ]


def test_three_bands_of_more(tmp_path: Path) -> None:
    bands = np.concatenate([pixels().transpose(2, 0, 1)[:1] * 0, pixels().transpose(2, 0, 1)])
    job, output = job_of(), tmp_path / "labels.png"
    predict_file(tiff(tmp_path / "a.tif", bands), output, job, bands=(2, 3, 4), silent=True)
    assert np.array_equal(read(output), in_memory(job, pixels()))


@pytest.mark.parametrize(
    ("output", "said"),
    [("a.png", "the image itself"), ("b.gif", "ends in"), ("no/b.png", "does not exist")],
)
def test_outputs_that_are_refused(output: str, said: str, tmp_path: Path) -> None:
    image = _saved(tmp_path / "a.png", pixels())
    before = image.read_bytes()
    with pytest.raises(UserError, match=said):
        predict_file(image, tmp_path / output, job_of(), silent=True)
    assert image.read_bytes() == before


def test_files_that_must_be_decoded_whole_have_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progressive = _saved(tmp_path / "a.jpg", pixels(), progressive=True)
    one_strip = tiff(tmp_path / "a.tif", pixels().transpose(2, 0, 1), blockysize=64)
    assert raster.inspect_large(progressive).block == SIZE
    monkeypatch.setattr(raster, "BLOCK_BYTES", 101 * 75)
    for path in (progressive, one_strip):
        with pytest.raises(UserError, match=r"only be decoded \d+ x 75 px at once"):
            raster.inspect_large(path)
    assert raster.inspect_large(_saved(tmp_path / "b.jpg", pixels())).block[0] < 101


def test_a_full_disk_is_told_before_and_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = _saved(tmp_path / "a.png", pixels())
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(UserError, match="are free: free some"):
        predict_file(image, tmp_path / "labels.tif", job_of(), silent=True)


def test_memory_is_kept_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.streaming import budget

    monkeypatch.setattr(budget, "_resident_bytes", lambda: 2**28)
    run = job_of(sub_batch=4, size_px=256).run
    needs = [
        budget.need(run.varied(sub_batch=number), (900, 900), "cpu", True).bytes
        for number in (1, 2, 3)
    ]
    assert needs[0] < needs[1] < needs[2]
    for limit, patches in ((needs[0], 1), (needs[1], 2), (needs[2] - 1, 2), (needs[2], 3)):
        chosen, need, by_windows = budget.fit_memory(run, (900, 900), "cpu", limit)
        assert (chosen.spec.sub_batch, by_windows) == (patches, True)
        assert need.bytes <= limit
    assert needs[1] == budget.need(run.varied(sub_batch=2), (9000, 9000), "cpu", True).bytes
    with pytest.raises(UserError, match=r"one patch at a time.*--max-memory \d"):
        budget.fit_memory(run, (900, 900), "cpu", 2**20)
    # On a GPU groups are as large as fits; of so small a network the process would take more.
    monkeypatch.setattr(budget, "BUFFER_BYTES", 0)
    monkeypatch.setattr(budget, "_resident_bytes", lambda: 0)
    on_gpu = {
        n: budget.need(run.varied(sub_batch=n), (900, 9000), "cuda", True).bytes for n in (6, 7)
    }
    chosen, _, _ = budget.fit_memory(run, (900, 9000), "cuda", on_gpu[7] - 1)
    assert chosen.spec.sub_batch == 6
    whole = job_of(strategy="whole").run
    _, need, by_windows = budget.fit_memory(whole, (50, 50), "cpu", None)
    assert not by_windows
    with pytest.raises(UserError, match=r"processes a whole image.*strategy downsample or patch"):
        budget.fit_memory(whole, (1000, 1000), "cpu", need.bytes)


def test_in_memory_where_there_is_no_other_way(tmp_path: Path) -> None:
    image, job = _saved(tmp_path / "a.png", pixels()), job_of(strategy="whole")
    done = predict_file(image, tmp_path / "labels.tif", job, silent=True)
    assert not done.by_windows
    assert np.array_equal(read(tmp_path / "labels.tif"), in_memory(job, pixels()))


def test_another_process_at_the_same_output(tmp_path: Path) -> None:
    from bench.streaming.partial import Partial

    other = Partial(tmp_path / "labels.tif", {})
    image = _saved(tmp_path / "a.png", pixels())
    with pytest.raises(UserError, match="Another process"):
        predict_file(image, tmp_path / "labels.tif", job_of(), silent=True)
    other.release()


def test_of_several_seeds_the_first_labels(
    project: Path, edit_suite: Callable[[Callable[[dict[str, Any]], None]], None]
) -> None:
    edit_suite(lambda suite: suite["models"]["unet"].update(seeds=[7, 3]))
    run, paths = open_run(read_suite(), "unet-patch"), {}
    for seed in (3, 7):
        paths[seed] = Path(f"checkpoints/unet.pt/{seed}.pt")
        save(paths[seed], run.build().state_dict())  # random, so that the two differ
    made = {"data_sha256": file_sha256(Path("data/prepared/tiny/dataset.json"))}
    settings = {"model": run.model.config.settings()}
    path = record.path_of("tiny", "train", "unet")
    record.write(path, record.Record("train", "unet", settings, {"phases": {}}, made))
    (_, taken), (_, third) = (
        open_job("unet-patch", weights=one).network() for one in (None, paths[3])
    )
    assert open_job("unet-patch").weights == paths[7]
    assert taken == open_job("unet-patch", weights=paths[7]).network()[1] != third


def test_other_weights_begin_anew(tmp_path: Path) -> None:
    from bench.streaming.partial import Partial

    begun = Partial(tmp_path / "labels.tif", {"weights": "a"})
    begun.mark_done("labels", 1)
    begun.release()
    for weights, resumed in (("a", True), ("b", False)):
        again = Partial(tmp_path / "labels.tif", {"weights": weights})
        assert again.resumed == resumed
        again.release()


@pytest.mark.parametrize("name", ["fingerprint.json", "done.json"])
@pytest.mark.parametrize("content", [b"", b"\xff", b"{", b"[]"])
def test_damaged_progress_begins_anew(tmp_path: Path, name: str, content: bytes) -> None:
    from bench.streaming.partial import Partial

    begun = Partial(tmp_path / "labels.tif", {"weights": "a"})
    begun.mark_done("labels", 1)
    (begun.folder / name).write_bytes(content)
    begun.release()
    again = Partial(tmp_path / "labels.tif", {"weights": "a"})
    assert (again.resumed, again.done) == (False, {})
    again.mark_done("labels", 1)
    assert again.done == {"labels": 1}
    again.release()


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path) -> None:
    tiff(
        tmp_path / "image.tif",
        pixels((101, 120)).transpose(2, 0, 1),
        photometric="rgb",
        tiled=True,
        blockxsize=32,
        blockysize=32,
    )
    done = subprocess.run(
        [sys.executable, ROOT / "tests/killed.py", tmp_path, "glnet", "collaborative"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["killed", "6"]
    killed = (tmp_path / "labels.tif").read_bytes()
    predict_file(tmp_path / "image.tif", tmp_path / "whole.tif", job_of("glnet", "collaborative"))
    assert (tmp_path / "whole.tif").read_bytes() == killed
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "image.tif",
        "labels.tif",
        "whole.tif",
    ]


def peak_of(report: Report, folder: Path, side_px: int) -> None:
    """In a fresh process: what labelling a drawn image holds at its peak, and what was told."""
    torch.set_num_threads(1)
    settings = spec("baselines/generic", "colour", size_px=508, overlap_px=50)
    job = Job(run_of("baselines/generic", "patch", settings, len(PALETTE)), PALETTE, CPU, 0)
    draw(folder / "image.tif", side_px)
    done = predict_file(folder / "image.tif", folder / f"{side_px}.tif", job, silent=True)
    report({"peak": done.peak_rss_bytes, "predicted": done.predicted_bytes})


@pytest.mark.slow
def test_memory_does_not_grow_with_the_image(tmp_path: Path) -> None:
    """67 megapixels, whose scores alone would be 805 MB, in the memory of four."""
    reported = []
    for side in (2048, 8192):
        outcome = run_isolated(peak_of, tmp_path, side, limit_s=280)
        assert outcome.status == "ok", outcome.reason
        reported.append(outcome.reported)
    # What libraries cache differs by processor, up to 60 MB from the first window on.
    assert reported[1]["peak"] - reported[0]["peak"] < 8192**2 * len(PALETTE) * 4 / 8
    assert reported[1]["peak"] <= reported[1]["predicted"]
    assert read(tmp_path / "8192.tif").shape == (8192, 8192)
