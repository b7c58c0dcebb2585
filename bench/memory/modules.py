"""Finds the module of a network that runs an operator, in the forward and the backward pass."""

from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)


class Modules:
    """Finds the module of a network that runs, in the forward and in the backward pass.

    The forward pass uses torch's module hooks. An operator of the backward pass belongs to the
    module whose forward pass created its autograd node, found by autograd's sequence number."""

    def __init__(self, network: nn.Module) -> None:
        self._names = {
            id(module): f"{type(module).__name__} {name}".strip()
            for name, module in network.named_modules()
        }
        self._inside: list[str] = []
        self._made: dict[int, str] = {}
        self._hooks: list[Any] = []

    def start(self) -> None:
        """Register the hooks."""

        def enter(module: nn.Module, _: Any) -> None:
            self._inside.append(self._names.get(id(module), ""))

        def leave(module: nn.Module, _: Any, __: Any) -> None:
            self._inside.pop()

        self._hooks = [
            register_module_forward_pre_hook(enter),
            register_module_forward_hook(leave, always_call=True),
        ]

    def stop(self) -> None:
        """Remove the hooks."""
        for hook in self._hooks:
            hook.remove()

    def current(self) -> str:
        """The module that runs, as `Conv2d encoder.layer1.0.conv1`; empty outside all modules."""
        node = torch._C._current_autograd_node()
        if node is not None and not torch.is_grad_enabled():
            return self._made.get(node._sequence_nr(), "")
        module = self._inside[-1] if self._inside else ""
        if module and torch.is_grad_enabled():
            # Keep the first module: an operator without a node finds the previous node.
            self._made.setdefault(torch._C._autograd._get_sequence_nr() - 1, module)
        return module
