"""Our state-dict keys -> the released ones (without prefix), as a table of rules for each method.

A rule is a pattern and what it is replaced by; all rules of a table are applied in order."""

import re
from collections.abc import Callable
from typing import Literal, NamedTuple

PhaseName = Literal["plain", "medium", "large", "all"]
PHASES: tuple[PhaseName, ...] = ("plain", "medium", "large", "all")
"""Of FCtL: its released code writes one file a phase."""
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _next(form: str) -> Callable[[re.Match[str]], str]:
    """Numbers that count from 1 there."""
    return lambda match: form.format(*match.groups(), number=int(match["number"]) + 1)


_FPN: Rules = (
    (r"\blateral\.", "latlayer"),
    (r"\blatlayer0", "toplayer"),
    (r"\bsmooth([12])\.(?P<number>\d)", _next("smooth{number}_{0}")),
)
# The global FPN has both sets of layers; those of the borrowing one are marked by `_ext`, but for
# `smooth`, which only it has, and `classify`, which both share.
GLNET: Rules = (
    (r"^aggregation(_borrowing)?\.conv\.", "ensemble_conv."),
    (r"^(global|local)_\w+\.encoder\.", r"resnet_\1."),
    (r"^(global_borrowing\.fpn\.(lateral|smooth[12])\.\d)", r"\1_ext"),
    (r"^(global|local)_\w+\.fpn\.", r"fpn_\1."),
    (r"\.smooth3\.", ".smooth."),
    *_FPN,
)
MAGNET: Rules = (
    (r"^(backbone|refine\.\d+)\.", ""),
    (r"^encoder\.", "resnet_backbone."),
    (r"^fpn\.", ""),
    *_FPN,
)
"""A refinement module has the released names."""

# The released code crosses its auxiliary classifiers: `conv_seg_aux_16` reads the fusion at 1/8.
# Names stay with names here; which map each reads is the spec's `crossed-classifiers`.
ISDNET: Rules = (
    (r"^pyramid\.pool\.", "decode_head.image_pool.1."),
    (r"^pyramid\.branches\.", "decode_head.aspp_modules."),
    (r"^pyramid\.join\.", "decode_head.bottleneck."),
    (r"^pyramid\.classify\.", "decode_head.conv_seg."),
    (r"^reduce\.(conv|bn)\.", r"refine_head.reduce.\g<1>1."),
    (r"^shallow\.parts\.", "refine_head.stdc_net.features."),
    (r"^restore\.colours\.", "refine_head.sr_decoder.conv_sr."),
    (r"^restore\.", "refine_head.sr_decoder."),
    (r"^classify\.", "refine_head.conv_seg."),
    (r"^classify_(8|16)\.", r"refine_head.conv_seg_aux_\1."),
    (r"^auxiliary\.conv\.", "auxiliary_head.convs.0."),
    (r"^auxiliary\.classify\.", "auxiliary_head.conv_seg."),
    (r"^(refine_head\.(conv_seg\w*|sr_decoder\.conv_sr))\.conv\.", r"\1.conv_bn_relu."),
    (r"^(refine_head\.(conv_seg\w*|sr_decoder\.conv_sr))\.out\.", r"\1.conv_out."),
    (r"^fuse", "refine_head.fuse"),
    (r"\.(shallow|context)_conv\.", r".\1_att.conv_bn_relu."),
    (r"\.(shallow|context)_vector\.", r".\1_att.conv_1x1."),
    (r"\.shallow_(att|mlp)\.", r".spatial_\1."),
    (r"\.shallow_gain", ".g1"),
    (r"\.context_gain", ".g2"),
    (r"\.context_out\.", ".context_head."),
    (r"\.steps\.", ".conv_list."),
    (r"\.down\.", ".avd_layer."),
)
ISDNET_ALIASES = tuple(f"refine_head.stdc_net.{part}." for part in ("x2", "x4", "x8", "x16"))
"""The released file lists the shallow branch twice, the second time by these names."""

POINTREND: Rules = (
    (r"^encoder\.model\.conv1\.", "backbone.stem."),
    (r"^encoder\.model\.bn1\.", "backbone.stem.7."),
    (r"^encoder\.model\.", "backbone."),
    (r"^pyramid\.laterals\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"^pyramid\.outputs\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"^coarse\.levels\.(\d\.\d)\.0\.", r"coarse.scale_heads.\1.conv."),
    (r"^coarse\.levels\.(\d\.\d)\.1\.", r"coarse.scale_heads.\1.bn."),
    (r"^coarse\.classify\.", "coarse.conv_seg."),
    (r"^point\.layers\.(\d)\.", r"point.fcs.\1.conv."),
    (r"^point\.classify\.", "point.fc_seg."),
)
"""Of the golden data; in mmsegmentation's files `coarse` is `decode_head.0`, `point`
`decode_head.1`."""

CASCADEPSP: Rules = (
    (r"^refiner\.encoder\.", "feats."),
    (r"^refiner\.pool\.levels\.(\d)\.", r"psp.stages.\1.1."),
    (r"^refiner\.pool\.join\.", "psp.bottleneck."),
    (r"^refiner\.up(\d)\.first\.", r"up_\1.conv."),
    (r"^refiner\.up(\d)\.second\.", r"up_\1.conv2."),
    (r"^refiner\.up(\d)\.shortcut\.", r"up_\1.shortcut."),
    (r"^refiner\.score8\.", "final_28."),
    (r"^refiner\.score4\.", "final_56."),
    (r"^refiner\.score1\.0\.", "final_11."),
    (r"^refiner\.score1\.2\.", "final_21."),
)
"""The base network is not in the released code."""

RUE: Rules = (
    (r"^pyramid\.scales\.", "decode_head.dappm.scale"),
    (r"^pyramid\.processes\.(?P<number>\d)", _next("decode_head.dappm.process{number}")),
    (r"^pyramid\.(compression|shortcut)\.", r"decode_head.dappm.\1."),
    (r"^pyramid\.classify\.", "decode_head.conv_seg."),
    (r"\.scale0\.(?P<number>\d)", lambda match: f".scale0.{int(match['number']) - 1}"),
    (r"^residual\.", "refine_head.score_head."),
    (r"^shallow\.parts\.", "refine_head.stdc_net.features."),
    (r"^shallow\.reduce16\.(conv|bn)\.", r"refine_head.reduce1.\g<1>1."),
    (r"^shallow\.reduce8\.(conv|bn)\.", r"refine_head.reduce2.\g<1>1."),
    (r"^reduce\.(conv|bn)\.", r"refine_head.reduce3.\g<1>1."),
    (r"^classify\.", "refine_head.conv_seg_aux_16."),
    (r"^idle\.", "refine_head.conv_seg."),
    (r"^auxiliary\.conv\.", "auxiliary_head.convs.0."),
    (r"^auxiliary\.classify\.", "auxiliary_head.conv_seg."),
    (r"^(refine_head\.(conv_seg_aux_16|score_head))\.conv\.", r"\1.conv_bn_relu."),
    (r"^(refine_head\.(conv_seg_aux_16|score_head))\.out\.", r"\1.conv_out."),
    (r"\.steps\.", ".conv_list."),
    (r"\.down\.", ".avd_layer."),
)
"""The released file lists the shallow stream twice, as ISDNet's does."""

F2NET: Rules = (
    (r"^split\.project\.", "afd.proj."),
    (r"^split\.filters\.", "afd.filter_gen."),
    (r"^short\.pyramid\.pool\.", "short.aspp.image_pool.1."),
    (r"^short\.pyramid\.norm\.", "short.aspp.image_pool.2."),
    (r"^short\.pyramid\.join\.", "short.aspp.bottleneck."),
    (r"^short\.pyramid\.", "short.aspp."),
    (r"^(short\.aspp\..*)\.conv\.", r"\1.0."),
    (r"^(short\.aspp\..*)\.bn\.", r"\1.1."),
    (r"^long\.position$", "long.pos_embed"),
    (r"^long\.embed\.", "long.patch_embed."),
    (r"\.attention\.project\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"^(long\..*\.mlp)\.fc1\.", r"\1.0."),
    (r"^(long\..*\.mlp)\.fc2\.", r"\1.2."),
    (r"^high\.embed\.0\.0\.", "high.vssm.patch_embed.0."),
    (r"^high\.embed\.0\.1\.", "high.vssm.patch_embed.2."),
    (r"^high\.embed\.2\.0\.", "high.vssm.patch_embed.5."),
    (r"^high\.embed\.2\.1\.", "high.vssm.patch_embed.7."),
    (r"^high\.stages\.(\d)\.\d\.0\.", r"high.vssm.layers.\1.downsample.1."),
    (r"^high\.stages\.(\d)\.\d\.1\.", r"high.vssm.layers.\1.downsample.3."),
    (r"^high\.stages\.(\d)\.(\d)\.", r"high.vssm.layers.\1.blocks.\2."),
    (r"^(high\..*\.blocks\.\d)\.norm1\.", r"\1.norm."),
    (r"\.scan\.into\.", ".op.in_proj."),
    (r"\.scan\.conv\.", ".op.conv2d.1."),
    (r"\.scan\.project$", ".op.x_proj_weight"),
    (r"\.scan\.decay$", ".op.A_logs"),
    (r"\.scan\.step$", ".op.dt_projs_bias"),
    (r"\.scan\.skip$", ".op.Ds"),
    (r"\.scan\.(norm|out)\.", r".op.out_\1."),
    (r"\.op\.out_out\.", ".op.out_proj."),
    (r"^fuse_low\.", "hff1."),
    (r"^fuse\.", "hff2."),
    (r"^(hff\d)\.one\.", r"\1.att_a."),
    (r"^(hff\d)\.other\.", r"\1.att_b."),
    (r"^(hff\d)\.cross_one\.", r"\1.cross_a."),
    (r"^(hff\d)\.cross_other\.", r"\1.cross_b."),
    (r"^(hff\d)\.project_one\.", r"\1.proj_a."),
    (r"^(hff\d)\.project_other\.", r"\1.proj_b."),
    (r"^alignment\.low\.", "cfal.proj_sl."),
    (r"^alignment\.high\.", "cfal.proj_m."),
    (r"^classify\.", "cls."),
)
"""The released code has modules only; the prefixes are those of the golden data."""

_FCTL: Rules = (
    (r"^\w+_vgg\.", "vgg."),
    (r"^(plain|local|\w+_rest)\.", ""),
    (r"^decoder\.head\.", "output."),
    (r"^decoder\.adapt", "adj_pool"),
)
FCTL: dict[str, Rules] = {
    "inria": (
        *_FCTL,
        (r"^(blend\.)?correlate\.(medium\.)?(gain|query|key|value)\b", r"big_attention.\3"),
        (r"^blend\.correlate\.large\.(\w+)", r"big_attention.\1_1"),
        (r"^blend\.correlate\.local\.(\w+)", r"big_attention.\1_2"),
        (r"^blend\.", "big_attention."),
    ),
    "deepglobe": (
        *_FCTL,
        (r"^correlate\.", "big."),
        (r"^blend\.correlate\.", ""),
        (r"^blend\.", ""),
    ),
}
_FCTL_INNER: Rules = (
    (r"(?<=\.)gain", "gamma"),
    (r"(?<=\.)(query|key|value)", r"conv_\1"),
    (r"\binto\.(?P<number>\d)", _next("in_{number}")),
    (r"\bout\.(?P<number>\d)", _next("out_{number}")),
)


def renamed(key: str, rules: Rules) -> str:
    """A key after all rules."""
    for pattern, replacement in rules:
        key = re.sub(pattern, replacement, key)
    return key


def _renaming(rules: Rules) -> Callable[[str], str]:
    return lambda key: renamed(key, rules)


# Keys of a method's network, or of one of its parts that the released code has.
glnet_key = _renaming(GLNET)
isdnet_key = _renaming(ISDNET)
pointrend_key = _renaming(POINTREND)
cascadepsp_key = _renaming(CASCADEPSP)
magnet_key = _renaming(MAGNET)
rue_key = _renaming(RUE)
f2net_key = _renaming(F2NET)


class Source(NamedTuple):
    """The file and the key of a tensor of FCtL."""

    phase: PhaseName
    key: str


def fctl_source(key: str, variant: str) -> Source:
    """Of `baselines.fctl.model.FCtL`."""
    part = re.split(r"[._]", key, maxsplit=1)[0]
    phase: PhaseName = next((phase for phase in PHASES if phase == part), "all")  # `local`
    return Source(phase, renamed(key, (*FCTL[variant], *_FCTL_INNER)))
