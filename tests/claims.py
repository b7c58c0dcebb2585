"""Every measured number in the texts of README and docs, with the records that it comes from."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from doc_records import (
    GIB,
    HEADS,
    MIB,
    avx2_factors,
    beside_mib,
    cpu_within,
    estimate_errors,
    estimate_ratios,
    generate,
    glnet_at_paper_size,
    gpu,
    gpu_deviations,
    growth,
    head,
    head_factors,
    head_predicted,
    interval_coverage,
    long,
    misjudged,
    mosaic_ceilings,
    mosaic_miou,
    on_h100,
    paper_model,
    published,
    published_memory_met,
    settings_within,
    simulated,
    steps_avx2,
    steps_on_h100,
    streaming_limits,
    training_minutes,
    two_patches_at_once,
    values,
    within,
)

from bench.experiments import any_network
from bench.memory import gpu_overhead
from bench.pipeline import measure
from bench.streaming import raster
from data import fetch


@dataclass(frozen=True)
class Claim:
    """Words of a page, a pattern with a group for each number, and what the numbers must be."""

    page: str
    words: str
    numbers: Callable[[], Sequence[float]]


N = r"(\d[\d,]*(?:\.\d+)?)"
ESTIMATE, MODES = "docs/estimate.md", ("inference", "training")
README, MEMORY, SPEED = "README.md", "docs/memory.md", "docs/speed.md"
MOSAIC, PREDICT, DATA = "docs/mosaic.md", "docs/predict.md", "docs/data.md"
CLAIMS = (
    # README
    Claim(
        README,
        f"reaches {N} % with patches in {N} MiB; GLNet reaches {N} %, and its global branch alone {N} %",
        lambda: (
            long("unet2015-patch", "miou"),
            long("unet2015-patch", "allocated"),
            long("glnet-collaborative", "miou"),
            long("glnet-global", "miou"),
        ),
    ),
    Claim(
        README,
        f"Of {N} published settings, {N} are within {N} % of the published memory, and {N} take",
        published_memory_met,
    ),
    Claim(
        README,
        f"allocated {N} MiB on the H100, {N} MiB for the whole process. The paper reports {N} MB",
        glnet_at_paper_size,
    ),
    Claim(
        README,
        f"local branch alone reaches {N} %, its global branch {N} %. Where patches receive the global "
        f"branch's maps \\(`global-to-local`\\) it is {N} %: significantly more than either, and than FPN "
        f"on patches, {N} %. On the image shrunk to 512 px, FPN reaches {N} %, no significant "
        f"difference, DeepLabv3\\+ {N} % and SegFormer's decoder {N} %, significantly more",
        lambda: [
            generate.named_ious("idrid", run)["all"]
            for run in (
                "glnet-local",
                "glnet-global",
                "glnet-global-to-local",
                "fpn-patch",
                "fpn-downsample",
                "deeplabv3plus-downsample",
                "segformer-downsample",
            )
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"UPerNet with ConvNeXt-T on patches reaches {N} %, SegFormer-B0 {N} %, RUE {N} % and no lesion",
        lambda: [
            generate.named_ious("idrid", run)["all"]
            for run in ("upernet-convnext-patch", "segformer-b0-patch", "rue")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"SegFormer-B0 on patches have {N} and {N} %, significantly better than GLNet, significantly "
        f"worse than the other networks on patches. RUE has {N} %",
        lambda: [
            generate.miou("dubai", f"{run}-a")
            for run in ("upernet-convnext-patch", "segformer-b0-patch", "rue")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"{N} % on val after a quarter of its steps, {N} and {N} % with {N} and {N} times as much",
        lambda: [
            *(
                100 * values("dubai/tune/glnet-a.json")["candidates"][factor]["miou"]
                for factor in ("1", "3", "0.3")
            ),
            3,
            0.3,
        ],
    ),
    Claim(
        README,
        f"reach {N}, {N} and {N} % on patches, GLNet {N} %, its global branch {N} %, and U-Net on the "
        f"shrunken image {N} %",
        lambda: [
            generate.miou("dubai", f"{run}-a")
            for run in (
                "unet-patch",
                "deeplabv3plus-patch",
                "fpn-patch",
                "glnet-global-to-local",
                "glnet-global",
                "unet-downsample",
            )
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"DeepLabv3\\+, {N} instead of {N} %",
        lambda: [
            generate.named_ious("idrid", f"deeplabv3plus-{strategy}")["all"]
            for strategy in ("whole", "patch")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"alone has {N} %, the least with this encoder: its patches see no context, and the disc "
        f"falls to {N} %",
        lambda: [
            generate.named_ious("idrid", "glnet-local")[name] for name in ("all", "optic_disc")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"it has {N} %, significantly more than either branch, {N} % of the small lesions and {N} % IoU",
        lambda: [
            generate.named_ious("idrid", "glnet-global-to-local")["all"],
            generate.found_by_size("glnet-global-to-local")[1],
            generate.named_ious("idrid", "glnet-global-to-local")["optic_disc"],
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"leads, shrunk with {N} % mIoU; on patches it has {N} %, and finds {N} % of the small lesions",
        lambda: [
            generate.named_ious("idrid", "segformer-downsample")["all"],
            generate.named_ious("idrid", "segformer-patch")["all"],
            generate.found_by_size("segformer-patch")[1],
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"significantly better still, by {N} points",
        lambda: [
            generate.named_ious("idrid", "deeplabv3plus-downsample")["all"]
            - generate.named_ious("idrid", "glnet-global-to-local")["all"]
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"U-Net shrunk has {N} %: it hardly chooses microaneurysms and soft exudates, with an IoU of "
        f"{N} and {N} %",
        lambda: [
            generate.named_ious("idrid", "unet-downsample")[name]
            for name in ("all", "microaneurysm", "soft_exudate")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"FPN finds {N} % of the pixels of lesions of 8 to 16 px; on patches {N} %",
        lambda: [generate.found_by_size(run)[1] for run in ("fpn-downsample", "fpn-patch")],
    ),
    Claim(
        "docs/protocol.md",
        f"then allocates {N} MiB instead of {N}",
        lambda: [
            generate.measured("idrid", "cpu-2-cores", f"fpn-{strategy}")["allocated"]
            for strategy in ("whole", "patch")
        ],
    ),
    Claim(
        "docs/protocol.md",
        f"its IoU falls from {N} to {N} %",
        lambda: [
            generate.named_ious("idrid", run)["optic_disc"]
            for run in ("fpn-downsample", "fpn-patch")
        ],
    ),
    Claim(README, f"Of {N} published settings, {N} were within 1 %", settings_within),
    Claim(README, f"On the CPU {N} of {N} comparisons", cpu_within),
    Claim(README, f"the median deviation is {N} %", lambda: [100 * median(on_h100())]),
    Claim(
        README,
        f"took {N} s instead of {N} s",
        lambda: (head("collapsed", "wall_s"), head("plain", "wall_s")),
    ),
    Claim(
        README,
        f"{N} ms instead of {N} ms at 720 px, and {N} GiB instead of {N} GiB at 2448 px",
        lambda: (
            long("glnet-collapsed", "ms"),
            long("glnet-collaborative", "ms"),
            gpu("glnet-collapsed", "allocated") / GIB,
            gpu("glnet-collaborative", "allocated") / GIB,
        ),
    ),
    Claim(README, f"training took {N} minutes on two", lambda: [training_minutes("earthcover")]),
    Claim(
        README,
        f"whose {N} models trained for {N} minutes",
        lambda: (
            len(generate.names("earthcover-long/train")),
            training_minutes("earthcover-long"),
        ),
    ),
    Claim(
        ESTIMATE,
        f"{N} calls and {N} training steps in float32, {N} calls and {N} steps in bfloat16",
        lambda: [
            len(estimate_ratios(mode=mode, precision=precision))
            for precision in ("fp32", "bf16")
            for mode in MODES
        ],
    ),
    Claim(
        ESTIMATE,
        f"is {N} % in the median, {N} % at the 95th percentile, at most {N} % for segmentation networks, "
        f"{N} % for backbones, {N} % for transformers",
        lambda: [
            *estimate_errors(precision="fp32")[:2],
            *(estimate_errors(kind=kind, precision="fp32")[2] for kind in any_network.KINDS),
        ],
    ),
    *(
        Claim(
            ESTIMATE,
            f"{tool} (?:at most )?{N} and {N} %",
            partial(
                lambda tool: [
                    estimate_errors(tool, mode=mode, precision="fp32")[2] for mode in MODES
                ],
                tool,
            ),
        )
        for tool in any_network.OTHERS
    ),
    Claim(
        ESTIMATE,
        f"In bfloat16 it is at most {N} % for segmentation networks, {N} % for backbones, {N} % "
        f"for transformers; with AMX, .* up to {N} %",
        lambda: [
            *(estimate_errors(kind=kind, precision="bf16")[2] for kind in any_network.KINDS),
            estimate_errors(machine="cpu-2-cores-amx", precision="bf16")[2],
        ],
    ),
    Claim(
        ESTIMATE,
        f"At budgets of 0.8 to 1.25 times the allocation {N} % of answers are false fits and "
        f"{N} % false refusals with a margin of 1 %, of MemTracker {N} and {N} % without",
        lambda: (*misjudged(margin=0.01), *misjudged("MemTracker")),
    ),
    # docs/memory.md
    Claim(MEMORY, f"A run has {N} minutes", lambda: [measure.LIMIT_S / 60]),
    Claim(MEMORY, f"one constant per GPU family \\({N} MiB on an H100\\)", beside_mib),
    Claim(MEMORY, f"{N} of {N} comparisons of `earthcover` and `mosaic`", cpu_within),
    Claim(
        MEMORY,
        f"{N} of {N} settings are within 1 % of `allocated`",
        lambda: settings_within()[::-1],
    ),
    Claim(
        MEMORY,
        f"median error of {N} %; {N} settings are within 10 %, {N} within 20 %",
        lambda: (
            100 * median(gpu_deviations("reserved")),
            within(gpu_deviations("reserved"), 0.1),
            within(gpu_deviations("reserved"), 0.2),
        ),
    ),
    Claim(
        MEMORY,
        f"median deviation of {N} comparisons is {N} %; {N} are within 1 %",
        lambda: (len(on_h100()), 100 * median(on_h100()), within(on_h100(), 0.01)),
    ),
    Claim(
        MEMORY,
        f"Of {N} phases of training steps {N} differ by {N} MiB at most, .* by {N} MiB",
        steps_on_h100,
    ),
    Claim(
        MEMORY,
        f"cuBLAS's workspace of {N} MiB explain {N} of {N} settings",
        lambda: (gpu_overhead.HOPPER_BLAS_BYTES / MIB, *settings_within()[::-1]),
    ),
    Claim(
        MEMORY,
        f"cuBLAS's workspace, {N} MiB for each",
        lambda: [gpu_overhead.HOPPER_BLAS_BYTES / MIB],
    ),
    Claim(
        MEMORY,
        f"collapsed head: {N} GiB where {N} GiB are predicted and the default head takes {N} GiB",
        lambda: (
            gpu("glnet-collapsed", "allocated") / GIB,
            values("predict.json")["runs"]["glnet-collapsed"]["device_bytes"] / GIB,
            gpu("glnet-collaborative", "allocated") / GIB,
        ),
    ),
    Claim(
        MEMORY,
        f"allocated {N} MiB; the process total was {N} MiB, of which {N} MiB are neither .* "
        f"The paper reports {N} MB",
        lambda: (*glnet_at_paper_size()[:2], *beside_mib(), glnet_at_paper_size()[2]),
    ),
    Claim(
        MEMORY,
        f"all {N} published memory figures: a context of {N} MB, {N} times the predicted",
        lambda: (
            paper_model("summary", "rows"),
            paper_model("fit", "context_mb"),
            paper_model("fit", "holding"),
        ),
    ),
    Claim(
        MEMORY,
        f"explains {N} % of the rows within 15 %; .* correlation of {N}, .* the fit is {N} %",
        lambda: (
            100 * paper_model("summary", "explained"),
            paper_model("summary", "rank_correlation"),
            100 * paper_model("summary", "median_left_out_error"),
        ),
    ),
    # docs/speed.md
    Claim(
        SPEED,
        rf"operations, TFLOP \| {N} \| {N} \|",
        lambda: [head_predicted(path, "flops") / 1e12 for path in ("plain", "collapsed")],
    ),
    Claim(
        SPEED,
        rf"memory beside weights, MB \| {N} \| {N} \|",
        lambda: [head_predicted(path, "device_bytes") / 1e6 for path in ("plain", "collapsed")],
    ),
    Claim(
        SPEED,
        rf"Xeon \(AVX-512\): seconds, median of three \| {N} \| {N} \|",
        lambda: [head(path, "wall_s") for path in ("plain", "collapsed")],
    ),
    Claim(
        SPEED,
        rf"resident host memory, GiB \| {N} \| {N} \|",
        lambda: [head(path, "peak_rss_bytes") / GIB for path in ("plain", "collapsed")],
    ),
    Claim(
        SPEED,
        rf"H100: allocated, GiB \| {N} \| {N} \|",
        lambda: [gpu(f"glnet-{run}", "allocated") / GIB for run in HEADS],
    ),
    Claim(
        SPEED,
        rf"720 px: allocated, MiB \| {N} \| {N} \|",
        lambda: [long(f"glnet-{run}", "allocated") for run in HEADS],
    ),
    Claim(
        SPEED,
        rf"720 px: ms \| {N} \| {N} \|",
        lambda: [long(f"glnet-{run}", "ms") for run in HEADS],
    ),
    Claim(
        SPEED,
        f"both heads take {N} and {N} s",
        lambda: [
            generate.measured("earthcover", "cpu-2-cores", f"glnet-{run}")["ms"] / 1000
            for run in HEADS
        ],
    ),
    Claim(
        SPEED,
        f"factors of {N} to {N}: less than the operations, {N}",
        lambda: (
            min(head_factors()),
            max(head_factors()),
            head_predicted("plain", "flops") / head_predicted("collapsed", "flops"),
        ),
    ),
    Claim(
        SPEED,
        rf"AMD EPYC \(AVX-512\): seconds, median of three \| {N} \| {N} \|",
        lambda: [head(path, "wall_s", "epyc-2-cores") for path in ("plain", "collapsed")],
    ),
    Claim(
        SPEED,
        f"take {N} to {N} % less time than one, for {N} to {N} % more memory",
        lambda: (
            100 * (1 - max(two_patches_at_once("wall_s"))),
            100 * (1 - min(two_patches_at_once("wall_s"))),
            100 * (min(two_patches_at_once("allocated_bytes")) - 1),
            100 * (max(two_patches_at_once("allocated_bytes")) - 1),
        ),
    ),
    # docs/mosaic.md
    Claim(
        MOSAIC,
        f"{N} % for one patch, {N} % for the downsampled image, {N} % for labels at 1/4",
        lambda: [
            mosaic_ceilings()[name] for name in ("one patch", "shrunken image", "labels at 1/4")
        ],
    ),
    Claim(
        MOSAIC,
        f"are {N} points above either alone, and {N} points above what any",
        lambda: (
            mosaic_miou("collaborative") - mosaic_miou("global"),
            mosaic_miou("collaborative") - mosaic_ceilings()["shrunken image"],
        ),
    ),
    Claim(
        MOSAIC,
        f"local branch alone has {N}, the global branch {N}, aggregation {N}, .* regularisation {N}, "
        f"and in both directions {N}",
        lambda: [
            published(row, "miou_percent")
            for row in (
                "GLNet ablation: local only",
                "GLNet ablation: global only",
                "GLNet ablation: Agg",
                "GLNet ablation: Agg+Fmreg+G->L deep",
                "GLNet G<->L",
            )
        ],
    ),
    # docs/predict.md
    Claim(
        PREDICT,
        f"it took {N}, {N}, {N} and {N} s for {N} to {N} megapixels",
        lambda: (*growth().wall_s, *(growth().height_px * growth().width_px / 1e6).iloc[[0, -1]]),
    ),
    Claim(
        PREDICT,
        f"memory was {N} to {N} MiB, with {N} MiB predicted",
        lambda: (
            growth().peak_rss_bytes.min() / MIB,
            growth().peak_rss_bytes.max() / MIB,
            growth().predicted_bytes.max() / MIB,
        ),
    ),
    Claim(
        PREDICT,
        rf"- {N} MiB for data in transit: GDAL's cache \({N} MiB\), the largest block to decode "
        rf"\({N} MiB\), and chunks of rows \({N} MiB\)",
        streaming_limits,
    ),
    Claim(PREDICT, f"only in blocks over {N} MiB", lambda: [raster.BLOCK_BYTES / MIB]),
    # docs/data.md
    Claim(
        DATA, f"in blocks of {N} MiB by range", lambda: [fetch.DownloadOptions().block_bytes / MIB]
    ),
    Claim(
        DATA,
        f"which is {N} GB for DeepGlobe and {N} GB for Inria",
        lambda: (803 * 2448**2 * 4 / 1e9, 180 * 5000**2 * 4 / 1e9),
    ),
    # docs/uhr_methods.md
    Claim(
        "docs/uhr_methods.md",
        f"GLNet {N} MB, ISDNet {N}, FCtL {N}, MagNet {N}, PointRend {N}, CascadePSP {N}, F2Net {N}",
        lambda: (
            published("GLNet G<->L", "memory_mb"),
            *(
                published(name, "memory_mb", "BPT")
                for name in ("ISDNet", "FCtL", "MagNet", "PointRend", "CascadePSP")
            ),
            published("F2Net", "memory_mb", "F2Net"),
        ),
    ),
    # docs/devices.md
    Claim(
        "docs/devices.md",
        f"GLNet and U-Net took {N} and {N} times the processor seconds, training steps {N} to {N} times",
        lambda: (*avx2_factors("collaborative", "patch"), min(steps_avx2()), max(steps_avx2())),
    ),
    # docs/cluster.md
    Claim(
        "docs/cluster.md",
        f"suite with {N} trainings on {N} workers keeps them at work for {N} % of the time; on {N} for "
        f"{N} %. The limit is the longest chain of stages, {N} s",
        simulated,
    ),
    Claim(
        "docs/cluster.md",
        f"took {N} % longer than `dvc repro` for `smoke`, {N} % for `earthcover`",
        lambda: [
            100 * values(f"cluster/overhead-{suite}.json")["rows"][0]["overhead"]
            for suite in ("smoke", "earthcover")
        ],
    ),
    # docs/statistics.md
    Claim(
        "docs/statistics.md",
        f"in {N} % of cases for N = 4 and {N} % for N = 20",
        lambda: (interval_coverage(4), interval_coverage(20)),
    ),
)
