"""F2Net compared with its released modules: every module's maps, and one step of the assembly.

The released code has no assembly: `train_T` is of the released modules joined as
`baselines.f2net.inference.features` joins them. Each array is allowed `TIMES_NOISE` times the noise that
the golden data gives for it: how far the released code in float64 is from itself in float32."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.f2net.inference import features
from baselines.f2net.spec import Spec
from baselines.f2net.training import gradient_norms, losses
from reference import formulas, replay
from reference.check import PRINTED, RELATIVE, TIMES_NOISE, Comparison, Method
from reference.golden import Golden
from reference.keys import f2net_key

BLOCK = "high.stages.0.0"
PARTS = {
    "split.filters.0": "afd.filter0",
    "short.backbone.stem": "short.stem",
    **{f"short.backbone.layer{i}": f"short.layer{i}" for i in (1, 2, 3, 4)},
    "short.pyramid.norm": "short.pool",
    "short.pyramid.branches.0": "short.aspp0",
    "short.pyramid.branches.1": "short.aspp12",
    "short.pyramid.branches.3": "short.aspp36",
    "long.embed": "long.patch",
    "long.blocks.0.attention": "long.attn0",
    "long.blocks.0": "long.block0",
    "long.blocks.5": "long.block5",
    "high.embed": "high.patch",
    f"{BLOCK}.scan.conv": "high.conv0",
    f"{BLOCK}.scan.norm": "high.outnorm0",
    f"{BLOCK}.scan": "high.op0",
    BLOCK: "high.block0",
    **{f"high.stages.{i}": f"high.stage{i}" for i in range(4)},
}
CHANNEL_LAST = ("high.patch", "high.op0", "high.block0", *(f"high.stage{i}" for i in range(4)))
FUSED = {"a": (2, 128, 8, 10), "b": (2, 192, 8, 10), "c": (2, 512, 2, 3)}
"""Shapes of the features that are fused."""
WEIGHTS: Mapping[str, Callable[[Any, Sequence[int]], Any]] = {
    "pos_embed": lambda draw, shape: 0.2 * draw,
    "A_logs": lambda draw, shape: 0.3 * draw,
    "Ds": lambda draw, shape: 1 + 0.1 * draw,
    "dt_projs_bias": lambda draw, shape: 0.1 * np.abs(draw),
    "x_proj_weight": lambda draw, shape: draw / np.sqrt(shape[2]),
}
"""Parameters that are neither of a convolution, of a linear layer nor of a norm."""


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter or buffer, by its official name."""
    own = WEIGHTS.get(key.rpartition(".")[2])
    if own:
        draw = formulas.generator(f"{key}:{seed}").standard_normal(tuple(shape))
        return np.asarray(own(draw, shape), np.float32)
    short = key.startswith("short.")
    basic = short and key.endswith("bn2.weight")
    gains = {"gain": 2.0 if short else 1.0, "norm_gain": 0.5 if basic else 1.0}
    return formulas.weight(key, shape, seed, **gains)


def _network(config: Mapping[str, Any], spec: Spec, dtype: str) -> Any:
    own = replay.seeded(weight, f2net_key, config["seed"])
    return replay.network_of("baselines.f2net", spec, config.get("n_class", 7), own, dtype=dtype)


def check_modules(golden: Golden, mode: str, compare: Comparison) -> None:
    """Every module on an input of its own."""
    network = _network(golden["config"], Spec(), compare.dtype)
    with torch.inference_mode():
        found = _maps(network, golden["config"], replay.FLOAT[compare.dtype])
    compare.equal("names of the maps", found.keys(), golden["stats"].keys())
    for name, map in found.items():
        stats, ours = golden["stats"][name], map.numpy()
        allowed = TIMES_NOISE * golden["noise_f32_vs_f64"][name]
        compare.statistics(name, ours, stats, max(allowed, PRINTED))
        largest = {"absmax": stats["absmax"]}
        compare.map(name, ours[:1], largest, golden.arrays[name], allowed)


def _maps(network: Any, config: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Tensor]:
    """By the names of the golden data."""
    sizes, seed = config["sizes"], config["seed"]
    height, width = sizes["afd_image"]
    image = replay.normalised(replay.image_of(height, width, seed)).to(dtype)

    def feature(name: str, shape: Sequence[int]) -> Tensor:
        return torch.from_numpy(formulas.feature(name, shape, seed)).to(dtype)

    short, long, high = (
        feature("high" if part == "high" else "low", (1, 32, *sizes[f"{part}_input"]))
        for part in ("short", "long", "high")
    )
    one, other, third = (feature(name, shape) for name, shape in FUSED.items())
    with replay.calls_of(network, replay.one_of(*PARTS)) as calls:
        low, rest = network.split(image)
        embedded = network.high.embed(high.permute(0, 2, 3, 1))
        found = {
            "afd.low": low,
            "afd.high": rest,
            "short.out": network.short(short),
            "long.out": network.long(long),
            "high.out": network.high(embedded),
            "hff1": network.fuse_low(one, other),
            "hff2": network.fuse(one, third),
            "cfal": network.alignment(one, third)[None],
        }
    found |= {name: calls[part][-1].output for part, name in PARTS.items()}
    found["afd.filter0"] = found["afd.filter0"].softmax(1)
    found["short.pool"] = found["short.pool"].relu()
    found["high.outnorm0"] = found["high.outnorm0"].reshape(found["high.op0"].shape)
    for name in (*CHANNEL_LAST, "high.outnorm0"):
        found[name] = found[name].permute(0, 3, 1, 2)
    return found


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One forward and backward pass of the assembly."""
    config, noise, double = golden["config"], golden["noise"], compare.dtype == "float64"
    spec = Spec(low_scale=0.5, mean=replay.MEAN, std=replay.STD)
    network = _network(config, spec, compare.dtype).requires_grad_(True)
    size = (config["h"], config["w"])
    x = replay.normalised(replay.image_of(*size, config["seed"])).to(replay.FLOAT[compare.dtype])
    labels = replay.label_of(*size, config["seed"], config["n_class"])[None]

    def terms() -> dict[str, Tensor]:
        made = features(network, x, spec)
        compare.statistics("logits", made.logits.detach().numpy(), golden["logits"])
        found = losses(network, made, labels, spec)
        norms = gradient_norms(network, found["entropy"]).detach()
        for name, norm in zip(("short", "long", "high"), norms, strict=True):
            theirs = golden["branch_norms"][name]
            compare.close(f"branch norm {name}", float(norm), theirs, TIMES_NOISE * noise["loss"])
        return found

    values, done = replay.step_of_terms(network, terms, f2net_key)
    ours = {
        "ce": values["entropy"],
        "cfal": values["alignment"] / spec.alignment_weight,
        "cfbl": values["balance"] / spec.balance_weight,
        "total": done.logged,
    }
    theirs = golden["losses_f64" if double else "losses"]
    for name, value in ours.items():
        noisy = name in ("cfbl", "total") and not double
        allowed = TIMES_NOISE * noise["loss"] if noisy else RELATIVE
        compare.close(f"loss {name}", value, theirs[name], allowed)
    compare.equal("parameters", done.gradients.keys(), golden["grad_norm"].keys())
    pairs = {key: (golden["grad_norm"][key], golden["grad_sum"][key]) for key in done.gradients}
    compare.gradients(done.gradients, pairs, TIMES_NOISE * noise["grad_norm"])


METHOD = Method(
    marks=("branch_norms", "sizes"),
    modes=lambda golden: ["step"] if golden.is_step else ["modules"],
    check=lambda golden, *how: (check_step if golden.is_step else check_modules)(golden, *how),
)
