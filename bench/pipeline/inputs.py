"""Stages `download`, `prepare` and `weights`: data sets and start weights for all other stages.

python -m bench.pipeline.inputs download NAME   raw files of a data set, verified
python -m bench.pipeline.inputs prepare NAME    raw files -> the format of `data.dataset`
python -m bench.pipeline.inputs weights NAME    start weights of one encoder -> a state dict
"""

import argparse
import io
from dataclasses import asdict

from bench import cli
from bench.config import open_source, pick, read_suite
from bench.files import write_bytes
from data import weights
from data.fetch import locked
from data.prepare import prepare


def download_raw(name: str) -> None:
    """Download one data set; files that are present and correct are kept."""
    source, settings, raw = open_source(read_suite(), name)
    with locked(raw):
        raw.mkdir(parents=True, exist_ok=True)
        source.download(settings, raw)


def prepare_dataset(name: str) -> None:
    """Convert one data set to the prepared format."""
    source, settings, raw = open_source(read_suite(), name)
    about = source.about(settings)
    of_files = hasattr(source, "survey")
    pairs = source.survey(settings, raw).pairs() if of_files else source.pairs(settings, raw)
    count = sum(map(len, about.splits.values()))
    shown = cli.with_progress(pairs, count, name, "image")
    dataset = prepare(name, about, shown, asdict(settings))
    print(f"{dataset.root}: " + ", ".join(f"{len(i)} {s}" for s, i in dataset.splits.items()))


def fetch_weights(name: str) -> None:
    """Fetch the start weights `name` of the table `weights`."""
    import torch  # takes seconds to import

    line = pick(read_suite().weights, name, "start weights")
    buffer = io.BytesIO()
    torch.save(weights.encoder_state(line.encoder, line.source, line.path), buffer)
    path = weights.FOLDER / f"{name}.pt"
    write_bytes(path, buffer.getvalue())
    print(path)


STAGES = {"download": download_raw, "prepare": prepare_dataset, "weights": fetch_weights}


def work(arguments: argparse.Namespace) -> None:
    """Download or prepare one data set of params.yaml, or fetch start weights."""
    STAGES[arguments.stage](arguments.name)


def fill(parser: argparse.ArgumentParser) -> None:
    """Add the stage's argument."""
    parser.add_argument("stage", choices=tuple(STAGES))


if __name__ == "__main__":
    cli.main(work, fill, name="a key of the table datasets or weights")
