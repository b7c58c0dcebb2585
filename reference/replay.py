"""Running what golden data describes: networks of formula weights, their calls, one training
step."""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from bench.method import View, load
from bench.optim import UNLABELLED, adam
from reference import formulas
from reference.golden import Golden

FLOAT = {"float32": torch.float32, "float64": torch.float64}
Arrays = dict[str, NDArray[Any]]
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""By which the released codes of ISDNet and later methods normalise images in golden data."""


class _Undrawn(TorchFunctionMode):
    """Leaves new weights as they are allocated: those of the formulas follow."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__.endswith(("normal_", "uniform_")):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


class NearestInFloat32(TorchFunctionMode):
    """Enlarges float64 maps by `nearest` as float32 ones.

    The released codes compute in float32, where torch finds the source pixel with a scale of 32
    bits. Its CPU kernel uses 64 bits for float64, and finds another pixel where the exact place is
    a whole number: 5 of 410 rows that are enlarged from 40. Labels would differ for that alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        double = func is F.interpolate and args and args[0].dtype == torch.float64
        if not double or kwargs.get("mode", "nearest") != "nearest" or args[0].dim() != 4:
            return func(*args, **kwargs)
        map = args[0]
        height, width = map.shape[-2:]
        down = torch.arange(height, dtype=torch.float32).view(1, 1, height, 1)
        across = torch.arange(width, dtype=torch.float32).view(1, 1, 1, width)
        size = (1, 1, height, width)
        rows, columns = (
            func(one.expand(size), *args[1:], **kwargs)[0, 0] for one in (down, across)
        )
        return map[..., rows[:, :1].long(), columns[:1].long()]


def network_of(
    method: str,
    spec: Any,
    classes: int,
    weight: Callable[[str, Sequence[int]], formulas.Weight],
    keep: Sequence[str] = (),
    dtype: str = "float32",
) -> Any:
    """A method's network in eval mode, with the weights of the formulas.

    Args:
        weight: our key, its shape -> its value.
        keep: children of the network that are needed; none: all.
    """
    with _Undrawn():
        network = load(method).build(spec, classes)
    for part in [name for name, _ in network.named_children() if keep and name not in keep]:
        delattr(network, part)
    fill(network, weight)
    return network.to(FLOAT[dtype]).eval().requires_grad_(False)


def seeded(
    weight: Callable[[str, Sequence[int], int], formulas.Weight],
    official_key: Callable[[str], str],
    seed: int,
) -> Callable[[str, Sequence[int]], formulas.Weight]:
    """A formula of official keys, as a formula of our keys for one seed."""
    return lambda key, shape: weight(official_key(key), shape, seed)


def fill(module: nn.Module, weight: Callable[[str, Sequence[int]], formulas.Weight]) -> None:
    """Give a module the weights of the formulas, by its own keys."""
    with torch.no_grad():
        for key, value in module.state_dict().items():
            value.copy_(torch.from_numpy(np.asarray(weight(key, tuple(value.shape)))))


def image_of(height: int, width: int, seed: int) -> Tensor:
    """An image (3, H, W) uint8."""
    return from_pixels(formulas.image(height, width, seed))


def label_of(height: int, width: int, seed: int, classes: int) -> Tensor:
    """Its label (H, W) uint8."""
    return torch.from_numpy(formulas.label(height, width, seed, classes))


def labels_of(config: Mapping[str, Any], seeds: Iterable[int]) -> Tensor:
    """Labels (N, H, W) uint8 of a training step; the first ones have no label in the corner that the
    case names."""
    classes, told = config.get("n_class", 7), config.get("label", "")
    labels = torch.stack([label_of(config["h"], config["w"], seed, classes) for seed in seeds])
    if corner := re.search(r"rows 0\.\.(\d+), columns 0\.\.(\d+)", told):
        labels[:, : int(corner[1]) + 1, : int(corner[2]) + 1] = UNLABELLED
    elif corner := re.search(r"\[:(\d+),:(\d+)\] = 255", told):
        labels[:, : int(corner[1]), : int(corner[2])] = UNLABELLED
    return labels


def normalised(image: Tensor) -> Tensor:
    """(3, H, W) uint8 -> (1, 3, H, W) by `MEAN` and `STD`, rounded to float32 once."""
    mean, std = (np.array(values)[:, None, None] for values in (MEAN, STD))
    found = (image.numpy().astype(np.float64) - mean) * (1 / std)
    return torch.from_numpy(found.astype(np.float32))[None]


def images_of(config: Mapping[str, Any], seeds: Iterable[int]) -> Tensor:
    """Images (N, 3, H, W) uint8 of a training step."""
    return torch.stack([image_of(config["h"], config["w"], seed) for seed in seeds])


def shrink(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(3, H, W) uint8 at another size, by Pillow itself, as in the released codes."""
    pixels = Image.fromarray(pixels_of(image))
    small = pixels.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return from_pixels(np.asarray(small))


def from_pixels(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) -> (3, H, W)."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def pixels_of(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) -> (H, W, 3)."""
    found: NDArray[np.uint8] = image.permute(1, 2, 0).contiguous().numpy()
    return found


def one_of(*names: str) -> str:
    """A pattern for `calls_of`: any of these parts."""
    return "|".join(map(re.escape, names))


class Call(NamedTuple):
    """What a part of a network was given, and what it gave; copies."""

    given: Any
    output: Any


@contextmanager
def calls_of(network: nn.Module, pattern: str) -> Iterator[dict[str, list[Call]]]:
    """Inside it every call of the parts whose whole names match is taken down."""
    calls: dict[str, list[Call]] = defaultdict(list)

    def watch(name: str, part: nn.Module) -> list[Any]:
        given: list[Any] = []
        return [
            part.register_forward_pre_hook(lambda _, arguments: given.append(_copy(arguments))),
            part.register_forward_hook(
                lambda *call: calls[name].append(Call(given.pop(), _copy(call[-1])))
            ),
        ]

    parts = [one for one in network.named_modules() if re.fullmatch(pattern, one[0])]
    handles = [handle for name, part in parts for handle in watch(name, part)]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _copy(value: Any) -> Any:
    """Tensors may be written over later; all else is kept as it is."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_copy, value))
    return type(value)(map(_copy, value)) if isinstance(value, tuple | list) else value


class Step(NamedTuple):
    """What one training step did, by official keys, in float64."""

    logged: float
    losses: list[float]
    gradients: dict[str, Tensor]
    updates: dict[str, Tensor]


def step(
    network: nn.Module,
    run: Callable[[Callable[[Tensor], None]], float],
    official_key: Callable[[str], str],
    optimizer: torch.optim.Optimizer | None = None,
    rate: float = 0,
) -> Step:
    """One training step.

    Args:
        run: is given what walks a loss back; returns the loss that is logged.
        optimizer: None: gradients alone, and nothing moves.
    """
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    losses: list[float] = []

    def back(loss: Tensor) -> None:
        losses.append(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]

    logged = run(back)
    moving = {key: p for key, p in network.named_parameters() if p.grad is not None}
    if optimizer is not None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    return Step(
        logged,
        losses,
        {official_key(key): p.grad.double() for key, p in moving.items() if p.grad is not None},
        {official_key(key): (p.detach() - before[key]).double() for key, p in moving.items()},
    )


def step_of_terms(
    network: nn.Module,
    losses: Callable[[], Mapping[str, Tensor]],
    official_key: Callable[[str], str],
) -> tuple[dict[str, float], Step]:
    """Each term of a loss, and what the gradients of their sum are."""
    terms: dict[str, float] = {}

    def run(back: Callable[[Tensor], None]) -> float:
        found = losses()
        total = torch.stack([*found.values()]).sum()
        terms.update({name: float(term.detach()) for name, term in found.items()})
        back(total)
        return float(total.detach())

    done = step(network, run, official_key)
    return terms, done


def train(
    network: nn.Module,
    package: str,
    spec: Any,
    phase: str,
    views: list[View],
    golden: Golden,
    official_key: Callable[[str], str],
) -> Step:
    """One step of a phase as the harness runs it, with Adam."""
    method = load(package)
    modules = next(one for one in method.phases(network, spec) if one.name == phase).trains
    # A phase's start from earlier ones (`Phase.begin`) is in the weights already.
    for module in modules:
        module.train().requires_grad_(True)
    return step(
        network,
        lambda back: method.backward(network, views, spec, phase, back),
        official_key,
        adam(modules, golden["weight_decay"]),
        golden["lr"],
    )
