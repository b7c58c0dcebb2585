"""Weights made ready for inference: batch norm folded into convolutions, and their layout."""

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold(network: nn.Module, run: Callable[[], object]) -> None:
    """Fold every batch norm that directly follows a convolution into it, in place.

    Args:
        network: in eval mode.
        run: calls its modules as they are used. It shows which module follows which, so that any
            network works.
    """
    names = {module: name for name, module in network.named_modules()}
    made: dict[int, tuple[nn.Conv2d, weakref.ref[Tensor]]] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}

    def saw(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, weakref.ref(output))
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            conv, seen = made[id(inputs[0])]
            if seen() is inputs[0]:  # else another tensor has the id of one that is gone
                pairs[module] = conv

    hooks = [
        module.register_forward_hook(saw)
        for module in names
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    with torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    for norm, conv in pairs.items():
        mean, variance = norm.running_mean, norm.running_var
        if not norm.training and mean is not None and variance is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            parent, _, own = names[norm].rpartition(".")
            setattr(network.get_submodule(parent), own, _rest(norm))


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    # timm's batch norm has its activation inside.
    rest = [part for name, part in norm.named_children() if name in ("drop", "act")]
    return nn.Sequential(*rest) if rest else nn.Identity()


def to_nhwc(network: nn.Module) -> None:
    """Turn the weights of convolutions into channels last, in place, so that maps follow."""
    # `Module.to` cannot do it to fake tensors.
    for module in network.modules():
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() == 4:
                there = weight.detach().contiguous(memory_format=torch.channels_last)
                setattr(module, name, nn.Parameter(there, weight.requires_grad))
