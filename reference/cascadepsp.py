"""CascadePSP against the released code: every map of the refiner's passes, inference as a whole and
by crops, components of several classes, losses and gradients with batch norm in both modes.

The mask perturbation is not compared: here masks are damaged otherwise."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from baselines.cascadepsp.components import box_of, masks_of
from baselines.cascadepsp.inference import merged, refined
from baselines.cascadepsp.spec import Quirk, Spec
from baselines.cascadepsp.training import losses
from reference import formulas, replay
from reference.check import LEAST, SMALLEST, Comparison, Method, allowed
from reference.golden import Golden, fingerprint
from reference.keys import cascadepsp_key

GAINS = {
    "psp.stages": 1.0,
    **{f"up_{i}.shortcut": 1.0 for i in (1, 2, 3)},
    **{f"up_{i}.conv2.5": 0.25 for i in (1, 2, 3)},
    "final_28.2": 4.0,
    "final_56.2": 2.0,
    "final_21": 0.1,
}
"""Of a convolution's variance, by the start of its name; 2 for the others."""
SHIFTS: Mapping[str, Sequence[float]] = {
    "final_28.2.bias": (-5.2, 3.7, 0.0, 3.6, 0.8, -6.7),
    "final_56.2.bias": (1.9, 0.9, -0.2, 4.1, 0.2, 5.6),
    "final_21.bias": (3.0, 3.9, 1.1, 0.5, 0.8, -0.1),
}
"""Of the last biases by the seed, so that scores are near 0."""
CENTRED = ("final_28.2.weight", "final_56.2.weight", "final_21.weight")
PARTS = {
    "encoder.layer2": "layer2",
    "encoder.layer3": "layer3",
    **{f"pool.levels.{i}": f"psp_prior{i}" for i in range(4)},
    "pool": "psp",
    "score8": "head8",
    "up1": "up1",
    "score4": "head4",
    "up2": "up2",
    "up3": "up3",
    "score1": "head1",
}
PASSES = (("out_28",), ("out_28_2", "out_56"), ("out_28_3", "out_56_2", "out_224"))
LOSSES = {
    "loss/s_1": ("1/8, pass 1",),
    "loss/s_3": ("1/8, pass 2",),
    "loss/s_4": ("1/8, pass 3",),
    "loss/s_2": ("1/4, pass 2",),
    "loss/s_5": ("1/4, pass 3",),
    "loss/s_0": ("1/1", "edges"),
}
PROBABILITY_NOISE = 2.7e-6
"""Of probabilities where a case has none: the largest of all cases."""
STUFF = (
    *(1, 2, 3, 4, 6, 7, 10, 12, 14, 17, 22, 26, 27, 29, 30, 47, 49, 52, 53, 55, 60, 61, 62, 69),
    *(80, 85, 92, 95, 97, 102, 106, 110, 114, 129, 141),
)
"""Classes of ADE20K that the scene parsing scripts doubt."""
SHIFT_PX = (5, 3)  # of the seed mask against the true one in a training step: down, right


def weight(key: str, shape: Sequence[int], seed: int) -> formulas.Weight:
    """The value of a parameter or buffer of the refiner, by its official name."""
    gain = next((gain for start, gain in GAINS.items() if key.startswith(start)), 2.0)
    if key in CENTRED or key in SHIFTS:
        draw = formulas.generator(f"{key}:{seed}").standard_normal(tuple(shape))
        if key in CENTRED:
            scale = np.sqrt(gain / np.prod(shape[1:]))
            return np.asarray((draw - draw.mean()) * scale, np.float32)
        shifts = SHIFTS[key]
        shift = shifts[seed] if seed < len(shifts) else 0.0
        return (0.1 * draw + shift).astype(np.float32)
    value = formulas.weight(key, shape, seed, gain)
    if key == "feats.conv1.weight":
        value[:, 3:] *= 2  # the masks
    return value


@lru_cache(maxsize=1)
def _network(seed: int, spec: Spec, dtype: str) -> Any:
    """The refiner in eval mode; its weights do not depend on the settings that cases have."""
    own = replay.seeded(weight, cascadepsp_key, seed)
    return replay.network_of("baselines.cascadepsp", spec, 2, own, ("refiner",), dtype)


def _mask(config: Mapping[str, Any]) -> NDArray[np.uint8]:
    make = {"blob": formulas.blob, "mask": formulas.mask}[config["mask"]]
    return make(config["h"], config["w"], config["seed"])


def modes(golden: Golden) -> list[str]:
    """Normalisations of a step, cases of a file with several, or all passes."""
    if golden.is_step:
        return golden.norm_modes
    if "inter" in golden.config:
        return ["passes"]
    if "components" in golden.table:
        return ["components"]
    cases = [name for name, one in golden.table.items() if _is_inference(one)]
    return cases or ["not compared"]


def _is_inference(table: Any) -> bool:
    return isinstance(table, dict) and "L" in table.get("config", {})


def check(golden: Golden, mode: str, compare: Comparison) -> None:
    """All comparisons of a case or step; none of what is not compared."""
    if golden.is_step:
        check_step(golden, mode, compare)
    elif mode == "passes":
        check_passes(golden, compare)
    elif mode == "components":
        check_components(golden, compare)
    elif mode != "not compared":
        check_inference(golden, mode, compare)


@torch.inference_mode()
def check_passes(golden: Golden, compare: Comparison) -> None:
    """The three passes; the two of a crop, which is given one slot; and the last one alone."""
    config, stats, kept = golden["config"], golden["stats"], golden.arrays
    noise = golden["noise_f32_vs_f64_relative_to_absmax"]
    size, seed = (config["h"], config["w"]), config["seed"]
    network = _network(seed, Spec(), compare.dtype)
    image, mask = replay.image_of(*size, seed), _mask(config)
    compare.bytes_equal(
        {"image_sha256": replay.pixels_of(image), "mask_sha256": mask}, golden.table
    )
    x = network.normalise(image[None])
    given = (2 * torch.from_numpy(mask > 127).to(x) - 1)[None, None]
    draw = formulas.generator(f"inter8:{seed}").standard_normal((1, 1, size[0] // 8, size[1] // 8))
    slot = F.interpolate(torch.from_numpy(2 * draw).tanh().to(x), size, mode="bilinear")
    parts = replay.one_of("encoder", *PARTS)
    with replay.calls_of(network, f"refiner\\.({parts})") as calls:
        found = _outputs("out", PASSES, network.passes(x, given))
    found |= _outputs("s8only", PASSES[1:], network.passes(x, given, (slot, slot)))
    last = network.refiner(torch.cat([x, given, slot, slot], 1), 3)
    found |= _outputs("both", PASSES[2:], [last])
    for number, call in enumerate(calls["refiner.encoder"], 1):
        names = (f"p{number}_{name}" for name in ("f1", "f2", "f"))
        found |= dict(zip(names, call.output, strict=True))
    for part, name in PARTS.items():
        done = calls[f"refiner.{part}"]
        first = len(PASSES) + 1 - len(done)  # later parts run in later passes alone
        found |= {f"p{first + i}_{name}": call.output for i, call in enumerate(done)}
    for name, one in found.items():
        apart = allowed(noise.get(name, LEAST))
        compare.map(name, one.numpy(), stats.get(name), kept.get(name), apart)
    compare.complete(found, stats, kept)


def _outputs(
    call: str, names: Sequence[Sequence[str]], passes: Sequence[Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Scores (`out_`) and probabilities (`pred_`) of all passes, by the golden data's names."""
    found = {}
    for wanted, scores in zip(names, passes, strict=True):
        for name, score in zip(wanted, scores, strict=True):
            found[f"{call}.{name}"] = score
            found[f"{call}.{name.replace('out', 'pred')}"] = score.sigmoid()
    return found


@torch.inference_mode()
def check_inference(golden: Golden, mode: str, compare: Comparison) -> None:
    """The package's inference of one mask: as a whole (`global`), or also by crops."""
    case = golden[mode]
    config, kept = case["config"], golden.arrays[mode]
    side = config["L"]
    spec = Spec(
        side_px=side,
        stride_px=side // 2,
        enlarged_px=side,
        by_crops=config["function"] == "process_high_res_im",
        official=True,
    )
    network = _network(config["seed"], Spec(), compare.dtype)
    image = replay.image_of(config["h"], config["w"], config["seed"])
    with replay.calls_of(network, "refiner") as calls:
        likely = refined(network, image, torch.from_numpy(_mask(config) > 127), spec)
    noise = case["noise_max_abs"]
    apart = allowed(PROBABILITY_NOISE if noise is None else noise)
    whole = likely.double().numpy()[None, None]
    difference = np.abs(whole[0, 0] - kept)
    compare.check("probability", float(difference.max()), apart)
    compare.statistics("probability", whole, case["stats"], apart)
    near = np.abs(whole - 0.5) <= apart
    over = abs(int((whole > 0.5).sum()) - case["pixels_over_half"])
    compare.check("pixels over a half that no tie explains", max(over - int(near.sum()), 0), 0)
    levels = whole * 255
    between = np.abs(levels - levels.round()) <= 255 * apart
    off = abs(int(levels.astype(np.uint8).sum()) - case["uint8_sum"])
    compare.check("sum of grey levels that no tie explains", max(off - int(between.sum()), 0), 0)
    _calls(calls["refiner"], case["network_calls"], apart, compare)


def _calls(
    calls: Sequence[replay.Call],
    expected: Sequence[Mapping[str, Any]],
    apart: float,
    compare: Comparison,
) -> None:
    """Each call's size, and means of what it was given and of two of its outputs."""
    last = [number for number, call in enumerate(calls) if call.given[1] == len(PASSES)]
    compare.equal("number of network calls", len(last), len(expected))
    for number, (index, theirs) in enumerate(zip(last, expected, strict=False)):
        given, (_, fourth, full) = calls[index].given[0], calls[index].output
        name = f"call {number}"
        compare.equal(f"{name}, size", list(given.shape[-2:]), [theirs["h"], theirs["w"]])
        found = {
            "im_sum": given[:, :3],
            "seg_sum": given[:, 3],
            "i8_sum": calls[index - 1].given[0][:, 4],
            "pred_224_sum": full.sigmoid(),
            "pred_56_2_sum": fourth.sigmoid(),
        }
        for key, map in found.items():
            if theirs[key] is not None:
                off = abs(float(map.double().mean()) - theirs[key] / map.numel())
                compare.check(f"{name}, {key} by its pixels", off, apart)


@torch.inference_mode()
def check_components(golden: Golden, compare: Comparison) -> None:
    """The scene parsing scripts: a label map's components, each refined, and their merging."""
    config, expected, kept = golden["config"], golden["components"], golden.arrays
    size, seed = (config["h"], config["w"]), config["seed"]
    spec = _scripts(config["options"])
    network, image = _network(seed, Spec(), compare.dtype), replay.image_of(*size, seed)
    listed = re.search(r"CLS = \[([\d, ]+)\]", config["seg"])
    void = re.search(r"\[:(\d+),:(\d+)\] = 0", config["gt"])
    if listed is None or void is None:
        raise ValueError("`seg` or `gt` is described otherwise")
    classes = np.array([int(number) for number in listed[1].split(",")], np.uint8)
    labels = torch.from_numpy(classes[formulas.label(*size, seed, config["classes"])])
    names = {one["mask_sha256"]: name for name, one in expected.items()}
    found = {}
    for number in np.unique(labels.numpy()).tolist():
        for mask in masks_of(labels == number, spec):
            name = names.get(fingerprint(mask.numpy().astype(np.uint8)), "")
            compare.equal(f"component of class {number}", name.split(".")[0], str(number))
            box = box_of(mask, spec)
            if name and box is not None:
                picture = kept[f"refined_{name}"]
                found[name] = (number, box, torch.from_numpy(picture) / 255)
                _picture(
                    name, refined(network, box.of(image), box.of(mask), spec), picture, compare
                )
    compare.equal("components", set(found), set(expected))
    parts = (found[name] for name in golden["listing_order"] if name in found)
    result = merged(labels, parts, replace(spec, official=False)).numpy()
    result[: int(void[1]), : int(void[2])] = 0
    compare.check("labels (pixels)", float((result != kept["final"]).sum()), 0)


def _picture(name: str, likely: Tensor, picture: NDArray[np.uint8], compare: Comparison) -> None:
    """Probabilities (h, w) against the whole grey levels to which they are cut off."""
    compare.equal(f"{name}, size", list(likely.shape), list(picture.shape))
    if likely.shape == picture.shape:
        above = 255 * likely.double().numpy() - picture  # 0 to 1
        off = max(float(-above.min()), float(above.max()) - 1, 0)
        compare.check(f"{name}, grey levels", off, 255 * allowed(PROBABILITY_NOISE))


def _scripts(options: Sequence[str]) -> Spec:
    """The settings of the scene parsing scripts.

    Raises:
        ValueError: an option is unknown.
    """
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--global_only", action="store_true")
    parser.add_argument("--L", type=int, default=900)
    parser.add_argument("--stride", type=int, default=450)
    given, unknown = parser.parse_known_args(list(options))
    if unknown:
        raise ValueError(f"unknown options {unknown}")
    quirks = tuple(quirk for quirk in get_args(Quirk) if quirk != "aligned-corners")
    return Spec(
        side_px=given.L,
        stride_px=given.stride,
        enlarged_px=224 if given.global_only else 1,
        by_crops=not given.global_only,
        components=True,
        doubtful=STUFF,
        official=quirks,
    )


def check_step(golden: Golden, mode: str, compare: Comparison) -> None:
    """One forward and backward pass."""
    config, theirs = golden["config"], golden[mode]
    noise, double = theirs["noise"], compare.dtype == "float64"
    network = _network.__wrapped__(config["seed"], Spec(), compare.dtype)
    network.train(mode == "bn_train").requires_grad_(True)
    size, seeds = (config["h"], config["w"]), config["image_and_mask_seeds"]
    images = network.normalise(replay.images_of(config, seeds))
    masks = torch.stack([torch.from_numpy(formulas.blob(*size, seed) > 127) for seed in seeds])
    masks = masks[:, None]

    def terms() -> dict[str, Tensor]:
        return losses(network, images, masks.to(torch.uint8), masks.roll(SHIFT_PX, (2, 3)))

    found, done = replay.step_of_terms(network, terms, cascadepsp_key)
    expected = theirs["losses_f64" if double else "losses"]
    apart = allowed(noise["losses"])
    for name, own in LOSSES.items():
        compare.close(f"loss {name}", sum(found[one] for one in own), expected[name], apart)
    compare.close("loss", done.logged, expected["total_loss"], apart)
    norms = theirs["grad_norm_f64" if double else "grad_norm"]
    compare.equal("parameters with a gradient", set(done.gradients), set(norms))
    # The noise is one processor's. On another, a unit near 0 that a ReLU drops or not moves norms by
    # more than that of `bn_eval`; in float64 they do not move.
    modes = (mode,) if double else ("bn_train", "bn_eval")
    apart = allowed(max(golden[one]["noise"]["grad_norm_over_1e-6_of_largest"] for one in modes))
    pairs = {key: (norm, None) for key, norm in norms.items()}
    compare.gradients(done.gradients, pairs, apart, SMALLEST)
    state = {cascadepsp_key(key): value.double() for key, value in network.named_buffers()}
    apart = allowed(noise.get("running") or 0.0)
    for key, after in theirs.get("running_after", {}).items():
        compare.vector(key, state[key], after["norm"], after["sum"], apart)


METHOD = Method(
    marks=(
        "inter",
        "order_of_the_six",
        "listing_order",
        *(f"{kind}_{size}" for kind in ("global", "local") for size in ("larger", "smaller")),
    ),
    modes=modes,
    check=check,
)
