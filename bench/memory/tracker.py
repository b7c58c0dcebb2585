"""Tracks the memory of tensors: which operator allocates how much, and when it is freed.

A dispatch mode intercepts every operator and tracks each new storage until it is freed. With fake
tensors it gives the same result for any device, within seconds, without computing anything.
Temporary memory inside an operator is not dispatched: a table of rules adds it (`rules`)."""

import logging
import weakref
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry
from torch.utils.weak import WeakIdKeyDictionary

from bench.memory.fake_operators import (
    VIEWS,
    called,
    in_nchw_if_both,
    with_torchs_strides,
    without_values,
)
from bench.memory.modules import Modules
from bench.memory.rules import PRODUCTS, Moment, Rules, Use

# Of an operator that fails it prints a traceback, and raises the error as well.
logging.getLogger("torch._subclasses.fake_tensor").setLevel(logging.CRITICAL)

Category = Literal[
    "weights", "inputs", "activations", "gradients", "optimiser state", "temporaries"
]
"""`weights`: parameters and buffers; `inputs`: the image or the views; `activations`: results of
operators in the forward pass, and of those that the backward pass computes again; `gradients`: of
all others in the backward pass; `optimiser state`: what an optimiser keeps from step to step;
`temporaries`: memory inside an operator, and what the optimiser's step allocates besides its
state."""


class Event(NamedTuple):
    """A block is allocated or freed."""

    block: int
    """Its number, the same for both events."""
    bytes: int
    """Negative for a free."""
    device: str
    operator: str
    module: str


class Peak(NamedTuple):
    """The moment with the most live bytes on a device."""

    bytes: int
    by_category: dict[Category, int]
    operator: str
    module: str


class Script(NamedTuple):
    """A sequence of events that can be replayed, its blocks numbered from 0."""

    events: Sequence[Event]
    categories: Sequence[Category]
    """By block."""
    left: Mapping[int, int]
    """Blocks alive at the end: number when recorded -> number here."""
    most: Mapping[str, int]
    """Most live bytes at once in addition to those at the start, by device type."""


class Tracker(TorchDispatchMode):
    """Tracks the storage of every tensor that an operator creates, by device, until it is freed.

    A storage that several tensors share counts once. Use as a context manager around the work.
    """

    def __init__(
        self,
        existing: Iterable[Tensor] = (),
        network: nn.Module | None = None,
        rules: Mapping[str, Rules] | None = None,
        stands_for: Mapping[str, str] | None = None,
        variant: str = "",
    ) -> None:
        """
        Args:
            existing: tensors that exist already and count, for instance the weights.
            network: the network whose modules are reported.
            rules: temporary memory of operators, by device type.
            stands_for: device types that are tracked as another one, with its rules.
            variant: also track the moments of this variant (`Moment.variant`).
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now: dict[str, int] = defaultdict(int)
        """Bytes alive, by device type."""
        self.peak: dict[str, int] = defaultdict(int)
        """Most bytes alive at once, by device type."""
        self.events: list[Event] = []
        self.flops = 0
        """Of convolutions and matrix products, a multiplication and an addition counting as two."""
        self.multiplying: set[bool] = set()
        """Threads that multiply matrices: whether it is autograd's."""
        self.read: Counter[tuple[str, str]] = Counter()
        """Operators whose result depends on values, and their modules: how often one was guessed."""
        self.without_rule: Counter[str] = Counter()
        """Operators whose temporaries are not known: how often each was called."""
        self._seeing = True
        self._in_step = False
        self._hooks: list[Any] = []
        self._categories: list[Category] = []
        self._seen: Any = WeakIdKeyDictionary()
        self._rules = rules or {}
        self._stands_for = stands_for or {}
        self._variants = {"", variant}
        self._modules = Modules(network) if network else None
        self.add(existing, "weights")

    def __enter__(self) -> "Tracker":
        if self._modules:
            self._modules.start()
        self._hooks = [
            register_optimizer_step_pre_hook(self._step_begins),
            register_optimizer_step_post_hook(self._step_ends),
        ]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        for hook in self._hooks:
            hook.remove()
        if self._modules:
            self._modules.stop()

    def _step_begins(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._in_step = True
        for group in optimizer.param_groups:
            # torch's default depends on the tensors' device; here they may stand for another one.
            if group.get("foreach", False) is None and not group.get("fused"):
                group["foreach"] = self._stands_for.get("cpu") == "cuda"

    def _step_ends(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        self._in_step = False
        kept = (value for state in optimizer.state.values() for value in state.values())
        self.add((value for value in kept if isinstance(value, Tensor)), "optimiser state")

    @property
    def category(self) -> Category:
        """Category of the results of operators at this moment."""
        if self._in_step:
            return "temporaries"
        # A checkpointed forward pass runs again within the backward pass, with gradients enabled.
        back = torch._C._current_autograd_node() is not None and not torch.is_grad_enabled()
        return "gradients" if back else "activations"

    def add(self, tensors: Iterable[Tensor], category: Category) -> None:
        """Track tensors that exist already; set the category of those tracked already."""
        for tensor in tensors:
            if (block := self._seen.get(tensor.untyped_storage())) is not None:
                self._categories[block] = category
            else:
                self._track(tensor, "before the first operator", "", category)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # Without gradients such a view is of no module: that of its gradient is not asked for.
        view = func in VIEWS and args[0].untyped_storage() in self._seen
        if not self._seeing or (view and not torch.is_grad_enabled()):
            return called(func, args, kwargs)
        module = self._modules.current() if self._modules else ""
        result = without_values(func, args)
        if result is None:
            result = called(func, args, kwargs)
        elif not self._in_step:  # an optimiser reads its hyperparameters
            self.read[str(func), module] += 1
        operator = str(func)
        self.flops += flops_of(func, args, kwargs, result)
        if func._schema.name in PRODUCTS:
            self.multiplying.add(torch._C._current_autograd_node() is not None)
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if operator in ("aten.view.default", "aten.reshape.default") and 1 in result.shape:
            with_torchs_strides(result, args[0])
        if func._schema.name.endswith("batch_norm") and self._device(made[0]) == "cpu":
            in_nchw_if_both(made[0])
        moments = self._inside(func, args, kwargs, result, made)
        for moment in moments:
            if not moment.results:
                self._pass(moment, made[0], operator, module)
        for leaf in made:
            self._track(leaf, operator, module, self.category)
        for moment in moments:
            if moment.results:
                self._pass(moment, made[0], operator, module)
        return result

    def peak_of(self, device: str) -> Peak:
        """The peak on a device type, by category."""
        events = [event for event in self.events if event.device == device]
        totals = list(accumulate(event.bytes for event in events))
        if not (most := max(totals, default=0)):
            return Peak(0, {}, "", "")
        at = totals.index(most)
        now: Counter[Category] = Counter()
        for event in events[: at + 1]:
            now[self._categories[event.block]] += event.bytes
        by_category = {name: size for name, size in now.items() if size}
        return Peak(most, by_category, events[at].operator, events[at].module)

    def categories(self, events: Iterable[Event]) -> list[Category]:
        """Of each event's block."""
        return [self._categories[event.block] for event in events]

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Operators inside the block are not tracked."""
        self._seeing = False
        try:
            yield
        finally:
            self._seeing = True

    def block_of(self, tensor: Tensor) -> int:
        """The number of a tensor's block; -1 if it is not tracked."""
        return int(self._seen.get(tensor.untyped_storage(), -1))

    def script(self, begun: int) -> Script | None:
        """The events from number `begun` on; None if they free an older block."""
        numbers: dict[int, int] = {}
        left: dict[int, int] = {}
        events: list[Event] = []
        now: dict[str, int] = defaultdict(int)
        most: dict[str, int] = defaultdict(int)
        for event in self.events[begun:]:
            if event.block in numbers:
                del left[event.block]
            elif event.bytes < 0:
                return None
            else:
                left[event.block] = numbers[event.block] = len(numbers)
            events.append(event._replace(block=numbers[event.block]))
            now[event.device] += event.bytes
            most[event.device] = max(most[event.device], now[event.device])
        categories = [self._categories[block] for block in numbers]
        return Script(events, categories, left, most)

    def play(self, script: Script, storages: Mapping[int, Tensor], brief: bool) -> None:
        """Replay a script.

        Args:
            storages: a new tensor for each block that is alive at the script's end.
            brief: leave out temporary blocks, unless they raise a peak.
        """
        brief = brief and all(
            self.now[device] + more <= self.peak[device] for device, more in script.most.items()
        )
        numbers: dict[int, int] = {}
        for block, size, device, operator, module in script.events:
            if brief and block not in storages:
                continue
            if block in numbers:
                self._free(numbers[block], device, -size)
            else:
                numbers[block] = self._take(
                    size, device, operator, module, script.categories[block]
                )
        for block, tensor in storages.items():
            self._follow(tensor, numbers[block])

    def _inside(
        self, func: Any, args: Any, kwargs: Any, result: Any, made: list[Tensor]
    ) -> list[Moment]:
        schema = func._schema
        rules = self._rules.get(self._device(made[0])) if made else None
        if rules is None:
            return []
        rule = rules.get(schema.name)
        if rule is None:
            if not _elementwise_or_view(func):
                self.without_rule[str(func)] += 1
            return []
        named = {one.name: one.default_value for one in schema.arguments}
        named |= zip(named, args, strict=False)
        found = rule(Use(named | kwargs, result))
        return [moment for moment in found if moment.variant in self._variants]

    def _device(self, tensor: Tensor) -> str:
        return self._stands_for.get(tensor.device.type, tensor.device.type)

    def _pass(self, moment: Moment, made: Tensor, operator: str, module: str) -> None:
        """Allocate and free the blocks of a moment, on the device of a result."""
        device = f"{self._device(made)} {moment.variant}".strip()
        blocks = [(self._take(size, device, operator, module), size) for size in moment.blocks]
        for block, size in blocks:
            self._free(block, device, size)

    def _track(self, tensor: Tensor, operator: str, module: str, category: Category) -> None:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            device, size = self._device(tensor), storage.nbytes()
            self._follow(tensor, self._take(size, device, operator, module, category))

    def _follow(self, tensor: Tensor, block: int) -> None:
        """Free a block as soon as its tensor's storage is freed."""
        storage = tensor.untyped_storage()
        self._seen[storage] = block
        free = weakref.finalize(storage, self._free, block, self._device(tensor), storage.nbytes())
        free.atexit = False

    def _take(
        self,
        size: int,
        device: str,
        operator: str,
        module: str,
        category: Category = "temporaries",
    ) -> int:
        block = len(self._categories)
        self._categories.append(category)
        self.events.append(Event(block, size, device, operator, module))
        self.now[device] += size
        self.peak[device] = max(self.peak[device], self.now[device])
        return block

    def _free(self, block: int, device: str, size: int) -> None:
        self.events.append(Event(block, -size, device, "", ""))
        self.now[device] -= size


def tensors_of(network: nn.Module) -> list[Tensor]:
    """Weights and buffers of a network."""
    return [*network.parameters(), *network.buffers()]


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the storages of tensors, each storage once."""
    storages = {
        tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors
    }
    return sum(storages.values())


def flops_of(func: Any, args: Any, kwargs: Mapping[str, Any], result: Any) -> int:
    """Floating-point operations of a convolution or matrix product, by torch's own formulas; 0 for
    any other operator."""
    name = func._schema.name
    if name in ("aten::conv2d", "aten::conv_transpose2d"):  # not decomposed only without gradients
        return int(
            conv_flop_count(
                list(args[0].shape), list(args[1].shape), list(result.shape), "transpose" in name
            )
        )
    if name in ("aten::linear", "aten::matmul"):  # likewise
        return 2 * int(result.numel()) * int(args[0].shape[-1])
    formula = flop_registry.get(func._overloadpacket)
    return int(formula(*args, **kwargs, out_val=result)) if formula else 0


def _elementwise_or_view(func: Any) -> bool:
    """Whether an operator is known to allocate its results alone: elementwise ones, and views."""
    results = func._schema.returns
    views = bool(results) and all(
        one.alias_info is not None and not one.alias_info.is_write for one in results
    )
    return views or torch.Tag.pointwise in func.tags
