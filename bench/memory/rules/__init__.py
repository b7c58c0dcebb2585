"""Temporary memory inside operators, by rule, beside their results: one table per device."""

from collections.abc import Mapping

from bench.memory.rules.convolution import has_amx
from bench.memory.rules.cpu import CPU
from bench.memory.rules.cuda import CUDA, PRODUCTS, TF32
from bench.memory.rules.shared import Moment, Rules, Use

RULES: Mapping[str, Rules] = {"cpu": CPU, "cuda": CUDA}
__all__ = ["PRODUCTS", "RULES", "TF32", "Moment", "Rules", "Use", "has_amx"]
