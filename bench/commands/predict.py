"""`glnet-bench predict IMAGE... -o MASK --run RUN`: label image files of any size."""

import argparse
from pathlib import Path

from bench import cli
from bench.commands.bundle import verify
from bench.commands.cluster import add_engine_arguments
from bench.config import PARAMS
from bench.errors import UserError

GIB = 2**30


def command(parser: argparse.ArgumentParser) -> None:
    """Write the labels of image files of any size, in bounded memory."""
    parser.add_argument(
        "images", metavar="IMAGE", type=Path, nargs="+", help="PNG, JPEG, GeoTIFF or COG"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="MASK",
        type=Path,
        required=True,
        help="label file, .tif or .png; of several images a folder, for those that are not in it yet",
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
    parser.add_argument(
        "--cluster", action="store_true", help="on Ray or Slurm, as glnet-bench cluster"
    )
    add_engine_arguments(parser)
    parser.set_defaults(work=work, in_root=True, gpu=None)


def work(arguments: argparse.Namespace) -> None:
    """Label the images; print time and memory."""
    limit = cli.parse_bytes(arguments.max_memory, "--max-memory") if arguments.max_memory else None
    arguments.settings = dict(map(cli.parse_setting, arguments.set))
    for image in arguments.images:
        if not image.is_file():
            raise UserError(f"There is no image {image}: give the path of a file.")
    outputs = _outputs(arguments)
    from bench.streaming import open_job, predict_file

    if arguments.bundle:
        arguments.suite = verify(arguments.bundle, install=True)
    selected = open_job(
        arguments.run,
        arguments.suite,
        arguments.checkpoint if arguments.random is None else arguments.random,
        arguments.classes,
        arguments.settings,
    )
    options = {
        "max_memory_bytes": limit,
        "bands": arguments.bands,
        "cog": arguments.cog,
        "fresh": arguments.fresh,
    }
    if arguments.cluster:
        from bench.cluster.label import label

        label(arguments, selected, outputs, options)
        return
    for image, output in outputs.items():
        done = predict_file(image, output, selected, **options)
        mode = "by windows" if done.by_windows else "in memory"
        at_once = f", {done.sub_batch} patches at once" if done.sub_batch else ""
        print(
            f"{output}: {done.height_px} x {done.width_px} px {mode}{at_once} in "
            f"{done.seconds:.1f} s, {done.megapixels_per_s:.2f} megapixels a second; peak memory "
            f"{done.peak_rss_bytes / GIB:.2f} GiB, predicted {done.predicted_bytes / GIB:.2f}."
        )


def _outputs(arguments: argparse.Namespace) -> dict[Path, Path]:
    """Label files by image."""
    if len(arguments.images) == 1:
        return {arguments.images[0]: arguments.output}
    if not arguments.output.is_dir():
        raise UserError(f"Several images need a folder: {arguments.output} is none, create it.")
    found = {image: arguments.output / f"{image.stem}.tif" for image in arguments.images}
    for image, output in found.items():
        if same := [one for one in found if one != image and found[one] == output]:
            raise UserError(
                f"{image} and {same[0]} would both be labelled in {output}: rename one."
            )
        if output.exists() and output.samefile(image):
            raise UserError(f"{output} is the image itself: use another folder.")
    missing = {one: path for one, path in found.items() if arguments.fresh or not path.exists()}
    if there := len(found) - len(missing):
        print(f"{there} label files are there already; --fresh writes them again")
    return missing
