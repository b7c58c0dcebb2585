"""The contract of a method, and loading a method by its name.

A method is a package of four files. The harness uses only these names:

    spec.py       `Spec`: a frozen dataclass of all its settings; imports nothing heavy
                  `Strategy`: a Literal of the names of its strategies
    model.py      `build(spec, classes)`: the network, with random weights
                  `start(network, encoder_state)`: load start weights into its encoders
    training.py   `phases(network, spec)`, `view(...)`, `backward(...)`
    inference.py  `STRATEGIES`: how an image of any size is processed

One contract test covers every method and strategy.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, get_args

import torch
from torch import Generator, Tensor, nn

from bench.config import ModelConfig, RunConfig, strict
from bench.errors import UserError, out_of_memory
from bench.optim import Phase as Phase  # part of the contract
from bench.optim import View as View
from bench.tiling import (
    Box,
    Image,
    Large,
    Size,
    dtype_of_sums,
    labels_of,
    resize,
    summed_over_turnings,
)
from bench.windows.cuda_graph import with_graphs
from bench.windows.device_image import DeviceImage
from bench.windows.weights import fold, to_nhwc

ByWindows = Callable[[Any, Large, Any], None]
"""(network, image, spec): as a strategy's `predict`; the labels go where the image lies."""
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""A run's precisions below float32."""
Inputs = Callable[[Any, int, int], "Sequence[NetworkInput]"]
"""(spec, height and width of an image in px) -> what the network receives of it."""


@dataclass(frozen=True)
class Strategy:
    """How a network processes an image of any size."""

    predict: Callable[[Any, Tensor, Any], Tensor]
    """(network, image uint8 (3, H, W) on the host, spec) -> labels uint8 (H, W) on the host.

    Everything that is measured happens inside: copies to the device, normalisation, padding,
    tiling, stitching, arg max. torch operators alone, and no look at a value, so that it also runs
    on fake tensors. """
    parts: tuple[str, ...] | None = None
    """Children of the network that it needs; the others never reach the device. None: all."""
    prepare: Callable[[Any, Any], nn.Module] = lambda network, spec: network
    """(trained network in eval mode, spec) -> the one that `predict` is given. Happens once, when
    weights are loaded, and is not part of what is measured."""
    forward: Callable[[Any, Tensor, Any], Tensor] | None = None
    """(network, normalised image (1, 3, H, W) on its device, spec) -> scores (1, K, h, w) there:
    the one pass of a method that takes an image whole, which papers' speed is of."""
    scores: Callable[[Any, Tensor, Any], Tensor] | None = None
    """Arguments as of `predict` -> scores (K, H, W) on the host, of which `predict` takes the best;
    None where a strategy ends with labels. Where patches overlap they are sums."""
    by_windows: Callable[[Any], ByWindows | None] = lambda spec: None
    """(spec) -> how the strategy finds the same labels of an image that lies on the disk, whatever
    its size; None where it needs the image in memory."""
    inputs: Inputs = lambda spec, height_px, width_px: ()
    """For the report; inputs that depend on values are left out."""


@dataclass(frozen=True)
class Method:
    """The functions of one method package."""

    build: Callable[[Any, int], nn.Module]
    """(spec, number of classes) -> network with random weights; a UserError where there is none."""
    start: Callable[[Any, Mapping[str, Tensor]], None]
    """(network, encoder's state dict): start weights for every encoder in it."""
    phases: Callable[[Any, Any], list[Phase]]
    view: Callable[[Tensor, Tensor, Any, str, Generator], View]
    """(image (3, H, W) uint8, label (H, W) uint8, spec, phase, rng) -> view; runs in loader
    workers."""
    backward: Callable[[nn.Module, list[View], Any, str, Callable[[Tensor], None]], float]
    """(network, views on its device, spec, phase, back) -> loss; calls `back(loss)` itself, once or
    often."""
    strategies: Mapping[str, Strategy]


@dataclass(frozen=True)
class NetworkInput:
    """One kind of input of a strategy's network: windows of the image, all resized to one size."""

    what: str
    """For people: `patches`, `whole image`."""
    boxes: tuple[Box, ...]
    """In pixels of the image; where one leaves it there is nothing to be seen."""
    input_px: Size
    """(height, width) at which the network is given each of them."""
    context: bool = False
    """Whether each box is the surroundings of the box of the same index in the last input that is
    not a context."""

    @classmethod
    def whole(
        cls, height_px: int, width_px: int, input_px: Size, what: str = "whole image"
    ) -> "NetworkInput":
        """The whole image at one size."""
        return cls(what, (Box(0, 0, height_px, width_px),), input_px)

    @classmethod
    def patches(cls, boxes: Sequence[Box]) -> "NetworkInput":
        """Patches of one size at full resolution."""
        return cls("patches", tuple(boxes), boxes[0][2:])


def by_scores(
    scores: Callable[[Any, Image, Any], Tensor],
    inputs: Inputs,
    parts: tuple[str, ...] | None = None,
) -> Strategy:
    """A strategy whose labels are the arg max of scores, in memory or by windows.

    Args:
        scores: (network, image, spec) -> scores (K, h, w) of any size. They are summed over the
            spec's `test_time` augmentations and enlarged bilinearly. Empty for an image on disk
            whose labels are already written.
        inputs, parts: as in `Strategy`.
    """

    def own(network: Any, image: Image, spec: Any) -> Tensor:
        found = scores(network, image, spec)
        return found.to(dtype_of_sums(found))

    def enlarged(network: Any, image: Tensor, spec: Any) -> Tensor:
        def score(turned: Tensor) -> Tensor:
            return own(network, turned, spec)

        total = summed_over_turnings(image, getattr(spec, "test_time", ()), score)
        return resize(total[None], (image.shape[-2], image.shape[-1]))[0]

    def predict(network: Any, image: Tensor, spec: Any) -> Tensor:
        return labels_of(enlarged(network, image, spec))

    def by_windows(network: Any, image: Large, spec: Any) -> None:
        found = own(network, image, spec)
        if found.numel():
            image.enlarge(found, "bilinear")

    def windows(spec: Any) -> ByWindows | None:  # turned images would have to be in memory
        return None if getattr(spec, "test_time", ()) else by_windows

    return Strategy(predict, parts, scores=enlarged, by_windows=windows, inputs=inputs)


def by_windows_on_gpu(strategy: Strategy) -> Strategy:
    """The strategy, whose image and labels are on the network's GPU while it works, if it can work by
    windows: scores never reach the host. On the CPU it is the same."""

    def predict(network: nn.Module, image: Tensor, spec: Any) -> Tensor:
        device, by_windows = device_of(network), strategy.by_windows(spec)
        if device.type == "cpu" or by_windows is None:
            return strategy.predict(network, image, spec)
        there = DeviceImage(image, device)
        by_windows(network, there, spec)
        return there.labels.to(image.device)

    return replace(strategy, predict=predict)


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's weights."""
    return next(chain(network.parameters(), network.buffers())).device


def configured(strategy: Strategy, run: RunConfig) -> Strategy:
    """The strategy with a run's precision, layout and graphs."""

    first, plain = strategy.prepare, strategy

    def prepare(network: nn.Module, spec: Any) -> nn.Module:
        network = first(network, spec)
        if run.folded:
            small = torch.zeros(3, 64, 64, dtype=torch.uint8)
            fold(network, lambda: plain.predict(network, small, spec))
        if run.layout == "nhwc":
            to_nhwc(network)
        return with_graphs(network) if run.graphs else network

    def lowered(function: Callable[..., Any]) -> Callable[..., Any]:
        def called(network: nn.Module, *rest: Any) -> Any:
            with _in_precision(run.precision, device_of(network).type):
                return function(network, *rest)

        return called

    def by_windows(spec: Any) -> ByWindows | None:
        found = strategy.by_windows(spec)
        return lowered(found) if found else None

    strategy = replace(strategy, prepare=prepare)
    if run.precision == "fp32":
        return strategy
    return replace(
        strategy,
        predict=lowered(strategy.predict),
        forward=lowered(strategy.forward) if strategy.forward else None,
        scores=lowered(strategy.scores) if strategy.scores else None,
        by_windows=by_windows,
    )


@contextmanager
def _in_precision(precision: str, device: str) -> Iterator[None]:
    """Inside the block, convolutions and matrix products run in a run's precision below `fp32`, or
    without TF32; weights, and operators that need it, stay in float32."""
    if precision in AUTOCAST:
        with _autocast(device, AUTOCAST[precision]):
            yield
        return
    cudnn, before = torch.backends.cudnn, torch.backends.cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


@contextmanager
def _autocast(device: str, dtype: torch.dtype) -> Iterator[None]:
    # Not torch.autocast, which is disabled without a GPU, where fake tensors predict its memory.
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])
        torch.clear_autocast_cache()


def load(name: str) -> Method:
    """Load the method package `name`; imports torch and the networks, which takes seconds."""
    package = package_of(name)
    model, training, inference = (
        importlib.import_module(f"{package}.{part}") for part in ("model", "training", "inference")
    )

    # A model.py imports nothing of the harness, so that its errors are converted here.
    def build(spec: Any, classes: int) -> nn.Module:
        encoder = getattr(spec, "encoder", "")
        unknown = UserError(
            "The network cannot be built: segmentation-models-pytorch has no encoder "
            f"{encoder!r}; its documentation lists them all."
        )
        if ":" in encoder:  # timm takes it for a folder or an address
            raise unknown
        try:
            network: nn.Module = model.build(spec, classes)
        except ValueError as error:
            raise UserError(f"The network cannot be built: {error}") from None
        except (KeyError, RuntimeError) as error:  # RuntimeError: timm has no such model
            if not encoder or out_of_memory(error):
                raise
            raise unknown from error
        return network

    def start(network: nn.Module, state: Mapping[str, Tensor]) -> None:
        try:
            model.start(network, state)
        except ValueError as error:
            raise UserError(f"The network cannot take its start weights: {error}") from None

    return Method(
        build=build,
        start=start,
        phases=training.phases,
        view=training.view,
        backward=training.backward,
        strategies={n: by_windows_on_gpu(one) for n, one in inference.STRATEGIES.items()},
    )


def spec_of(name: str, model: ModelConfig, run: RunConfig | None = None) -> Any:
    """The checked `Spec` of a model, with the overrides of a run. Does not import torch."""
    module = importlib.import_module(f"{package_of(model.method)}.spec")
    values = {**model.spec, **(run.overrides if run else {})}
    return strict(module.Spec, values, f"params.yaml: models.{name}.spec")


def network_inputs(
    run: RunConfig, model: ModelConfig, height_px: int, width_px: int
) -> Sequence[NetworkInput]:
    """The network inputs of a run for an image size; empty if its strategy does not describe them."""
    strategy = load(model.method).strategies[run.strategy]
    return strategy.inputs(spec_of(run.model, model, run), height_px, width_px)


def check_strategy(name: str, run: RunConfig, model: ModelConfig) -> None:
    """Raise a UserError if a run's method does not have its strategy."""
    known = get_args(importlib.import_module(f"{package_of(model.method)}.spec").Strategy)
    if run.strategy not in known:
        raise UserError(
            f"params.yaml: runs.{name}.strategy is {run.strategy!r}; "
            f"method {model.method} has {', '.join(known)}."
        )


def network_for(method: Method, strategy: Strategy, spec: Any, classes: int) -> nn.Module:
    """The network in eval mode with random weights and only the parts that the strategy needs."""
    network = method.build(spec, classes).eval().requires_grad_(False)
    if strategy.parts is not None:
        for part in [name for name, _ in network.named_children() if name not in strategy.parts]:
            delattr(network, part)
    return network


def load_weights(network: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load a checkpoint into a network, which may have only some of the checkpoint's parts."""
    own = network.state_dict()
    parts = {key.split(".", 1)[0] for key in own}
    state = {key: value for key, value in state.items() if key.split(".", 1)[0] in parts}
    wrong = sorted(own.keys() ^ state.keys()) or [
        key for key in own if own[key].shape != state[key].shape
    ]
    if wrong:
        raise UserError(
            f"{origin} does not fit the network ({len(wrong)} keys differ, first {wrong[0]}): "
            "`dvc repro` trains it again; a file of your own has to be of the same method and spec."
        )
    network.load_state_dict(dict(state))


def package_of(method: str) -> str:
    """The package of a method: `baselines/isdnet` -> `baselines.isdnet`.

    Raises:
        UserError: there is no such package.
    """
    package = method.replace("/", ".")
    parents = [package[:i] for i, letter in enumerate(package) if letter == "."]
    # find_spec imports the parents of a dotted name, so that each is looked up first.
    for name in (*parents, package, f"{package}.spec"):
        try:
            sound = all(part.isidentifier() for part in name.split("."))
            found = sound and importlib.util.find_spec(name)
        except (ImportError, ValueError):  # below a module, or `__main__`
            found = None
        if not found:
            raise UserError(
                f"params.yaml names the method {method!r}, but there is no folder {method}/ "
                "with a spec.py."
            )
    return package
