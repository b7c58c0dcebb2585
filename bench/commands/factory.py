"""`glnet-bench estimate package.module:factory`: memory of any torch module."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bench.commands.question import PRECISIONS, Answer, known_overhead
from bench.errors import UserError
from bench.memory import Mode, Recipe, predict_memory

OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}
MIXED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def is_factory(name: str | None) -> bool:
    """Whether an argument is `package.module:factory`."""
    return ":" in (name or "")


def predict_factory(arguments: argparse.Namespace, settings: Mapping[str, Any]) -> Answer:
    """Memory of the module that a factory makes.

    Args:
        arguments: of the command `estimate`.
        settings: keyword arguments of the factory.

    Raises:
        UserError: there is no such factory, or the module does not run on the inputs.
    """
    name, precision = arguments.method, arguments.precision
    make = factory(name)
    dtype = PRECISIONS.get(precision, torch.float32)
    shapes = [parse_shape(text, dtype) for text in arguments.input]
    recipe = Recipe(autocast=MIXED.get(precision), scaled=precision == "16-mixed")
    if arguments.train:
        settings_of = {"momentum": 0.9} if arguments.train == "sgd" else {}
        optimizer = partial(OPTIMIZERS[arguments.train], lr=1e-3, **settings_of)
        recipe = Recipe(optimizer, autocast=recipe.autocast, scaled=recipe.scaled)
    mode: Mode = "training" if arguments.train else arguments.phase

    def build() -> torch.nn.Module:
        made = make(**settings)
        if not isinstance(made, torch.nn.Module):
            raise UserError(
                f"{name} returns a {type(made).__name__}: name one that makes a module."
            )
        return made.to(dtype)

    try:
        found = predict_memory(build, shapes, arguments.device, mode, recipe)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise UserError(
            f"{name} does not run on {' '.join(arguments.input)}: {' '.join(str(error).split())}"
        ) from error
    shown = found.process_bytes(arguments.card, known_overhead(arguments.card))
    return Answer(mode, found, shown)


def factory(name: str) -> Callable[..., Any]:
    """What `package.module:factory` names; modules of the working directory are found too."""
    place, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(place), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"There is no {name} ({error}): give package.module:factory.") from error
    if not callable(found):
        raise UserError(f"{name} cannot be called: name a function or class that makes a module.")
    return found  # type: ignore[no-any-return]


def parse_shape(text: str, dtype: torch.dtype) -> tuple[tuple[int, ...], torch.dtype]:
    """`8x3x64x64` or `8x128:int64` -> sizes and type, by default `dtype`."""
    sizes, _, name = text.partition(":")
    given = getattr(torch, name, None) if name else dtype
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", sizes) or not isinstance(given, torch.dtype):
        raise UserError(
            f"--input is {text!r}: give sizes and, if not of the network's precision, a type, "
            "for instance 8x3x512x512 or 8x128:int64."
        )
    return tuple(map(int, sizes.split("x"))), given
