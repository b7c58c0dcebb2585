"""Stages `download`, `prepare` and `weights`: data sets and start weights for all other stages.

python -m bench.pipeline.inputs download NAME   download and verify the raw files of a data set
python -m bench.pipeline.inputs prepare NAME    convert raw files to the format of `data.dataset`
python -m bench.pipeline.inputs weights NAME    save the start weights of an encoder as a state dict
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
    """Download one data set, except files that are there and correct."""
    source, settings, raw = open_source(read_suite(), name)
    with locked(raw):
        raw.mkdir(parents=True, exist_ok=True)
        source.download(settings, raw)


def prepare_dataset(name: str) -> None:
    """Convert one data set to the prepared format."""
    source, settings, raw = open_source(read_suite(), name)
    about = source.about(settings)
    has_files = hasattr(source, "survey")
    pairs = source.survey(settings, raw).pairs() if has_files else source.pairs(settings, raw)
    count = sum(map(len, about.splits.values()))
    pairs = cli.with_progress(pairs, count, name, "image")
    dataset = prepare(name, about, pairs, asdict(settings))
    print(f"{dataset.root}: " + ", ".join(f"{len(i)} {s}" for s, i in dataset.splits.items()))


def fetch_weights(name: str) -> None:
    """Save the start weights `name` of the table `weights`."""
    import torch  # takes seconds to import

    line = pick(read_suite().weights, name, "start weights")
    buffer = io.BytesIO()
    torch.save(weights.encoder_state(line.encoder, line.source, line.path), buffer)
    path = weights.FOLDER / f"{name}.pt"
    write_bytes(path, buffer.getvalue())
    print(path)


STAGES = {"download": download_raw, "prepare": prepare_dataset, "weights": fetch_weights}


def work(arguments: argparse.Namespace) -> None:
    """Download or prepare a data set of params.yaml, or save start weights."""
    STAGES[arguments.stage](arguments.name)


def fill(parser: argparse.ArgumentParser) -> None:
    """Add the stage's argument."""
    parser.add_argument("stage", choices=tuple(STAGES))


if __name__ == "__main__":
    cli.main(work, fill, name="a key of the table datasets or weights")
