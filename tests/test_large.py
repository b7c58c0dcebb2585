"""Images by windows, on the disk and on a device: the same labels as in memory, whatever the strategy,
size and file."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import scene
from test_contract import CASES, made, spec

from bench.errors import UserError
from bench.method import load
from bench.streaming.image import LargeImage
from bench.streaming.partial import Partial
from bench.streaming.planes import Plane
from bench.tiling import dtype_of_sums, grid, labels_of, scores_by_patches, shrink_image
from bench.windows.device_image import DeviceImage

IN_MEMORY = tuple(
    f"baselines/{name}" for name in ("cascadepsp", "f2net", "isdnet", "magnet", "pointrend", "rue")
)
"""Methods whose networks see more of an image at once than a patch."""
BY_WINDOWS = [
    (method, network, strategy)
    for method, network, strategy in CASES
    if method not in IN_MEMORY
    and strategy not in ("whole", "coarse-to-fine", "coarse-to-fine-both-ways")
    and (
        method != "baselines/generic" or network in ("enet", "colour")
    )  # others differ in nothing here
]
NAMES = [f"{network or method}-{strategy}" for method, network, strategy in BY_WINDOWS]


class Silent:
    """A bar that nobody sees."""

    def update(self, count: float) -> None: ...

    def close(self) -> None: ...


def silent(*_: Any, **__: Any) -> Silent:
    return Silent()


def large(folder: Path, image: torch.Tensor, progress: Callable[..., Any] = silent) -> LargeImage:
    """An image tensor (3, H, W) on the disk."""
    size = image.shape[1:]
    partial = Partial(folder / "mask.tif", {})
    pixels = Plane(partial.folder / "pixels", *size, 3)
    pixels.write(0, 0, np.ascontiguousarray(image.permute(1, 2, 0)))
    labels = Plane(partial.folder / "labels", *size)
    labels.write(0, 0, np.full(size, 99, np.uint8))  # none of it may stay
    return LargeImage(pixels, labels, partial, progress)


def close(image: LargeImage) -> None:
    image.pixels.close()
    image.labels.close()
    image.partial.release()


def picture(size: tuple[int, int]) -> torch.Tensor:
    return torch.from_numpy(scene(3, size)[0]).permute(2, 0, 1).contiguous()


def both(
    folder: Path, network: Any, plan: Any, settings: Any, image: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels by windows, and in memory."""
    streamed = plan.by_windows(settings)
    assert streamed
    one = large(folder, image)
    with torch.inference_mode():
        streamed(network, one, settings)
        wanted = plan.predict(network, image, settings)
    found = one.labels.read(0, 0, *image.shape[1:])[..., 0]
    close(one)
    return torch.from_numpy(found), wanted


def on_device(network: Any, plan: Any, settings: Any, image: torch.Tensor) -> torch.Tensor:
    """Labels as on a GPU, on the CPU."""
    there = DeviceImage(image, torch.device("cpu"))
    there.labels.fill_(99)  # none of it may stay
    with torch.inference_mode():
        plan.by_windows(settings)(network, there, settings)
    return there.labels


def alike(found: torch.Tensor, wanted: torch.Tensor, strategy: str, network: str) -> bool:
    """Whether labels are equal, or almost where scores differ in the last bit, which may break a
    tie."""
    if strategy == "downsample" or (network, strategy) == ("deepglobe", "large"):
        return bool((found == wanted).float().mean() > 0.9995)
    if strategy == "collaborative":  # the halves of its aggregation are added apart
        return bool((found == wanted).float().mean() > 0.9999)
    return torch.equal(found, wanted)


@pytest.mark.parametrize("method", IN_MEMORY)
def test_what_needs_the_image_in_memory_says_so(method: str) -> None:
    strategies = load(method).strategies.values()
    assert [plan.by_windows(spec(method)) for plan in strategies] == [None] * len(strategies)


@pytest.mark.parametrize(("method", "network", "strategy"), BY_WINDOWS, ids=NAMES)
def test_labels_are_those_in_memory(
    method: str, network: str, strategy: str, tmp_path: Path
) -> None:
    parts = made(method, network, strategy)
    for size in ((101, 75), (21, 75), (17, 13)):  # one side, and both, smaller than a patch
        folder = tmp_path / str(size)
        folder.mkdir()
        found, wanted = both(folder, *parts, picture(size))
        assert alike(found, wanted, strategy, network)
        assert alike(on_device(*parts, picture(size)), wanted, strategy, network)


@pytest.mark.parametrize(
    "more",
    [
        {"overlap_px": 20},  # more than half a patch: four rows of patches over one pixel
        {"overlap_px": 0},
        {"head": "collapsed"},
        {"patch_px": (40, 24), "global_px": (48, 80)},
        {"official": ["float64-scores", "loose-crops", "strict-grid"], "patch_px": 50},
    ],
    ids=str,
)
def test_settings_that_change_the_way(more: dict[str, Any], tmp_path: Path) -> None:
    parts = made("glnet", "", "collaborative", **more)
    found, wanted = both(tmp_path, *parts, picture((101, 120)))
    assert len(wanted.unique()) > 1
    assert alike(found, wanted, "collaborative", "")
    assert alike(on_device(*parts, picture((101, 120))), wanted, "collaborative", "")


@pytest.mark.parametrize(("overlap", "dtype"), [(0, None), (8, torch.float64), (20, None)])
def test_sums_on_a_device_have_the_bits_of_those_in_memory(
    overlap: int, dtype: torch.dtype | None
) -> None:
    """Scores near each other, half of them far apart in size, so that another order of sums shows."""
    boxes = grid(101, 75, 32, overlap)
    rng = torch.Generator().manual_seed(0)
    scores = {box: torch.randn(3, 32, 32, generator=rng).mul(1e3).round() for box in boxes}
    scores = {box: one.mul_(1e-7 if n % 2 else 1) for n, (box, one) in enumerate(scores.items())}

    def score(group: Any) -> torch.Tensor:
        return torch.stack([scores[box] for box in group])

    image = torch.zeros(3, 101, 75, dtype=torch.uint8)
    summed = scores_by_patches(image, boxes, 4, score, dtype)
    assert summed.dtype == dtype_of_sums(torch.empty(0), dtype)
    there = DeviceImage(image, torch.device("cpu"))
    there.sum_up(boxes, 4, score, dtype)
    assert torch.equal(there.labels, labels_of(summed))


def test_scores_of_the_global_branch_are_enlarged_as_the_spec_says(tmp_path: Path) -> None:
    labels = {}
    for enlarge in ("nearest", "bilinear"):
        parts = made("glnet", "", "global", enlarge=enlarge)
        (tmp_path / enlarge).mkdir()
        found, wanted = both(tmp_path / enlarge, *parts, picture((101, 120)))
        assert (found == wanted).float().mean() > 0.9995
        labels[enlarge] = wanted
    assert not torch.equal(*labels.values())


@pytest.mark.parametrize("side", [7, 40, 90, 300])
def test_an_image_is_shrunk_exactly(side: int, tmp_path: Path) -> None:
    image = torch.randint(0, 256, (3, 211, 97), dtype=torch.uint8)
    one = large(tmp_path, image)
    wanted = shrink_image(image, (side, side + 3))
    assert torch.equal(one.shrink((side, side + 3)), wanted)
    assert torch.equal(one.shrink((side, side + 3)), wanted), "what an earlier process has left"
    close(one)


def test_maps_that_the_disk_cannot_hold_are_told_after_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, plan, settings = made("glnet", "", "collaborative", sub_batch=1)
    one = large(tmp_path, picture((101, 75)))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2**12))
    with torch.inference_mode(), pytest.raises(UserError, match="another disk"):
        plan.by_windows(settings)(network, one, settings)
    assert not (one.partial.folder / "merged").exists()
    close(one)
