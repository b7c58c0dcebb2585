"""Damaged inputs of every kind: each works or is refused in one line that names the file, within 10 s
of processor time and 1 GiB.

200 of each kind in CI; `GLNET_FUZZ=10000 pytest tests/test_fuzz.py -n0 --timeout=0` tries more."""

import copy
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from ruamel.yaml import YAML
from test_image_file import tiff, write_png
from test_report import write_results

from bench.config import Suite, open_source, read_suite, strict
from bench.errors import UserError
from bench.files import load_state
from bench.memory.rss import PeakResident
from bench.method import load_weights
from bench.report import bootstrap
from bench.report.load_records import load_records
from bench.report.pages import collect
from bench.run import open_model, open_run
from data.folder import Settings, survey
from data.image_file import read_image, read_numbers

FUZZ = settings(
    max_examples=int(os.environ.get("GLNET_FUZZ", "200")),
    deadline=None,
    database=None,
    derandomize="GLNET_FUZZ" not in os.environ,  # CI sees the same examples each time
    suppress_health_check=list(HealthCheck),
)
MOST_S, MOST_WALL_S, MOST_BYTES = 10, 60, 2**30
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, 2**63, 2**64, 10**30, 10**400, 0.5, -0.0, 1e308, [1e400]),
    *(float("nan"), float("inf"), float("-inf"), [float("nan")] * 3, "", " ", "a", "0", "1e3"),
    *("nan", "..", "../a", "/a", "a/b", "a\nb", "a\0b", "é", "e\u0301", "\ud800", "x" * 300),
    *("x" * 70_000, [], {}, [[]], {"": {}}, [None], [1, "a"], {"a": 1}, [-1, -1, -1]),
]
"""In place of a value."""
BYTES = [
    *(
        b"",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"\r",
        b"\n\n",
        b"[" * 1500,
        b"{a: " * 1500,
        b"- " * 1500,
    ),
    *(b"\t", b":", b"&a [*a]", b"*a", b"<<", b"!!python/name:os.system", b"9" * 5000, b"NaN"),
    b"0x" + b"f" * 5000,
    *(b"\x1b[31m", b"\xff\xfe\0\0", b"%YAML 9.9\n---\n", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"),
    *(b"\0\0\0\0", b"\x80" * 8),
]
"""Between two bytes, or in place of some."""


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damaged")


def fine_or_told(path: Path, work: Callable[[], object], *named: str) -> bool:
    """Whether it works; an error is one line with the file's name, or one of `named`."""
    start, began = time.process_time(), time.monotonic()
    with PeakResident() as resident:
        try:
            work()
            fine = True
        except UserError as error:
            fine, said = False, str(error)
            assert said.isprintable()
            assert any(name in said for name in (path.name, *named)), said
    assert time.process_time() - start < MOST_S
    assert time.monotonic() - began < MOST_WALL_S  # nor does it wait for something
    assert resident.peak_bytes - resident.base_bytes < MOST_BYTES
    return fine


@st.composite
def damaged_tables(draw: st.DrawFn, sound: list[Any], junk: list[Any] = JUNK) -> Any:
    """One to three entries of nested tables are removed, renamed, doubled or have another value."""
    table = copy.deepcopy(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 3))):
        inner, key = table, None
        while isinstance(inner, dict | list) and inner:
            key = draw(st.sampled_from(keys(inner)))
            if not isinstance(inner[key], dict | list) or not draw(st.integers(0, 4)):
                break
            inner = inner[key]
        if not isinstance(inner, dict | list) or key not in keys(inner):
            continue
        change = draw(st.sampled_from(["junk", "junk", "remove", "rename", "double", "swap"]))
        if change == "junk":
            inner[key] = copy.deepcopy(draw(st.sampled_from(junk)))
        elif change == "swap":
            other = draw(st.sampled_from(keys(inner)))
            inner[key], inner[other] = inner[other], inner[key]
        else:
            value = inner[key] if change == "double" else inner.pop(key)
            if isinstance(inner, list) and change != "remove":
                inner.append(value)
            elif isinstance(inner, dict) and change != "remove":
                inner[draw(st.sampled_from([one for one in junk if isinstance(one, str)]))] = value
    return table


def keys(table: dict[str, Any] | list[Any]) -> list[Any]:
    return list(table) if isinstance(table, dict) else list(range(len(table)))


@st.composite
def damaged_bytes(draw: st.DrawFn, sound: list[bytes]) -> bytes:
    """One to four changes: bits turned, pieces removed, repeated, moved, inserted, or the end cut."""
    content = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        end = min(len(content), at + draw(st.sampled_from([1, 2, 4, 8, 100, 1000])))
        change = draw(
            st.sampled_from(["turn", "turn", "insert", "replace", "remove", "repeat", "cut"])
        )
        if change == "turn" and at < len(content):
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "insert":
            content[at:at] = draw(st.sampled_from(BYTES))
        elif change == "replace":
            piece = draw(st.sampled_from(BYTES))
            content[at : at + len(piece)] = piece
        elif change == "remove":
            del content[at:end]
        elif change == "repeat":
            content[at:at] = content[at:end] * draw(st.sampled_from([1, 2, 50]))
        elif change == "cut":
            del content[at:]
    return bytes(content)


def as_yaml(table: Any) -> bytes:
    """JSON is YAML, but for numbers that are not finite."""
    text = json.dumps(table, indent=1)
    for name, other in (("NaN", ".nan"), ("-Infinity", "-.inf"), ("Infinity", ".inf")):
        text = text.replace(name, other)
    return text.encode()


YAML_FILES = [ROOT / f"suites/{name}.yaml" for name in ("smoke", "own")]
SUITES = [*(YAML(typ="safe").load(path) for path in YAML_FILES)]
TEXTS = [path.read_bytes() for path in YAML_FILES]


@FUZZ
@given(damaged_tables(SUITES).map(as_yaml) | damaged_bytes(TEXTS))
def test_params(root: Path, content: bytes) -> None:
    path = root / "params.yaml"
    path.write_bytes(content)

    def resolve() -> None:
        suite = read_suite(path)
        for name in suite.models:
            open_model(suite, name)
        for name in suite.runs:
            open_run(suite, name, classes=3)
        for name in suite.datasets:
            open_source(suite, name)

    fine_or_told(path, resolve)


OWN = YAML(typ="safe").load(ROOT / "suites/own.yaml")["datasets"]["mine"]["settings"]
OWN |= {"splits": {"train": "train.txt", "val": "val.txt", "test": "test.txt"}}
OWN |= {"image_suffix": "_sat"}
LISTS = [
    b"a\n",
    b"a_sat\r\na_sat.png\n",
    b"\xef\xbb\xbfa\n\nd.tif\n",
    "e\u0301\n".encode(),
    b"119\n" * 9,
]


SETTINGS = ("params.yaml", "images", "labels", "splits", "colour", "number", "classes")


@FUZZ
@given(damaged_bytes(LISTS), st.none() | damaged_tables([OWN]))
def test_lists(root: Path, content: bytes, table: Any) -> None:
    for name in ("a", "b", "c", "d", "\u00e9", "119"):
        for path in (root / f"images/{name}_sat.png", root / f"labels/{name}.png"):
            path.parent.mkdir(exist_ok=True)
            path.touch()
    for name in ("val", "test"):
        (root / f"{name}.txt").write_text({"val": "b", "test": "c"}[name])
    path = root / "train.txt"
    path.write_bytes(content)

    def divide() -> None:
        survey(
            strict(Settings, table or OWN, "params.yaml: datasets.mine.settings"), root
        ).valid_entries()

    fine_or_told(path, divide, "val.txt", "test.txt", *(() if table is None else (*SETTINGS,)))


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Suite]:
    """A project with records of every stage, and its suite."""
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_results(root)
        suite = read_suite()
    for old, new in {
        "predict.json": "predict.json",
        "successors.json": "successors.json",
        "card/h100.json": "card/h100.json",
        "fast/cpu-2-cores.json": "fast/test-machine.json",
        "earthcover/steps/cpu-2-cores.json": "tiny/steps/test-machine.json",
        "earthcover/train/glnet.json": "tiny/train/unet.json",
        "earthcover/measure/cpu-2-cores/unet-patch.json": "tiny/measure/test-machine/fpn-patch.json",
        "earthcover/evaluate/unet-patch.json": "tiny/evaluate/pspnet-patch.json",
        "mosaic/evaluate/apart-seed0.json": "tiny/evaluate/deeplabv3plus-patch.json",
    }.items():
        (root / "results" / new).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "results" / old, root / "results" / new)
    return root, suite


@FUZZ
@given(st.data())
def test_records(
    results: tuple[Path, Suite], monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    root, suite = results
    monkeypatch.chdir(root)
    monkeypatch.setattr(bootstrap, "DRAWS", 20)
    paths = sorted(path for path in Path("results").rglob("*.json") if "yesterday" not in path.name)
    path = data.draw(st.sampled_from(paths))
    sound = path.read_bytes()
    damaged = damaged_tables([json.loads(sound)]).map(lambda table: json.dumps(table).encode())
    path.write_bytes(data.draw(damaged | damaged | damaged_bytes([sound])))
    try:
        fine_or_told(path, lambda: collect(load_records(suite)))
    finally:
        path.write_bytes(sound)


NUMBERS = (torch.complex64, torch.bool, torch.int64, torch.float64, torch.float16)
TENSORS = [
    *(torch.zeros(2, 3, dtype=kind) for kind in NUMBERS),
    *(torch.full((2, 3), torch.nan), torch.zeros(1).expand(2, 10**9), torch.zeros(0)),
    *(torch.tensor(1.0), torch.eye(3).to_sparse(), torch.zeros(2, 3, device="meta")),
]
STATE = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@FUZZ
@given(
    damaged_tables([STATE, {"state_dict": STATE}], JUNK + TENSORS).map(saved)
    | damaged_bytes([saved(STATE), saved({"state_dict": STATE})])
)
def test_checkpoints(root: Path, content: bytes) -> None:
    path = root / "a.pt"
    path.write_bytes(content)
    fine_or_told(path, lambda: load_weights(torch.nn.Linear(3, 2), load_state(path), str(path)))


@cache
def images() -> dict[str, list[bytes]]:
    """Small files of each format, by suffix."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (3, 40, 50), np.uint8)
    picture, exif = Image.fromarray(rgb.transpose(1, 2, 0)), Image.Exif()
    exif[274] = 6
    found: dict[str, list[bytes]] = {"png": [], "jpg": [], "tif": []}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")

        def add(suffix: str) -> None:
            found[suffix].append(path.read_bytes())

        for bits in (1, 8):
            write_png(path, rng.integers(0, 2, (9, 11), np.uint8), bits, rgb[0, :2, :3], b"\0\xff")
            add("png")
        for suffix, how in {"png": {"exif": exif}, "jpg": {"exif": exif, "quality": 95}}.items():
            picture.save(path.with_suffix(f".{suffix}"), **how)
            found[suffix].append(path.with_suffix(f".{suffix}").read_bytes())
        picture.convert("L").save(path, "JPEG", progressive=True)
        add("jpg")
        for how in (
            {"tiled": True, "blockxsize": 16, "blockysize": 16, "compress": "deflate"},
            {"compress": "lzw", "endianness": "BIG", "bigtiff": "YES", "nodata": 0},
            {"compress": "lerc"},
            {"compress": "zstd", "interleave": "band"},
            {"photometric": "YCBCR", "compress": "jpeg"},
            {"crs": "EPSG:32632", "transform": rasterio.Affine(10, 0, 5e5, 0, -10, 4e6)},
        ):
            tiff(path, rgb, **how)
            add("tif")
        for kind in ("uint16", "float64", "int8"):
            tiff(path, rng.integers(0, 3, (1, 30, 20)).astype(kind), nodata=1)
            add("tif")
    return found


@FUZZ
@given(
    st.sampled_from(["png", "jpg", "tif"]).flatmap(
        lambda suffix: st.tuples(st.just(suffix), damaged_bytes(images()[suffix]))
    )
)
def test_images(root: Path, image: tuple[str, bytes]) -> None:
    path = root / f"a.{image[0]}"
    path.write_bytes(image[1])
    fine_or_told(path, lambda: read_image(path))
    fine_or_told(path, lambda: read_numbers(path))


@pytest.mark.parametrize("kind", ["a table", "bytes"])
def test_what_is_damaged_is_not_what_it_was(kind: str) -> None:
    """Else nothing would be tried."""
    strategy: Any = damaged_tables([STATE]) if kind == "a table" else damaged_bytes([b"abcdefgh"])
    changed = []

    @settings(max_examples=50, database=None)
    @given(strategy)
    def draws(value: Any) -> None:
        changed.append(str(value) not in (str(STATE), str(b"abcdefgh")))

    draws()
    assert sum(changed) > 30
