"""Peak memory of any network, computed on fake tensors: `predict_memory`.

The suite's own runs and training steps go through the same `trace` (`bench.memory.runs`)."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._pytree import tree_leaves, tree_map

from bench.errors import UserError
from bench.memory.cuda_allocator import OutOfMemoryError, play
from bench.memory.gpu_overhead import GpuOverhead, blas_bytes, gpu_overhead_of, has_tf32
from bench.memory.rules import RULES, TF32, has_amx
from bench.memory.tracker import Category, Event, Tracker, bytes_of, tensors_of

MOMENTS = 120
"""Maximum number of moments in a recorded timeline; enough for a figure."""
Mode = Literal["inference", "training"]
SMALL = 2**14
"""Elements up to which a tensor is real while a network is built, because constructors read such
values: a stochastic depth by layer, the positions of a grid."""
AUTOCAST = "autocast was traced with the CPU's lists; CUDA's keep more operators in float32"
WITH_AMX = "no rule says what oneDNN's bfloat16 kernels with AMX take inside themselves"
STEPS = 2
"""Steps traced: the first one creates the optimiser's state, the second one has it."""
UNRECORDED = {"recorded": False}
"""Metadata of fields that records leave out."""


@dataclass(frozen=True)
class Prediction:
    """Predicted memory and operations of one call of a network, or of a training step."""

    device_bytes: int
    """All tensors on the device, and by rule what operators take inside themselves."""
    host_bytes: int
    """On the host: the image, label and score maps, stored maps. On the CPU the same as
    `device_bytes`."""
    weights_bytes: int
    at: str
    """The operator at the peak on the device."""
    module: str
    """The module at the peak on the device; empty outside all modules."""
    by_category: Mapping[Category, int]
    """Bytes of each category at the peak on the device."""
    reserved_bytes: int | None
    """Segments of CUDA's caching allocator; None on the CPU, whose allocator does not cache."""
    allocated_bytes: int | None
    """As torch.cuda.max_memory_allocated reports; None on the CPU."""
    tf32_reserved_bytes: int | None
    """As `reserved_bytes`, on a GPU with TF32, whose convolutions copy into NHWC
    (`rules.TF32`)."""
    tf32_allocated_bytes: int | None
    """As `allocated_bytes`, on such a GPU."""
    parameters: int
    flops: int
    """Of convolutions and matrix products, a multiplication and an addition counting as two."""
    device: str = field(repr=False, metadata=UNRECORDED)
    blas_threads: int = field(repr=False, metadata=UNRECORDED)
    """Host threads that multiply matrices, up to two with autograd's: each has a workspace of
    cuBLAS."""
    events: Sequence[Event] = field(repr=False, metadata=UNRECORDED)
    """Every block that is allocated or freed, in order; also those of the device's variants."""
    categories: Sequence[Category] = field(repr=False, metadata=UNRECORDED)
    """Of each event's block."""
    doubts: tuple[str, ...] = field(metadata=UNRECORDED)
    """Why the figures may be wrong, a sentence each."""

    def figures(self) -> dict[str, Any]:
        """What records keep."""
        return {
            one.name: getattr(self, one.name)
            for one in fields(self)
            if "recorded" not in one.metadata
        }

    def reserved_on(self, gpu: str = "") -> int:
        """Bytes that torch reserves on the GPU `gpu`, cuBLAS's workspaces included; on the CPU
        those of the tensors."""
        found = self.tf32_reserved_bytes if has_tf32(gpu) else self.reserved_bytes
        if found is None:
            return self.device_bytes
        return found + self.blas_threads * blas_bytes(gpu)

    def process_bytes(self, gpu: str = "", overhead: GpuOverhead | None = None) -> int:
        """Bytes of the whole process on the GPU `gpu`, its context included; on the CPU those of the
        tensors. `overhead`: by default assumed for the GPU."""
        if self.reserved_bytes is None:
            return self.device_bytes
        overhead = overhead or gpu_overhead_of(gpu)
        return self.reserved_on(gpu) + overhead.context_bytes + overhead.workspace_bytes

    def fits(self, budget: int, gpu: str = "", overhead: GpuOverhead | None = None) -> bool:
        """Whether the process fits into `budget` bytes: torch's allocator frees what it caches
        before it runs out of memory, so that less than `process_bytes` can do."""
        if self.reserved_bytes is None:
            return self.device_bytes <= budget
        workspaces = self.blas_threads * blas_bytes(gpu)
        beside = self.process_bytes(gpu, overhead) - self.reserved_on(gpu) + workspaces
        try:
            play(self.events, self.device, budget - beside, TF32 if has_tf32(gpu) else "")
        except OutOfMemoryError:
            return False
        return True

    def timeline(self, moments: int = MOMENTS) -> dict[str, Any]:
        """Live bytes by category at up to `moments` events (`timeline`)."""
        pairs = zip(self.events, self.categories, strict=True)
        own = [(event, kind) for event, kind in pairs if event.device == self.device]
        return timeline([event for event, _ in own], [kind for _, kind in own], moments)


def mean_of(outputs: Any) -> Tensor:
    """The mean of all floating-point tensors of a network's outputs: a loss where none is given."""
    tensors = (leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor))
    means = [leaf.float().mean() for leaf in tensors if leaf.is_floating_point()]
    if not means:
        raise UserError("The network returns no floating-point tensor: give a Recipe with a loss.")
    return torch.stack(means).sum() if len(means) > 1 else means[0]


@dataclass(frozen=True)
class Recipe:
    """How a network is run and trained. Layout, type and trainability of weights are the network's
    own: build it so, for instance `lambda: resnet50().to(memory_format=torch.channels_last)`."""

    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = torch.optim.AdamW
    """Makes the optimiser of the trainable parameters; None: gradients alone."""
    loss: Callable[[Any], Tensor] = mean_of
    """Maps outputs to a scalar. Targets are inputs of a network that returns its loss."""
    autocast: torch.dtype | None = None
    """Precision of the forward pass; None: that of the weights."""
    scaled: bool = False
    """Whether a GradScaler scales the loss, as float16 needs it."""
    accumulate: int = 1
    """Forward and backward passes per optimiser step."""
    ddp: bool = False
    """Whether DistributedDataParallel keeps its buckets: the gradients once more."""


def predict_memory(
    build: Callable[[], nn.Module],
    inputs: Any,
    device: Literal["cuda", "cpu"] = "cuda",
    mode: Mode = "inference",
    recipe: Recipe = Recipe(),
) -> Prediction:
    """Peak memory of a network, on fake tensors: without weights, data or the device.

    The network runs on fake CPU tensors that count as the device's, with the device's rules. In
    inference it is in eval mode and under torch.inference_mode; in training it keeps its modes, and
    two optimiser steps are traced.

    Args:
        build: makes the network, or returns one, which stays as it is.
        inputs: a list of positional or a dict of keyword arguments; anything else is the only
            argument. In it a shape is a tuple of whole numbers, for float32, or `(shape, dtype)`;
            of a tensor only shape, strides and type are used.

    Raises:
        UserError: an operator has no result that could be predicted: its shape depends on values.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with Building():
            network = build()
        network = fake_copy(network, fake, "cpu")
        with fake:
            args, kwargs = _arguments(inputs)
            given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            make = training_work if mode == "training" else inference_work
            work = make(network, args, kwargs, recipe)
            found = trace(work, network, given, device, stands_for=True)
    except (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    ) as error:
        raise UserError(
            f"The memory of {type(network).__name__} cannot be predicted: the result of the "
            f"operator {error.func} depends on values, which fake tensors lack."
        ) from error
    types = {recipe.autocast, *(tensor.dtype for tensor in tensors_of(network))}
    amx = device == "cpu" and torch.bfloat16 in types and has_amx()
    more = {AUTOCAST: recipe.autocast and device == "cuda", WITH_AMX: amx}
    return replace(found, doubts=(*found.doubts, *(text for text, true in more.items() if true)))


Work = Callable[[Tracker], object]


def trace(
    work: Work,
    network: nn.Module,
    inputs: Iterable[Tensor],
    device: str,
    stands_for: bool = False,
) -> Prediction:
    """Memory of `work`, which calls a network of fake tensors.

    Args:
        inputs: tensors that exist already beside the network's.
        device: what is predicted.
        stands_for: the tensors are the CPU's, but count as the device's. A training step has to be
            traced so, because torch's autograd engine requires a GPU for CUDA tensors. Assumed: the
            operators that torch selects by device save the same tensors for the backward pass.
    """
    tracker = Tracker(
        tensors_of(network), network, RULES, {"cpu": device} if stands_for else None, TF32
    )
    tracker.add(inputs, "inputs")
    with tracker:
        work(tracker)
    events = list(tracker.events)  # frees follow as soon as the tensors go
    peak = tracker.peak_of(device)
    held = play(events, device) if device == "cuda" else None
    copied = play(events, device, variant=TF32) if device == "cuda" else None
    return Prediction(
        device_bytes=peak.bytes,
        host_bytes=tracker.peak["cpu"],
        weights_bytes=bytes_of(tensors_of(network)),
        at=peak.operator,
        module=peak.module,
        by_category=peak.by_category,
        reserved_bytes=held.reserved_bytes if held else None,
        allocated_bytes=held.allocated_bytes if held else None,
        tf32_reserved_bytes=copied.reserved_bytes if copied else None,
        tf32_allocated_bytes=copied.allocated_bytes if copied else None,
        parameters=sum(p.numel() for p in network.parameters()),
        flops=tracker.flops,
        device=device,
        blas_threads=len(tracker.multiplying),
        events=events,
        categories=tracker.categories(events),
        doubts=_doubts(tracker),
    )


def fake_copy(network: nn.Module, mode: FakeTensorMode, device: str) -> nn.Module:
    """A copy of a network whose weights and buffers are fake tensors on `device`; weights that
    modules share stay shared."""
    copies: dict[int, Any] = {}
    with mode:
        for old in tensors_of(network):
            new = torch.empty_strided(old.shape, old.stride(), dtype=old.dtype, device=device)
            parameter = isinstance(old, nn.Parameter)
            copies[id(old)] = nn.Parameter(new, old.requires_grad) if parameter else new
    return copy.deepcopy(network, copies)


class Building(TorchFunctionMode):
    """Inside the block new tensors are on the meta device, except small ones, which can be read."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.__bool__ and args[0].is_meta:  # `while mask.any()` of trunc_normal_
            return False
        if (
            func is Tensor.copy_ and args[1].is_meta and not args[0].is_meta
        ):  # has no values to copy
            return args[0]
        if func in _device_constructors() and kwargs.get("device") is None:
            large = func(*args, **kwargs | {"device": "meta"})
            return large if large.numel() > SMALL else func(*args, **kwargs)
        return func(*args, **kwargs)


def _arguments(inputs: Any) -> tuple[list[Any], dict[str, Any]]:
    """Positional and keyword arguments of fake tensors."""
    made = tree_map(_argument, inputs, is_leaf=_is_tensor_like)
    if isinstance(made, dict):
        return [], made
    return (made if isinstance(made, list) else [made]), {}


def _is_shape(value: Any) -> bool:
    return isinstance(value, tuple) and all(type(one) is int for one in value)


def _is_tensor_like(value: Any) -> bool:
    typed = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], torch.dtype)
    return _is_shape(value) or (typed and _is_shape(value[0]))


def _argument(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        made = torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="cpu")
        return made.requires_grad_(leaf.requires_grad)
    if not isinstance(leaf, tuple):
        return leaf
    shape, dtype = (leaf, torch.float32) if _is_shape(leaf) else leaf
    return torch.empty(shape, dtype=dtype, device="cpu")


def inference_work(network: nn.Module, args: Any, kwargs: Any, recipe: Recipe) -> Work:
    """One call of a network, of real or fake tensors."""
    network.eval()

    def work(_: Tracker) -> None:
        with torch.inference_mode(), _precision(recipe):
            network(*args, **kwargs)

    return work


def training_work(network: nn.Module, args: Any, kwargs: Any, recipe: Recipe) -> Work:
    """`STEPS` optimiser steps of a network, of real or fake tensors."""
    trained = [p for p in network.parameters() if p.requires_grad]
    if not trained:
        raise UserError(f"{type(network).__name__} has no weight that requires a gradient.")
    optimizer = recipe.optimizer(trained) if recipe.optimizer else None
    scaler = torch.amp.GradScaler("cpu", enabled=recipe.scaled)

    def step() -> None:
        for _ in range(recipe.accumulate):
            with _precision(recipe):
                loss = recipe.loss(network(*args, **kwargs))
            if recipe.accumulate > 1:
                loss = loss / recipe.accumulate
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            del loss
        if optimizer:
            if recipe.scaled:
                scaler.unscale_(optimizer)
            optimizer.step()
            if recipe.scaled:
                scaler.update()
        for parameter in trained:
            parameter.grad = None

    def work(tracker: Tracker) -> None:
        if recipe.ddp:
            buckets = [torch.empty_like(parameter) for parameter in trained]
            tracker.add(buckets, "gradients")
        for _ in range(STEPS):
            step()

    return work


def _precision(recipe: Recipe) -> Any:
    return torch.autocast("cpu", dtype=recipe.autocast) if recipe.autocast else nullcontext()


def _doubts(tracker: Tracker) -> tuple[str, ...]:
    doubts = [
        f"{module or 'The code outside of all modules'} reads values with {operator}, "
        f"which fake tensors lack: assumed were 1 for a number, and all elements for a mask"
        for operator, module in tracker.read
    ]
    if tracker.without_rule:
        named = ", ".join(sorted(tracker.without_rule))
        doubts.append(f"no rule says what memory these operators take inside themselves: {named}")
    return tuple(doubts)


def timeline(
    events: Sequence[Event], categories: Sequence[Category], moments: int = MOMENTS
) -> dict[str, Any]:
    """Live bytes by category at up to `moments` events: the largest of each of that many equal
    intervals, so that the peak is included.

    Args:
        events: in order, on one device.
        categories: of each event's block.

    Returns:
        `events`: indices of the chosen events; `bytes`: by category, one number per chosen event.
    """
    if not events:
        return {"events": [], "bytes": {}}
    names = list(dict.fromkeys(categories))
    changes = np.zeros((len(events), len(names)), np.int64)
    for number, (event, category) in enumerate(zip(events, categories, strict=True)):
        changes[number, names.index(category)] = event.bytes
    alive = changes.cumsum(0)  # (events, categories)
    total = alive.sum(1)
    stretches = np.array_split(np.arange(len(events)), min(moments, len(events)))
    chosen = [int(stretch[total[stretch].argmax()]) for stretch in stretches]
    return {
        "events": chosen,
        "bytes": {name: alive[chosen, place].tolist() for place, name in enumerate(names)},
    }
