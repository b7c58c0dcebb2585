"""Batch norm folded into the convolutions before it, for inference."""

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold(encoder: nn.Module) -> nn.Module:
    """Fold every batch norm that directly follows a convolution into it, in place, and convert the
    weights to channels last.

    One forward pass of a small image shows which module follows which, so that any encoder works.
    """
    names = {module: name for name, module in encoder.named_modules()}
    # Outputs are kept alive, so that no two have the same id.
    made: dict[int, tuple[nn.Conv2d, Tensor]] = {}
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def saw(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(module, nn.Conv2d):
            made[id(output)] = (module, output)
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])][0], module))

    hooks = [
        module.register_forward_hook(saw)
        for module in names
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    weight = next(encoder.parameters())
    with torch.no_grad():
        encoder(torch.zeros(1, 3, 64, 64, dtype=weight.dtype, device=weight.device))
    for hook in hooks:
        hook.remove()
    for conv, norm in pairs:
        mean, variance = norm.running_mean, norm.running_var
        if not norm.training and mean is not None and variance is not None:
            conv.weight, conv.bias = fuse_conv_bn_weights(
                conv.weight, conv.bias, mean, variance, norm.eps, norm.weight, norm.bias
            )
            parent, _, own = names[norm].rpartition(".")
            setattr(encoder.get_submodule(parent), own, _rest(norm))
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):  # one by one: fake modules cannot be moved
            laid = module.weight.detach().contiguous(memory_format=torch.channels_last)
            module.weight = nn.Parameter(laid, requires_grad=False)
    return encoder


def _rest(norm: nn.BatchNorm2d) -> nn.Module:
    # timm's batch norm has its activation inside.
    rest = [part for name, part in norm.named_children() if name in ("drop", "act")]
    return nn.Sequential(*rest) if rest else nn.Identity()
