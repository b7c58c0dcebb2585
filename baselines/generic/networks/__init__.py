"""Networks as their papers define them, one file each, that segmentation-models-pytorch lacks or has
in another form.

Every network takes images (N, 3, H, W) whose sides are multiples of its `stride` and returns scores
(N, K, H, W). One that published ImageNet weights fit has an `encoder`; one with auxiliary losses has
`heads`: (weight, scores) of every output in the loss, the main one first."""

from collections.abc import Callable, Mapping

from torch import nn

from baselines.generic.networks.enet import ENet
from baselines.generic.networks.fcn8s import FCN8s
from baselines.generic.networks.icnet import ICNet
from baselines.generic.networks.linear import Linear
from baselines.generic.networks.pspnet import PSPNet
from baselines.generic.networks.segnet import SegNet
from baselines.generic.networks.unet2015 import UNet2015

NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    "enet": ENet,
    "fcn8s": FCN8s,
    "icnet": ICNet,
    "linear": Linear,
    "pspnet": PSPNet,
    "segnet": SegNet,
    "unet2015": UNet2015,
}
"""Name in a spec -> class."""
