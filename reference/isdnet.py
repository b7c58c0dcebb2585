"""ISDNet against its released code: every map on the way to the labels, with every quirk of the
released code; losses and gradients with batch norm in both modes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from baselines.isdnet.inference import scores
from baselines.isdnet.spec import Spec
from baselines.isdnet.training import losses
from bench.errors import UserError
from reference import formulas, replay
from reference.check import SMALLEST, Comparison, Method
from reference.golden import Golden
from reference.keys import isdnet_key

MAPS = {
    "backbone.layer1": "c2",
    "backbone.layer2": "c3",
    "backbone.layer3": "c4",
    "backbone.layer4": "c5",
    "pyramid.pool": "aspp_pool",
    **{f"pyramid.branches.{i}": f"aspp{i}" for i in range(4)},
    "pyramid": "deep_feat",
    "pyramid.classify": "deep_logits",
    "reduce": "deep_reduced",
    "shallow.parts.3": "shallow8",
    "shallow.parts.5": "shallow16",
    "classify": "logits8",
    **{
        f"fuse{scale}.{part}": f"fuse{scale}_{name}"
        for scale in (8, 16)
        for part, name in {
            "shallow_vector": "s_att",
            "context_vector": "c_att",
            "shallow_mlp": "s_mlp",
            "context_mlp": "c_mlp",
        }.items()
    },
}
INPUTS = {
    "backbone": "deep_input",
    "shallow.parts.0": "shallow_input",
    "fuse16.shallow_mlp": "fuse16_affinity",
    "fuse8.shallow_mlp": "fuse8_affinity",
}
FUSIONS = ("fuse16", "fuse8")
LOSSES = {
    "decode.loss_seg": "deep",
    "refine.loss_seg": "final",
    "aux_1.loss_seg": "context at 1/8",
    "aux_2.loss_seg": "context at 1/16",
    "aux_3.recon_losses": "detail",
    "aux_4.fa_loss": "affinity",
    "aux.loss_seg": "auxiliary",
}
LOSS = 1e-5
GRADIENT = {"bn_eval": 2e-4, "bn_train": 5e-2}
"""Of squared norms. In train mode batch norm of a 1 x 1 map sees two values, and what flows back
through it is mostly rounding: the released code is that far from itself in float64."""


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter or buffer of the released network, by its official name."""
    if key.endswith((".g1", ".g2")):  # not 0, so that the relations are seen
        draw = formulas.generator(f"{key}:{seed}").standard_normal(tuple(shape))
        return np.asarray(0.5 + 0.1 * draw, np.float32)
    basic = key.startswith("backbone.layer") and key.endswith("bn2.weight")
    return formulas.weight(key, shape, seed, gain=2, norm_gain=0.5 if basic else None)


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case: those of the released code, without dropout.

    Raises:
        UserError: the case has a reducer where the released code has none, or lacks its own.
    """
    if config.get("reduce", config["depth"] == 50) != (config["depth"] == 50):
        raise UserError(
            f"There is no ISDNet of depth {config['depth']} with `reduce` {config['reduce']}: the "
            "reducer is ResNet-50's."
        )
    return Spec(depth=config["depth"], dropout=0, official=True)


def _network(config: Mapping[str, Any], spec: Spec, dtype: str) -> Any:
    own = replay.seeded(weight, isdnet_key, config["seed"])
    return replay.network_of("baselines.isdnet", spec, config.get("n_class", 7), own, dtype=dtype)


def check_case(golden: Golden, mode: str, compare: Comparison) -> None:
    """One image through the network."""
    config, stats, kept = golden["config"], golden["stats"], golden.arrays
    spec = spec_of(config)
    image = replay.image_of(config["h"], config["w"], config["seed"])
    network = _network(config, spec, compare.dtype)
    compare.bytes_equal({"image_sha256": replay.pixels_of(image)}, golden.table)
    parts = replay.one_of(*MAPS, *INPUTS, *FUSIONS)
    with torch.inference_mode(), replay.calls_of(network, parts) as calls:
        output = scores(network, network.normalise(image[None]), spec)
    found = _maps(calls) | {"output": output.numpy()}
    for name, whole in found.items():
        compare.map(name, whole, stats[name], kept.get(name))
    compare.complete(found, stats, kept)
    compare.labels(
        "labels", found["output"][0], sha256=golden["pred_sha256"], counts=golden["pred_counts"]
    )


def _maps(calls: Mapping[str, Sequence[replay.Call]]) -> replay.Arrays:
    """By the names of the golden data."""
    found = {name: calls[part][-1].output for part, name in MAPS.items() if part in calls}
    found |= {name: calls[part][-1].given[0] for part, name in INPUTS.items()}
    for fusion in FUSIONS:
        names = (f"{fusion}_{part}" for part in ("s", "c", "out"))
        found |= dict(zip(names, calls[fusion][-1].output, strict=True))
    return {name: value.numpy() for name, value in found.items()}


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One forward and backward pass."""
    config, theirs = golden["config"], golden[mode]
    if compare.dtype == "float64":
        names = ("losses", "grad_sqsum_by_group")
        theirs = theirs | {name: theirs.get(f"{name}_f64") or theirs[name] for name in names}
    spec = spec_of(config)
    network = _network(config, spec, compare.dtype).train(mode == "bn_train").requires_grad_(True)
    seeds = config["image_seeds"]
    images = replay.images_of(config, seeds)
    labels = replay.labels_of(config, (config["seed"] + i for i in range(len(seeds))))
    found, done = replay.step_of_terms(
        network, lambda: losses(network, images, labels, spec), isdnet_key
    )
    for name, own in LOSSES.items():
        compare.close(f"loss {name}", found[own], theirs["losses"][name], LOSS)
    compare.close("loss", done.logged, theirs["losses"]["loss"], LOSS)
    without = {isdnet_key(key) for key, _ in network.named_parameters()} - done.gradients.keys()
    compare.equal("parameters without gradient", without, set(theirs["no_gradient"]))
    for group, expected in theirs["grad_sqsum_by_group"].items():
        own_keys = [key for key in done.gradients if key.startswith(group)]
        squares = sum(float(done.gradients[key].square().sum()) for key in own_keys)
        compare.close(f"squared gradient of {group}", squares, expected, GRADIENT[mode])
    norms = theirs["grad_norm_per_parameter"] or {}
    pairs = {key: (norm, None) for key, norm in norms.items()}
    compare.gradients(done.gradients, pairs, GRADIENT[mode] / 2, SMALLEST)


METHOD = Method(
    marks=("depth",),
    modes=lambda golden: golden.norm_modes if golden.is_step else ["whole"],
    check=lambda golden, *how: (check_step if golden.is_step else check_case)(golden, *how),
)
