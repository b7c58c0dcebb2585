"""`glnet-bench predict IMAGE -o MASK --run RUN`: label an image file of any size."""

import argparse
from pathlib import Path

from bench import cli
from bench.commands.bundle import verify
from bench.config import PARAMS, parse_bytes, parse_setting
from bench.errors import UserError

GIB = 2**30


def command(parser: argparse.ArgumentParser) -> None:
    """Write the labels of an image file of any size, in bounded memory."""
    parser.add_argument("image", metavar="IMAGE", type=Path, help="PNG, JPEG, GeoTIFF or COG")
    parser.add_argument(
        "-o", "--output", metavar="MASK", type=Path, required=True, help="label file, .tif or .png"
    )
    parser.add_argument("--run", required=True, help="a key of the suite's table runs")
    suite = parser.add_mutually_exclusive_group()
    suite.add_argument("--suite", type=Path, default=PARAMS, help="default: params.yaml")
    suite.add_argument("--bundle", type=Path, metavar="FILE.zip", help="install and use a bundle")
    weights = parser.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, help="default: the run's, in checkpoints/")
    weights.add_argument("--random", type=cli.seed, metavar="SEED", help="use random weights")
    parser.add_argument("--classes", type=int, help="number, if the data set is not prepared")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="spec fields")
    parser.add_argument("--bands", type=int, nargs=3, default=[], help="red, green, blue, from 1")
    parser.add_argument(
        "--max-memory",
        metavar="BYTES",
        help="for instance 2GiB: limit of predicted memory, which reduces the sub-batch",
    )
    parser.add_argument("--cog", action="store_true", help="write a cloud-optimised GeoTIFF")
    parser.add_argument("--fresh", action="store_true", help="do not resume an interrupted process")
    parser.set_defaults(work=work, in_root=True)


def work(arguments: argparse.Namespace) -> None:
    """Label the image; print time and memory."""
    limit = parse_bytes(arguments.max_memory, "--max-memory") if arguments.max_memory else None
    settings = dict(map(parse_setting, arguments.set))
    if not arguments.image.is_file():
        raise UserError(f"There is no image {arguments.image}: give the path of a file.")
    from bench.streaming import open_job, predict_file

    suite = verify(arguments.bundle, install=True) if arguments.bundle else arguments.suite
    selected = open_job(
        arguments.run,
        suite,
        arguments.checkpoint if arguments.random is None else arguments.random,
        arguments.classes,
        settings,
    )
    done = predict_file(
        arguments.image,
        arguments.output,
        selected,
        max_memory_bytes=limit,
        bands=arguments.bands,
        cog=arguments.cog,
        fresh=arguments.fresh,
    )
    mode = "by windows" if done.by_windows else "in memory"
    at_once = f", {done.sub_batch} patches at once" if done.sub_batch else ""
    print(
        f"{arguments.output}: {done.height_px} x {done.width_px} px {mode}{at_once} in "
        f"{done.seconds:.1f} s, {done.megapixels_per_s:.2f} megapixels a second; peak memory "
        f"{done.peak_rss_bytes / GIB:.2f} GiB, predicted {done.predicted_bytes / GIB:.2f}."
    )
