"""PointRend against mmsegmentation's code: maps, chosen points and their scores on the way to the
labels; losses and gradients, of the whole network or of its point head alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.pointrend.inference import corrected, least_certain, scores
from baselines.pointrend.model import uncertainty
from baselines.pointrend.spec import Spec
from baselines.pointrend.training import drawn, losses, point_loss
from bench.errors import UserError
from bench.tiling import resize
from reference import formulas, replay
from reference.check import SMALLEST, Comparison, Method, allowed
from reference.golden import Golden
from reference.keys import pointrend_key

LOUD = ("backbone.", "point.fcs", "coarse.scale_heads")
IMAGES = 2  # of a training step


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter or buffer of the network, by its official name."""
    return formulas.weight(key, shape, seed, gain=2 if key.startswith(LOUD) else 1)


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case or step: those of mmsegmentation's code."""
    names = {
        "subdivisions": "subdivision_steps",
        "subdivision_points": "subdivision_num_points",
        "points": "num_points",
        "oversampling": "oversample_ratio",
        "uncertain": "importance_sample_ratio",
    }
    return Spec(official=True, **{own: config[key] for own, key in names.items() if key in config})


def _network(config: Mapping[str, Any], spec: Spec, dtype: str, mode: str) -> Any:
    own = replay.seeded(weight, pointrend_key, config["seed"])
    parts = () if mode == "whole" else ("point",)
    return replay.network_of("baselines.pointrend", spec, config["n_class"], own, parts, dtype)


def _features(config: Mapping[str, Any], shape: Sequence[int], dtype: str) -> list[Tensor]:
    """What the point head alone is given: fine (N, C, h, w), coarse (N, K, h, w)."""
    count, _, *sides = shape
    channels = {"fine": Spec().fpn_width, "coarse": config["n_class"]}
    maps = (
        formulas.feature(name, (count, c, *sides), config["seed"]) for name, c in channels.items()
    )
    return [torch.from_numpy(map).to(replay.FLOAT[dtype]) for map in maps]


def modes(golden: Golden) -> list[str]:
    """Of the whole network, or of the point head alone."""
    whole = golden.config["full_network"] if golden.is_step else "p2" in golden["stats"]
    return ["whole" if whole else "point head"]


@torch.inference_mode()
def check_case(golden: Golden, mode: str, compare: Comparison) -> None:
    """One image through the network, or two maps through the point head."""
    config, stats, kept, noise = golden["config"], golden["stats"], golden.arrays, golden["noise"]
    spec, size = spec_of(config), (config["image_hw"][0], config["image_hw"][1])
    network = _network(config, spec, compare.dtype, mode)
    found: dict[str, Tensor] = {}
    x = torch.empty(0)
    if mode == "whole":
        x = network.normalise(replay.image_of(*size, config["seed"])[None])
        with replay.calls_of(network, "encoder|pyramid") as calls:
            fine, coarse = network.maps(x)
        for name, part in {"c": "encoder", "p": "pyramid"}.items():
            maps = enumerate(calls[part][-1].output[-4:], 2)
            found |= {f"{name}{level}": map for level, map in maps}
    else:
        fine, coarse = _features(config, stats["coarse"]["shape"], compare.dtype)
    apart = allowed(noise["output"])
    output, same = coarse, True
    for number, step in enumerate(golden["steps"]):
        size_now = (2 * output.shape[-2], 2 * output.shape[-1])
        output = resize(output, size_now)
        compare.map(f"step {number}, map", output.numpy(), step["map_before"], None, apart)
        bits = np.unpackbits(kept[f"step{number}_points_bits"], count=size_now[0] * size_now[1])
        theirs = torch.from_numpy(bits).bool()
        same &= _points(number, step, output, theirs, compare, apart, spec)
        cells = theirs.nonzero()[:, 0]
        with replay.calls_of(network, "point") as calls:
            output = corrected(network, output, cells[None], fine, coarse)
        (call,) = calls["point"]
        for name, key, map in (
            ("logits", "point_logits", call.output),
            ("fine_feats", "fine", call.given[0]),
        ):
            raster = kept[f"step{number}_{key}_raster"]
            # The noise is a share of the output's largest magnitude.
            share = apart * max(stats["output"]["absmax"] / step[name]["absmax"], 1)
            compare.map(f"step {number}, {name}", map.numpy(), step[name], raster, share)
    if mode == "whole" and same:
        off = (scores(network, x, spec) - output).abs().max() / stats["output"]["absmax"]
        compare.check("scores in one call (share)", float(off), apart)
    found |= {"coarse": coarse, "output": resize(output, size)}
    for name, map in found.items():
        compare.map(name, map.numpy(), stats[name], kept.get(name), allowed(noise[name]))
    compare.complete(found, stats)
    tie = 2 * apart * stats["output"]["absmax"]
    compare.labels("labels", found["output"][0].numpy(), kept["pred"], tie=tie)


def _points(
    number: int,
    step: Mapping[str, Any],
    output: Tensor,
    theirs: Tensor,
    compare: Comparison,
    apart: float,
    spec: Spec,
) -> bool:
    """Compare which points of scores (1, K, H, W) are chosen; whether they are the same ones."""
    compare.equal(f"step {number}, size", list(output.shape[-2:]), step["size"])
    cells = least_certain(output, spec.subdivision_points)[0]
    ours = torch.zeros_like(theirs).index_fill(0, cells, True)
    compare.equal(f"step {number}, number of points", len(cells), step["points"])
    values = uncertainty(output).flatten()
    least = float(values[cells].min())
    tie = 2 * apart * step["map_before"]["absmax"]
    compare.check(f"step {number}, threshold", abs(least - step["threshold"]), tie)
    worse = (ours != theirs) & ((values - least).abs() > tie)
    compare.check(f"step {number}, points that no tie explains", float(worse.sum()), 0)
    return ours.equal(theirs)


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One forward and backward pass, with batch norm in eval mode."""
    config, noise, kept = golden["config"], golden["noise"], golden.arrays
    if config["bn"] != "eval mode":
        raise UserError(f"{golden.path} has batch norm in {config['bn']}; only eval mode is known.")
    expected = golden["losses_f64" if compare.dtype == "float64" else "losses"]
    spec = spec_of(config)
    network = _network(config, spec, compare.dtype, mode)
    network.requires_grad_(True)
    size, seed = (config["h"], config["w"]), config["seed"]
    seeds = range(seed, seed + IMAGES)
    labels = replay.labels_of(config, seeds)
    shape = (IMAGES, 0, size[0] // 4, size[1] // 4)
    images = replay.images_of(config, seeds)
    maps = [] if mode == "whole" else _features(config, shape, compare.dtype)
    with torch.no_grad():
        coarse = maps[1] if maps else network.maps(network.normalise(images))[1]
        torch.manual_seed(seed)
        places = drawn(coarse, spec).double().numpy()
    apart = np.abs(places - kept["points"]).max()
    compare.check("points", float(apart), allowed(noise["points_max_abs"]))

    def terms() -> dict[str, Tensor]:
        torch.manual_seed(seed)
        if not maps:
            return losses(network, images, labels, spec)
        fine, coarse = (map.requires_grad_() for map in maps)
        return {"points": point_loss(network, fine, coarse, labels, spec)}

    found, done = replay.step_of_terms(network, terms, pointrend_key)
    names = {"coarse": "coarse.loss_ce", "points": "point.pointloss_ce"}
    for own, name in names.items():
        if name in expected:
            tolerance = allowed(noise["loss"])
            compare.close(f"loss {name}", found[own], expected[name], tolerance)
    gradients = done.gradients | {
        f"input.{name}": map.grad.double()
        for name, map in zip(("fine", "coarse"), maps, strict=False)
        if map.grad is not None
    }
    pairs = golden["grad_norm_and_sum"]
    compare.equal("parameters with a gradient", set(gradients), set(pairs))
    compare.gradients(gradients, pairs, allowed(noise["grad_norm"]), SMALLEST)


METHOD = Method(
    marks=("subdivision_steps", "importance_sample_ratio"),
    modes=modes,
    check=lambda golden, *how: (check_step if golden.is_step else check_case)(golden, *how),
)
