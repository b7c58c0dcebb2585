"""RUE against its released code: every map on the way to the labels, the patches' scores and the
chosen ones, with every quirk of the released code; losses, gradients and batch norm's statistics of
one training step.

What is allowed is a multiple of the noise that the golden data states: how far the released code in
float64 is from itself in float32."""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from baselines.rue.inference import Streams, streams
from baselines.rue.model import resize
from baselines.rue.spec import Quirk, Spec
from baselines.rue.training import loss_weights, losses
from reference import formulas, replay
from reference.check import PRINTED, RELATIVE, TIMES_NOISE, Comparison, Method
from reference.golden import Golden
from reference.keys import rue_key

MAPS = {
    **{f"backbone.layer{i}": f"c{i + 1}" for i in (1, 2, 3, 4)},
    **{f"pyramid.scales.{i}": f"dappm_scale{i}" for i in range(5)},
    **{f"pyramid.processes.{i}": f"dappm_process{i + 1}" for i in range(4)},
    "pyramid.compression": "dappm_compression",
    "pyramid.shortcut": "dappm_shortcut",
    "pyramid": "deep_feat",
    "pyramid.classify": "deep_logits",
    "residual": "score_map",
    "shallow.parts.3": "shallow8",
    "shallow.parts.5": "shallow16",
    "shallow.reduce16": "reduced16",
    "shallow.reduce8": "reduced8",
    "reduce": "reduced_deep",
    "classify": "logits",
}
INPUTS = {"backbone": "deep_input", "classify": "fused"}
SHIFTS = {0: 5.2, 1: -7.7, 3: 1.8, 5: -2.9}
"""By seed, of the residual's last bias, so that the patches' scores spread around 0."""
LOSSES = {
    "decode.loss_seg": "deep",
    "refine.loss_seg": "final",
    "aux.loss_seg": "auxiliary",
}


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter or buffer of the released network, by its official name."""
    if key.startswith("refine_head.score_head.conv_out."):
        draw = formulas.generator(f"{key}:{seed}").standard_normal(tuple(shape))
        last = key.endswith("bias")
        values = 0.1 * draw + SHIFTS.get(seed, 0.0) if last else 0.5 * draw
        return np.asarray(values, np.float32)
    basic = key.startswith("backbone.layer") and key.endswith("bn2.weight")
    return formulas.weight(key, shape, seed, gain=2, norm_gain=0.5 if basic else 1)


def spec_of(config: Mapping[str, Any]) -> Spec:
    """The settings of a case: those of the released code, without dropout; but for a case that was
    made to select fewer patches, or whose head sees the image in one piece."""
    whole = "head" in config
    patches = 1 if whole else config["patches_per_side"]
    names = get_args(Quirk)
    share = 1.0
    if forced := config.get("selection_forced"):
        share = forced / patches**2
        names = tuple(name for name in names if name != "select-all")
    return Spec(
        patches=patches,
        train_patches=patches,
        selected=share,
        dropout=0,
        mean=replay.MEAN,
        std=replay.STD,
        official=names,
    )


def _network(config: Mapping[str, Any], spec: Spec, dtype: str) -> Any:
    own = replay.seeded(weight, rue_key, config["seed"])
    return replay.network_of("baselines.rue", spec, config.get("n_class", 7), own, dtype=dtype)


def check_case(golden: Golden, mode: str, compare: Comparison) -> None:
    """One image through the network."""
    config, stats, kept = golden["config"], golden["stats"], golden.arrays
    spec = spec_of(config)
    image = replay.image_of(config["h"], config["w"], config["seed"])
    network = _network(config, spec, compare.dtype)
    x = replay.normalised(image)
    compare.bytes_equal({"image_sha256": replay.pixels_of(image)}, golden.table)
    compare.bytes_equal({"input_sha256": x.numpy()}, golden.table)
    ours = network.normalise(image[None]).numpy()
    compare.map("normalised image", ours, None, x.numpy(), 1e-6)
    x = x.to(replay.FLOAT[compare.dtype])
    with torch.inference_mode(), replay.calls_of(network, replay.one_of(*MAPS, *INPUTS)) as calls:
        found = streams(network, x, spec, spec.patches)
        output = resize(found.logits, x.shape[-2:])
    maps = _maps(calls, found, spec) | {"output": output.numpy()}
    noise = golden.table.get("noise_f32_vs_f64_relative_to_absmax") or {}
    for name in dict.fromkeys((*stats, *kept)):
        if name == "pred":
            continue
        allowed = TIMES_NOISE * noise[name] if name in noise else RELATIVE
        if name not in maps:
            compare.equal(f"{name} is computed here", False, True)
            continue
        compare.map(name, maps[name], None, kept.get(name), allowed)
        if name in stats:
            compare.statistics(name, maps[name], stats[name], max(allowed, PRINTED))
    _check_choice(golden, found, TIMES_NOISE * noise.get("select_score", RELATIVE), compare)
    tie = 2 * TIMES_NOISE * noise.get("output", RELATIVE) * float(output.abs().max())
    given = {"sha256": golden["pred_sha256"], "counts": golden["pred_counts"]}
    compare.labels("labels", maps["output"][0], kept.get("pred"), **given, tie=tie)


def _maps(calls: Mapping[str, Sequence[replay.Call]], found: Streams, spec: Spec) -> replay.Arrays:
    """By the names of the golden data."""
    maps = {name: calls[part][-1].output for part, name in MAPS.items()}
    maps |= {name: calls[part][-1].given[0] for part, name in INPUTS.items()}
    side = (spec.patches, spec.patches)
    maps |= {
        "entropy": found.deep.entropy,
        "score_flat": torch.sigmoid(resize(found.deep.residual, side)).flatten(1),
        "select_score": found.scores,
        "loss_weights": loss_weights(found.weights),
    }
    return {name: value.numpy() for name, value in maps.items()}


def _check_choice(golden: Golden, found: Streams, allowed: float, compare: Comparison) -> None:
    """Which patches are seen; the five with the highest scores, of which two that are nearly equal
    may change places."""
    chosen, config = found.chosen[0].tolist(), golden["config"]
    expected = golden.table.get("selected_ids_sorted")
    if expected is None:  # a head without patches
        return
    if isinstance(expected, str):
        expected = list(range(config["selected"]))
    compare.equal("selected patches", chosen, expected)
    values = found.scores[0]
    best = values.sort(descending=True).values[: len(golden["top5_ids"])]
    apart = (best - values[golden["top5_ids"]]).abs().max() / values.abs().max()
    compare.check("scores of the best five (share)", float(apart), allowed)


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One forward and backward pass."""
    config, theirs = golden["config"], golden[mode]
    noise = theirs["noise"]
    if compare.dtype == "float64":
        theirs = theirs | {name: theirs[f"{name}_f64"] for name in ("losses", "grad_norm")}
    spec = spec_of(config)
    network = _network(config, spec, compare.dtype).train(mode == "bn_train").requires_grad_(True)
    images = [replay.image_of(config["h"], config["w"], seed) for seed in config["image_seeds"]]
    x = torch.cat([*map(replay.normalised, images)]).to(replay.FLOAT[compare.dtype])
    labels = replay.labels_of(config, config["image_seeds"])
    outputs: dict[str, Tensor] = {}

    def terms() -> dict[str, Tensor]:
        with replay.calls_of(network, "auxiliary") as calls:
            both = streams(network, x, spec, spec.train_patches)
            found = losses(network, both, labels, spec)
        auxiliary = calls["auxiliary"][-1].output
        outputs.update(decode=both.deep.logits, refine=both.logits, aux=auxiliary)
        outputs.update(weights=loss_weights(both.weights))
        return found

    found, done = replay.step_of_terms(network, terms, rue_key)
    for name, own in LOSSES.items():
        allowed = TIMES_NOISE * noise["loss_rel"]
        compare.close(f"loss {name}", found[own], theirs["losses"][name], allowed)
    compare.close("loss", done.logged, theirs["losses"]["loss"], TIMES_NOISE * noise["loss_rel"])
    for head in ("decode", "refine", "aux"):
        best = resize(outputs[head].detach(), labels.shape[-2:]).argmax(1)
        right = 100 * float((best == labels).sum()) / labels.numel()
        apart = abs(right - theirs["losses"][f"{head}.acc_seg"]) * labels.numel() / 100
        compare.check(f"accuracy {head} (pixels)", apart, 1.5)
    compare.statistics("loss_weights", outputs["weights"].numpy(), theirs["loss_weights"])
    without = {rue_key(key) for key, _ in network.named_parameters()} - done.gradients.keys()
    compare.equal("parameters without gradient", without, set(theirs["no_gradient"]))
    pairs = {key: (theirs["grad_norm"][key], theirs["grad_sum"][key]) for key in done.gradients}
    compare.gradients(done.gradients, pairs, TIMES_NOISE * noise["grad_norm_max"])
    buffers = {rue_key(key): value.double() for key, value in network.named_buffers()}
    for key, after in theirs.get("running_after", {}).items():
        compare.vector(key, buffers[key], after["norm"], after["sum"], RELATIVE)


METHOD = Method(
    marks=("patches_per_side", "head"),
    modes=lambda golden: golden.norm_modes if golden.is_step else ["whole"],
    check=lambda golden, *how: (check_step if golden.is_step else check_case)(golden, *how),
)
