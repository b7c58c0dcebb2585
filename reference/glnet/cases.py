"""Reading a folder of golden data, and making the networks and images that it tells of."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.errors import UserError
from glnet.model import GLNet, build
from glnet.spec import Spec
from reference.glnet import formulas
from reference.glnet.checkpoint import from_official, official_key, shapes_of

FLOAT = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Check:
    """One comparison."""

    case: str
    mode: int
    dtype: str
    quantity: str
    difference: float
    tolerance: float
    """Both in the quantity's own unit, or as a share of it where the quantity says so."""

    @property
    def ok(self) -> bool:
        """Whether it holds; a difference that is not a number does not."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Setting:
    """Sizes and seeds of a case."""

    seed: int
    fixed_seed: int
    height: int
    width: int
    classes: int
    spec: Spec


@dataclass(frozen=True)
class Case:
    """One evaluation case: what the official code gave."""

    name: str
    setting: Setting
    golden: Mapping[str, Any]
    arrays: Mapping[str, NDArray[Any]]
    noise: Mapping[str, Any]


@dataclass(frozen=True)
class Step:
    """One training step of the official code."""

    name: str
    mode: int
    setting: Setting
    golden: Mapping[str, Any]


def read_cases(folder: Path) -> tuple[list[Case], list[Step]]:
    """All cases of a folder.

    Raises:
        UserError: there are none, or a file is not what it should be.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}.")
    cases = []
    for path in sorted(folder.glob("golden_*.json")):
        golden, name = _json(path), path.stem.removeprefix("golden_")
        noise = folder / f"noise_f32_vs_f64_{name}.json"
        cases.append(
            Case(
                name=name,
                setting=_setting(golden, path),
                golden=golden,
                arrays=_arrays(path.with_suffix(".npz")),
                noise=_json(noise) if noise.exists() else {},
            )
        )
    steps = []
    for path in sorted(folder.glob("train_*.json")):
        golden, name = _json(path), path.stem.removeprefix("train_")
        setting = _setting(golden, path) if "config" in golden else _borrowed(golden, cases, path)
        steps.append(Step(name, int(golden["mode"]), setting, golden))
    if not cases and not steps:
        raise UserError(f"{folder} has neither golden_*.json nor train_*.json.")
    return cases, steps


def network_of(setting: Setting, mode: int, dtype: torch.dtype) -> GLNet:
    """The network with the weights of a case, in eval mode; mode 3's lender has its own seed."""
    own = _official_state(setting.seed, setting.classes)
    lender = _official_state(setting.fixed_seed, setting.classes) if mode == 3 else own
    state = from_official([lender, own, own], Spec(), serve="collaborative")
    with torch.device("meta"):
        network = build(setting.spec, setting.classes)
    # Buffers that no checkpoint holds (the image's mean and deviation) are lost on meta.
    network = network.to_empty(device="cpu")
    network.load_state_dict(state)
    network.mean.fill_(0)
    network.std.fill_(1)
    return network.to(dtype).eval().requires_grad_(False)


def pictures(setting: Setting, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """An image (3, H, W) uint8, the same shrunk for the global branch by Pillow as the official
    code does, and its label (H, W) uint8."""
    pixels = formulas.image(setting.height, setting.width, seed)
    height, width = setting.spec.global_size
    small = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
    label = formulas.label(setting.height, setting.width, seed, setting.classes)
    return _channels_first(pixels), _channels_first(np.asarray(small)), torch.from_numpy(label)


def fingerprint(array: NDArray[Any]) -> str:
    """Hex SHA-256 of an array's bytes, row by row."""
    return hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()


@lru_cache(maxsize=2)
def _official_state(seed: int, classes: int) -> dict[str, Tensor]:
    shapes = {official_key(key): shape for key, shape in shapes_of(Spec(), classes).items()}
    return {
        key: torch.from_numpy(np.asarray(formulas.weight(key, shape, seed)))
        for key, shape in shapes.items()
    }


def _channels_first(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def _setting(golden: Mapping[str, Any], path: Path) -> Setting:
    try:
        config = golden["config"]
        spec = Spec(
            global_px=tuple(config["size_g"]),
            patch_px=tuple(config["size_p"]),
            sub_batch=config["sub_batch"],
            official=True,
        )
        return Setting(
            seed=config["seed"],
            fixed_seed=config.get("fixed_seed", golden.get("fixed_seed", config["seed"] + 100)),
            height=config["h"],
            width=config["w"],
            classes=config.get("n_class", 7),
            spec=spec,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is no golden data of this format: `config` lacks or misnames {error}."
        ) from None


def _borrowed(golden: Mapping[str, Any], cases: list[Case], path: Path) -> Setting:
    """Sizes of the evaluation case whose logits are as large as those of a training step that
    tells nothing but its seeds."""
    try:
        shapes = {tuple(call[2][1:]) for call in golden["losses_in_call_order"] if len(call) > 2}
        seed = golden.get("seed", golden["image_seeds"][0])
        mode = int(golden["mode"])
    except (KeyError, TypeError, IndexError) as error:
        raise UserError(f"{path} is no golden data of this format: {error} is missing.") from None
    for case in cases:
        setting = case.setting
        sizes = [setting.spec.global_size] * (mode != 2) + [setting.spec.patch_size] * (mode != 1)
        if shapes == {(setting.classes, height // 4, width // 4) for height, width in sizes}:
            apart = setting.fixed_seed - setting.seed
            return replace(setting, seed=seed, fixed_seed=golden.get("fixed_seed", seed + apart))
    raise UserError(f"{path} has no `config`, and no evaluation case beside it fits its losses.")


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no table.")
    return content


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as arrays: {error}.") from None
