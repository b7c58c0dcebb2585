"""Records: one JSON file per stage and name, with raw results and their provenance. Writing is atomic;
reading never writes."""

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
"""Version of the format. Version 1 has earlier names of methods (`config.MOVED_METHODS`); versions 1 and 2
have earlier names of some keys (`RENAMED_KEYS`) and of the variants of a method."""
RENAMED_KEYS = {
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
"""Version of the benchmark, raised when a change of data, metrics or meters changes results. Results of
different versions are not compared. A record without the key is of version 1."""
RESULTS = Path("results")
_RANK = {"failed": 0, "oom": 1, "ok": 2}

# Outputs of the pipeline; they do not make a checkout dirty.
GENERATED = ("results", "report", "dvc.lock")
CODE = (".py", ".yaml", ".csv")
"""Suffixes of files that a result may depend on."""
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
    """Settings of the suite that the result was computed with."""
    values: Mapping[str, Any]
    """Raw results: every repetition and scene, not averaged or rounded, with definitions of the numbers."""
    provenance: Mapping[str, Any]
    status: Status = "ok"
    reason: str | None = None
    """Why the status is not `ok`, in one sentence."""
    benchmark: int = BENCHMARK
    schema: int = field(default=SCHEMA)


def path_of(suite: str, stage: str, name: str, machine: str | None = None) -> Path:
    """`results/SUITE/STAGE[/MACHINE]/NAME.json`; with the machine if the result depends on hardware."""
    parts = [part for part in (suite, stage, machine) if part]
    return RESULTS.joinpath(*parts, f"{name}.json")


def write(path: Path, record: Record, parts: str | None = None) -> None:
    """Write `record` as JSON, atomically, unless the existing record is better.

    A failure does not replace a result, and out of memory does not replace a result of the same
    settings.

    Args:
        parts: key in `values` of a table whose entries are measured one by one. Entries of an earlier
            record stay, with their provenance, if the new record lacks them or has fewer fields.

    Raises:
        UserError: the existing record is better, or as in `other_parts`.
    """
    found = json.loads(json.dumps(asdict(record)))
    earlier = _earlier(path)
    same = earlier and (earlier.settings, earlier.benchmark) == (found["settings"], BENCHMARK)
    worse = earlier and _RANK[record.status] < _RANK[earlier.status]
    if worse and (same or record.status == "failed"):
        raise UserError(
            f"{path} was not replaced, since the new result is worse ({record.reason}): delete the "
            "file to replace it."
        )
    if earlier and parts:
        new = found["values"][parts]
        old, entries = entries_of(earlier.values[parts]), entries_of(new)
        common = old.keys() & entries.keys() if same else set()
        better = {key for key in common if _rank(old[key]) > _rank(entries[key])}
        merged = entries | other_parts(path, record.settings, entries.keys() - better, parts)
        found["values"][parts] = merged if isinstance(new, dict) else list(merged.values())
    write_text(path, json.dumps(found, indent=1, sort_keys=True) + "\n")


def other_parts(
    path: Path, settings: Mapping[str, Any], renewed: Collection[str], parts: str
) -> dict[str, Any]:
    """Entries of an earlier record that a new record does not replace.

    Args:
        settings: settings of the new record.
        renewed: keys of its entries.
        parts: as in `write`.

    Raises:
        UserError: there are such entries, and they were measured with other settings.
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
    """The first difference between a record's settings and those of a model and a run; empty if there
    is none. Settings that the record lacks count as their defaults."""
    for key, current in (("model", model), ("run", run)):
        if current is None or key not in made.settings:
            continue
        earlier = made.settings[key]
        if not isinstance(earlier, Mapping):
            return f"its settings have no table {key}"
        try:
            before, after = asdict(strict(type(current), earlier, key)), asdict(current)
            found = difference(before | {"trained": None}, after | {"trained": None})
        except UserError as error:
            found = str(error).removesuffix(".")
        if found:
            return found
    return ""


def difference(earlier: Mapping[str, Any], now: Mapping[str, Any], within: str = "") -> str:
    """The first key (dotted) whose value has changed, with both values; empty if there is none."""
    for key in sorted({*earlier, *now}):
        one, other = earlier.get(key), now.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            if found := difference(one, other, f"{within}{key}."):
                return found
        elif one != other:
            return f"{within}{key} was {shortened(repr(one))}, now {shortened(repr(other))}"
    return ""


def entries_of(table: Any) -> dict[str, Any]:
    """The entries of a table by key; entries of a list have it as `key`."""
    return dict(table) if isinstance(table, Mapping) else {row["key"]: row for row in table}


def require_same(path: Path, earlier: Mapping[Any, Any], new: Mapping[str, Any]) -> None:
    """Raise a UserError if a file has results of other settings, which would be lost or mixed."""
    if differing := sorted(key for key in new if earlier.get(key) != new[key]):
        first = differing[0]
        raise UserError(
            f"{path} has results with {first} {earlier.get(first)!r}, the new ones "
            f"have {new[first]!r}: move the file away first."
        )


def _earlier(path: Path) -> Record | None:
    """The record that a new one would replace; None if it is missing or damaged."""
    try:
        return read(path)
    except UserError:
        return None


def _rank(entry: Mapping[str, Any]) -> tuple[int, int]:
    """Rank of an entry: by status, then by number of fields (without times there are fewer)."""
    return _RANK[entry.get("status", "ok")], len(entry.keys() - {"provenance"})


def read(path: Path) -> Record:
    """The record in `path`.

    Raises:
        UserError: the file is missing, not JSON, of an unknown schema version, or lacks required
            values.
    """
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run `dvc repro`.") from None
    return parse(text, str(path), f"`git checkout {path}`, or delete it and run `dvc repro`")


def parse(text: bytes, origin: str, advice: str) -> Record:
    """The record in a file's text.

    Args:
        origin: the file's name, for error messages.
        advice: what to do if the text is not a record, for error messages.

    Raises:
        UserError: it is not JSON, of an unknown schema version, or lacks required values.
    """
    try:
        values = json.loads(text, object_hook=_migrate)
        if (schema := values.get("schema", SCHEMA)) not in range(1, SCHEMA + 1):
            raise UserError(
                f"{origin} has schema {schema!r:.50}, this code reads {SCHEMA}: {advice}."
            )
        _check(values.get("stage"), text if schema == SCHEMA else json.dumps(values).encode())
        return Record(**{"benchmark": 1, **values, "schema": SCHEMA})
    # Raised by JSON, UTF-8, `_check` and `Record`.
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())
    raise UserError(f"{origin} is damaged ({reason}): {advice}.")


def _check(stage: Any, text: bytes) -> None:
    if stage not in CONTENTS:
        raise ValueError(f"its stage is {stage!r:.50}, not one of {', '.join(CONTENTS)}")
    try:
        checker(stage).validate_json(text, strict=True)
    except ValidationError as error:
        status = json.loads(text).get("status")
        incomplete = status in ("oom", "failed")
        errors = [e for e in error.errors() if not (incomplete and e["type"] == "missing")]
        if errors:
            raise ValueError(first_problem(errors)) from None


def _migrate(values: dict[str, Any]) -> dict[str, Any]:
    """Migrate a table of a record: names of keys, methods and variants, and the default of
    `compute.isa`."""
    values = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
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
    """Commit, versions and machine of this process, and further facts of the caller.

    `commit` and `dirty` are None if git does not know the folder: in an export, or in another user's
    checkout. `dirty` ignores outputs of the pipeline, a params.yaml that equals a file of suites/,
    and new files that are neither code nor settings, such as logs.
    """
    ignored = [*GENERATED, *(["params.yaml"] if _is_a_suite(Path("params.yaml")) else [])]
    # `HEAD:./` fails for an export that lies in another project's checkout.
    head = _git("rev-parse", "HEAD", "HEAD:./")
    excluded = [f":!{path}" for path in ignored]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    kinds = [f"*{kind}" for kind in CODE]
    new = _git("ls-files", "--others", "--exclude-standard", "--", *kinds, *excluded)
    return {
        "commit": head and head.split()[0],
        "dirty": None if None in (head, changed, new) else bool(changed or new),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in VERSIONS},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": os.cpu_count(),
        **more,
    }


def other_seeds(found: Mapping[int, Any]) -> dict[str, dict[str, Any]]:
    """The entry of a record for all seeds but the first, whose results are stored like those of a model
    with one seed; empty if there is one seed."""
    others = {str(seed): one for seed, one in list(found.items())[1:]}
    return {"other_seeds": others} if others else {}


def _is_a_suite(params: Path) -> bool:
    """Whether it is a copy of a file of suites/."""
    if not params.is_file():
        return False
    return any(suite.read_bytes() == params.read_bytes() for suite in Path("suites").glob("*.yaml"))


def processor() -> str:
    """The processor's model name; `unknown` if the system does not report it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")),
        "unknown",
    )


def _git(*arguments: str) -> str | None:
    """The output of git; None if it is not installed or fails."""
    try:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, errors="replace"
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
