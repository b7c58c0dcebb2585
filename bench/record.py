"""Records: one JSON file per stage and name, with raw results and their provenance. Writing is
atomic; reading never writes."""

import json
import os
import platform
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bench.config import ModelConfig, RunConfig, current_method, first_problem, strict
from bench.errors import Status, UserError
from bench.files import shortened, write_text
from bench.record_contents import CONTENTS, checker

SCHEMA = 3
"""Version of the format. 1 named methods by their earlier packages (`config.MOVED_METHODS`); 1 and 2
had other names for some keys (`MOVED_KEYS`) and for the variants of a method; a record without
`benchmark` is of version 1."""
MOVED_KEYS = {
    "booked_bytes": "allocated_bytes",
    "told_bytes": "expected_allocated_bytes",
    "room_bytes": "available_bytes",
    "course": "timeline",
    "looks": "validations",
    "used_told_by": "used_bytes_from",
    "instance_of_a_card": "mig_instance",
    "sm_clock_most_mhz": "sm_clock_max_mhz",
    "memory_clock_most_mhz": "memory_clock_max_mhz",
}
BENCHMARK = 1
"""Version of the benchmark. A change of data, metrics or meters that changes results raises it; results
of different versions are not compared."""
RESULTS = Path("results")
_RANK = {"failed": 0, "oom": 1, "ok": 2}

# Outputs of the pipeline, which do not make a checkout dirty.
GENERATED = ("results", "report", "dvc.lock")
CODE = (".py", ".yaml", ".csv")
"""Endings of files that a result may depend on."""
VERSIONS = (
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "lightning-fabric",
    "numpy",
    "pillow",
)


@dataclass(frozen=True)
class Record:
    """The result of one stage for one model or run."""

    stage: str
    name: str
    settings: Mapping[str, Any]
    """The suite's settings that the result was computed with."""
    values: Mapping[str, Any]
    """Raw: every repetition and every scene, nothing averaged or rounded; definitions beside the
    numbers."""
    provenance: Mapping[str, Any]
    status: Status = "ok"
    reason: str | None = None
    """Why it is not `ok`, one sentence."""
    benchmark: int = BENCHMARK
    schema: int = field(default=SCHEMA)


def path_of(suite: str, stage: str, name: str, machine: str | None = None) -> Path:
    """`results/SUITE/STAGE[/MACHINE]/NAME.json`; with the machine if the result depends on
    hardware."""
    parts = [part for part in (suite, stage, machine) if part]
    return RESULTS.joinpath(*parts, f"{name}.json")


def write(path: Path, record: Record, parts: str | None = None) -> None:
    """Write `record` as JSON, atomically, but never in place of a better one.

    A failure replaces no result, and out of memory none of the same settings.

    Args:
        parts: the table in `values` whose entries are measured one by one. Entries of an earlier
            record that the new one lacks, or that say more, stay with their provenance.

    Raises:
        UserError: the file is kept, or as in `other_parts`.
    """
    found = json.loads(json.dumps(asdict(record)))
    earlier = _earlier(path)
    same = earlier and (earlier.settings, earlier.benchmark) == (found["settings"], BENCHMARK)
    worse = earlier and _RANK[record.status] < _RANK[earlier.status]
    if worse and (same or record.status == "failed"):
        raise UserError(
            f"{path} is kept, for the new result is worse ({record.reason}): delete the file to "
            "have that instead."
        )
    if earlier and parts:
        new = found["values"][parts]
        old, entries = entries_of(earlier.values[parts]), entries_of(new)
        both = old.keys() & entries.keys() if same else set()
        better = {key for key in both if _worth(old[key]) > _worth(entries[key])}
        kept = other_parts(path, record.settings, entries.keys() - better, parts)
        whole = entries | kept
        found["values"][parts] = whole if isinstance(new, dict) else list(whole.values())
    write_text(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


def other_parts(
    path: Path, settings: Mapping[str, Any], renewed: Collection[str], parts: str
) -> dict[str, Any]:
    """Entries of an earlier record that stay beside those that are measured again.

    Args:
        settings: of the new record.
        renewed: keys of its entries.
        parts: as in `write`.

    Raises:
        UserError: there are some, and they were made with other settings.
    """
    if not (earlier := _earlier(path)) or earlier.benchmark != BENCHMARK:
        return {}
    kept = {
        key: {"provenance": earlier.provenance, **entry}
        for key, entry in entries_of(earlier.values[parts]).items()
        if key not in renewed
    }
    if kept:
        require_same(path, earlier.settings, json.loads(json.dumps(settings)))
    return kept


def made_otherwise(made: Record, model: ModelConfig, run: RunConfig | None = None) -> str:
    """How the settings of a record differ from those of a model and of a run of it, a clause; empty
    if they do not. Settings that there were not yet count as their defaults."""
    for key, now in (("model", model), ("run", run)):
        if now is None or key not in made.settings:
            continue
        earlier = made.settings[key]
        if not isinstance(earlier, Mapping):
            return f"its settings have no table {key}"
        try:
            before, after = asdict(strict(type(now), earlier, key)), asdict(now)
            found = difference(before | {"trained": None}, after | {"trained": None})
        except UserError as error:
            found = str(error).removesuffix(".")
        if found:
            return found
    return ""


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """The first key, with its full path, whose value has changed, and both values; empty if none."""
    for key in sorted({*earlier, *now}):
        one, other = earlier.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := difference(one, other, f"{within}{key}."):
                return found
        elif one != other:
            return f"{within}{key} was {shortened(repr(one))}, now {shortened(repr(other))}"
    return ""


def entries_of(table: Any) -> dict[str, Any]:
    """The entries of a table by key; of a list each has its own as `key`."""
    return dict(table) if isinstance(table, Mapping) else {row["key"]: row for row in table}


def require_same(path: Path, earlier: Mapping[Any, Any], new: Mapping[str, Any]) -> None:
    """Raise a UserError if results of other settings would be lost from a file, or mixed."""
    if differing := sorted(key for key in new if earlier.get(key) != new[key]):
        first = differing[0]
        raise UserError(
            f"{path} has results with {first} {earlier.get(first)!r}, these would have "
            f"{new[first]!r}: move that file away first."
        )


def _earlier(path: Path) -> Record | None:
    """The record that a new one would replace, if it is sound."""
    try:
        return read(path)
    except UserError:
        return None


def _worth(entry: Mapping[str, Any]) -> tuple[int, int]:
    """An entry of equal status is worth less with fewer fields, for instance without times."""
    return _RANK[entry.get("status", "ok")], len(entry.keys() - {"provenance"})


def read(path: Path) -> Record:
    """The record in `path`.

    Raises:
        UserError: the file is missing, not JSON, of another schema version, or lacks what readers
            need.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`.") from None
    return parse(text, str(path), f"`git checkout {path}`, or delete it and run `dvc repro`")


def parse(text: bytes, origin: str, mend: str) -> Record:
    """The record in a file's text.

    Args:
        origin: the file's name, for error messages.
        mend: what to do if the text is no record, for error messages.

    Raises:
        UserError: it is not JSON, of another schema version, or lacks what readers need.
    """
    try:
        values = json.loads(text, object_hook=_as_now)
        if (schema := values.get("schema", SCHEMA)) not in range(1, SCHEMA + 1):
            raise UserError(
                f"{origin} has schema {schema!r:.50}, this code reads {SCHEMA}: {mend}."
            )
        _check(values.get("stage"), text if schema == SCHEMA else json.dumps(values).encode())
        return Record(**{"benchmark": 1, **values, "schema": SCHEMA})
    # Of JSON, UTF-8 and `_check`; a list has no keys, and a record no others than ours.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise UserError(f"{origin} is damaged ({reason}): {mend}.")


def _check(stage: Any, text: bytes) -> None:
    if stage not in CONTENTS:
        raise ValueError(f"its stage is {stage!r:.50}; there are {', '.join(CONTENTS)}")
    try:
        checker(stage).validate_json(text, strict=True)
    except ValidationError as error:
        status = json.loads(text).get("status")
        ended = status in ("oom", "failed")  # with the values that there were until then
        left = [one for one in error.errors() if not (ended and one["type"] == "missing")]
        if left:
            raise ValueError(first_problem(left)) from None


def _as_now(values: dict[str, Any]) -> dict[str, Any]:
    """A table of a record with the current names of its keys, its `method` and its variant, and with
    what `compute` was before it had `isa`."""
    values = {MOVED_KEYS.get(key, key): value for key, value in values.items()}
    if (done := values.get("done")) in ("as meant", "ours"):
        values["done"] = "corrected"
        if isinstance(key := values.get("key"), str):
            values["key"] = key.removesuffix(done) + "corrected"
    if isinstance(method := values.get("method"), str):
        values["method"] = current_method(method)
    if isinstance(compute := values.get("compute"), dict):
        values["compute"] = {"isa": "native", **compute}
    return values


def provenance(**more: Any) -> dict[str, Any]:
    """Commit, versions and machine of this process, and the caller's further facts.

    `commit` and `dirty` are None where git does not know the folder: in an export, or in a checkout
    that belongs to somebody else. `dirty` ignores outputs of the pipeline, a params.yaml that equals
    one of the suites, so that running the pipeline on a clean commit does not count as a change, and
    new files that are neither code nor settings, such as logs.
    """
    ours = [*GENERATED, *(["params.yaml"] if _is_a_suite(Path("params.yaml")) else [])]
    # `HEAD:./` is this folder in the commit: an export may lie in another project's checkout.
    known = _git("rev-parse", "HEAD", "HEAD:./")
    others = [f":!{path}" for path in ours]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    kinds = [f"*{kind}" for kind in CODE]
    new = _git("ls-files", "--others", "--exclude-standard", "--", *kinds, *others)
    return {
        "commit": known and known.split()[0],
        "dirty": None if None in (known, changed, new) else bool(changed or new),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        **more,
    }


def other_seeds(found: Mapping[int, Any]) -> dict[str, dict[str, Any]]:
    """The entry of a record for all seeds but the first, whose results are stored like those of a
    model with one seed; empty without further seeds."""
    others = {str(seed): one for seed, one in list(found.items())[1:]}
    return {"other_seeds": others} if others else {}


def _is_a_suite(params: Path) -> bool:
    """Whether it is a copy of a file under suites/, where a change makes the checkout dirty."""
    if not params.is_file():
        return False
    return any(suite.read_bytes() == params.read_bytes() for suite in Path("suites").glob("*.yaml"))


def processor() -> str:
    """The processor's model name, if the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )


def _git(*arguments: str) -> str | None:
    """What git prints; None where it is not installed, or refuses."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, errors="replace"
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
