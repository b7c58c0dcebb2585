"""Patches of prepared images: the same pixels as cut from the whole, fast, in little memory."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PLAIN, ROOT, write_dataset
from PIL import Image

from baselines.generic import training
from baselines.generic.spec import Spec
from bench.files import file_sha256
from data.dataset import Dataset, open_folder

SIDE, PATCH = 2448, 508


@pytest.fixture
def tiny(tmp_path: Path) -> Dataset:
    return open_folder(write_dataset(tmp_path))


def test_what_is_mapped_is_what_is_read_and_the_file_is_safe(tiny: Dataset) -> None:
    for one, other in zip(tiny.read("a"), tiny.mapped("a"), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()
        other.zero_()
        assert one.any()
    assert tiny.read("a")[0].any()


@pytest.mark.parametrize("size_px", [32, 80, 100])  # inside, one side smaller, both smaller
def test_training_sees_the_same_of_both(tiny: Dataset, size_px: int) -> None:
    spec = Spec(**{**PLAIN, "network": "unet", "train_on": "patch", "size_px": size_px})
    for seed in range(8):
        seen = [
            training.view(*pair, spec, "train", torch.Generator().manual_seed(seed))
            for pair in (tiny.read("a"), tiny.mapped("a"))
        ]
        for key, value in seen[0].items():
            assert torch.equal(value, seen[1][key])


def big(folder: Path, images: int) -> Dataset:
    """A prepared data set of images of 2448 x 2448 px."""
    root = write_dataset(folder, "big")
    rng = np.random.default_rng(0)
    colours = Image.fromarray(rng.integers(0, 255, (60, 60, 3)).astype(np.uint8))
    image = np.array(colours.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    image += rng.integers(0, 8, image.shape).astype(np.uint8)
    label = np.kron(rng.integers(0, 3, (34, 34)), np.ones((72, 72))).astype(np.uint8)
    for number in range(images):
        np.save(root / f"images/{number}.npy", np.ascontiguousarray(image.transpose(2, 0, 1)))
        np.save(root / f"labels/{number}.npy", label)
    described = json.loads((root / "dataset.json").read_text())
    for path in root.glob("*/*.npy"):
        described["files"][path.relative_to(root).as_posix()] = file_sha256(path)
    (root / "dataset.json").write_text(json.dumps(described))
    return open_folder(root)


def test_patches_come_twenty_times_as_fast_as_by_decoding(tmp_path: Path) -> None:
    dataset = big(tmp_path, 1)
    image, label = dataset.read("0")
    files = {"jpeg": io.BytesIO(), "png": io.BytesIO()}
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(files["jpeg"], "JPEG", quality=90)
    Image.fromarray(label.numpy()).save(files["png"], "PNG")

    def decode(top: int, left: int) -> None:
        for file in files.values():
            pixels = torch.from_numpy(np.array(Image.open(file)))
            pixels[top : top + PATCH, left : left + PATCH].clone()

    def read(top: int, left: int) -> None:
        for pixels in dataset.mapped("0"):
            pixels[..., top : top + PATCH, left : left + PATCH].clone()

    rates = {}
    for name, get, count in (("decode", decode, 4), ("read", read, 100)):
        places = np.random.default_rng(1).integers(0, SIDE - PATCH + 1, (count, 2)).tolist()
        get(*places[0])
        begun = time.perf_counter()
        for top, left in places:
            get(top, left)
        rates[name] = count / (time.perf_counter() - begun)
    print(f"patches a second: decoded {rates['decode']:.0f}, read {rates['read']:.0f}")
    assert rates["read"] >= 20 * rates["decode"]


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Eight images of 24 MB: patches never need what one does, nor whole ones what four do."""
    big(tmp_path, 8)
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}]
from pathlib import Path
import psutil
from data.dataset import open_folder
dataset = open_folder(Path({str(tmp_path / "data/prepared/big")!r}))
resident = lambda: psutil.Process().memory_info().rss
dataset.mapped("0")[0][:, :8, :8].clone()
begun, patches, wholes = resident(), [], []
for i in range(40):
    for pixels in dataset.mapped(str(i % 8)):
        pixels[..., 45 * i : 45 * i + {PATCH}, 40 * i : 40 * i + {PATCH}].clone()
    patches.append(resident() - begun)
for i in range(8):
    image, label = dataset.mapped(str(i))
    image.clone(), label.clone()
    wholes.append(resident() - begun)
print(max(patches), max(wholes))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    patches, wholes = map(int, done.stdout.split())
    image = 4 * SIDE**2
    assert patches < image
    assert image / 2 < wholes < 4 * image
