"""The content of records that readers rely on, by stage. Further keys are allowed."""

from functools import cache
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field, TypeAdapter

from bench.errors import Status

T = TypeVar("T")
_OPTIONAL: Any = None
"""Default of a key that may be missing. Pydantic does not check it: null in JSON is refused."""
Count = Annotated[int, Field(ge=0, le=2**60)]
Positive = Annotated[int, Field(ge=1, le=2**60)]
Number = Annotated[float, Field(ge=0, le=1e15, allow_inf_nan=False)]
Pixels = Annotated[int, Field(ge=0, le=2**40)]  # sums of them fit in 64 bits
Scenes = dict[str, Annotated[list[list[Pixels]], Field(min_length=2)]]
"""Confusion matrix (K + 1, K) by scene."""
Step = tuple[str, Count, float | None]
"""Phase, step within it, and loss or mIoU."""


class SceneDetails(BaseModel):
    """Counts of `bench.pipeline.details` in an image."""

    boundaries: list[tuple[Pixels, Pixels]]
    objects: list[list[tuple[Pixels, Pixels, Pixels, Pixels, Pixels]]]


class Details(BaseModel):
    """Counts of `bench.pipeline.details` in a split."""

    scenes: Annotated[dict[str, SceneDetails], Field(min_length=1)]
    scores: list[tuple[list[Pixels], list[Pixels]]] = _OPTIONAL

    def match(self, classes: int, sizes: int | None) -> bool:
        """Whether the counts have this number of classes and of groups by object size."""
        scenes, scores = self.scenes.values(), self.scores
        return (
            {(len(one.boundaries), len(one.objects)) for one in scenes} == {(classes, classes)}
            and {len(by_size) for one in scenes for by_size in one.objects} == {sizes}
            and (scores is None or len(scores) == classes)
            and all(0 < len(one) == len(whole) for one, whole in scores or ())
        )


class Evaluation(BaseModel):
    """Content of `evaluate`."""

    classes: Annotated[list[str], Field(min_length=1)]
    ignored: list[str]
    splits: dict[str, Scenes]
    rare: list[str] = _OPTIONAL
    ceilings: dict[str, Number | None] = _OPTIONAL
    other_seeds: dict[str, dict[str, Scenes]] = _OPTIONAL
    details: dict[str, dict[str, Details]] = _OPTIONAL  # by seed and split
    diameters_px: Annotated[list[Positive], Field(min_length=1)] = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        k = len(self.classes)
        if len(set(self.classes)) < k:
            raise ValueError("`classes` has a duplicate")
        if not self.splits.get("test"):
            raise ValueError("`splits` has no scene of `test`")
        for seed in (self.splits, *(self.other_seeds or {}).values()):
            if {split: {*scenes} for split, scenes in seed.items()} != {
                split: {*scenes} for split, scenes in self.splits.items()
            }:
                raise ValueError("`other_seeds` and `splits` have different scenes")
            for matrix in (one for scenes in seed.values() for one in scenes.values()):
                if len(matrix) != k + 1 or any(len(row) != k for row in matrix):
                    raise ValueError(f"a matrix of `splits` is not {k + 1} x {k}")
        sizes = len(self.diameters_px) + 1 if self.diameters_px else None
        for one in (self.details or {}).values():
            if "test" not in one or not all(split.match(k, sizes) for split in one.values()):
                raise ValueError("`details` does not fit `classes` and `diameters_px`")


class Meter(BaseModel):
    """Peak memory by one meter."""

    bytes: Count
    definition: str
    at: str | None = None
    module: str | None = None
    doubt: str | None = None
    card: dict[str, Any] = _OPTIONAL


class Timeline(BaseModel):
    """Bytes over time by category."""

    events: list[Count]
    bytes: dict[str, list[Count]]

    def model_post_init(self, _: Any) -> None:
        if any(len(one) != len(self.events) for one in self.bytes.values()):
            raise ValueError("`bytes` and `events` have different lengths")


class Predicted(Meter):
    """Predicted memory."""

    host_bytes: Count | None = None
    expected_allocated_bytes: Count | None = None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    tf32_reserved_bytes: Count | None = None
    by_category: dict[str, Count] = _OPTIONAL
    timeline: Timeline | None = None


class Meters(BaseModel, extra="forbid"):
    """Peak memory by meter."""

    predicted: Predicted
    allocated: Meter
    reserved: Meter = _OPTIONAL
    rss: Meter = _OPTIONAL
    nvml: Meter = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        if self.nvml and not (self.reserved and self.nvml.card):
            raise ValueError("`nvml` is without `card` or `reserved`")


class Part(BaseModel):
    """Predicted and allocated bytes of one step or prediction."""

    predicted_bytes: Count
    allocated_bytes: Positive
    height_px: Count | None = None
    width_px: Count | None = None
    batch: Count | None = None


class Measurement(BaseModel):
    """Content of `measure`."""

    device: str
    meters: Meters
    missing: dict[str, str] = _OPTIONAL
    height_px: Positive = _OPTIONAL
    width_px: Positive = _OPTIONAL
    flops: Count | None = None
    parameters: Count | None = None
    available_bytes: Count | None = None
    scene: str | None = None
    latency_s: list[Number] = _OPTIONAL
    latency_definition: str = ""
    network_s: list[Number] = _OPTIONAL
    network_definition: str = ""
    forward_s: list[Number] = _OPTIONAL
    forward_definition: str = ""
    part: Part | None = None


class Phase(BaseModel):
    """Cost of one phase of a training."""

    seconds: Number
    steps: Count | None = None
    parameters: Count | None = None


class Trained(BaseModel):
    """Content of `train`."""

    phases: dict[str, Phase]
    loss: list[Step] = _OPTIONAL
    validations: list[Step] = _OPTIONAL
    other_seeds: dict[str, Any] = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        if {phase for phase, *_ in self.validations or ()} - {
            phase for phase, *_ in self.loss or ()
        }:
            raise ValueError("`validations` names a phase that `loss` does not have")


class Candidate(BaseModel):
    miou: Annotated[float, Field(ge=0, le=1)]


class Tuned(BaseModel):
    """Content of `tune`."""

    candidates: dict[str, Candidate]


class Steps(BaseModel):
    """Content of `steps`."""

    device: str
    models: dict[str, dict[str, Part]]


class Costs(BaseModel):
    """Predicted memory and operations of a run on a CUDA device."""

    device_bytes: Positive
    weights_bytes: Count
    host_bytes: Count | None = None
    allocated_bytes: Count | None = None
    reserved_bytes: Count | None = None
    tf32_allocated_bytes: Count | None = None
    tf32_reserved_bytes: Count | None = None
    flops: Count | None = None
    parameters: Count | None = None


class Case(BaseModel):
    """A published setting of a run."""

    dataset: str
    run: str
    method: str
    strategy: str
    done: str
    published: str | None


class PublishedCosts(Costs, Case):
    """A row of `successors`."""

    reserved_bytes: Count | None


class SuiteCosts(Costs):
    """A run of `predict`."""

    network: str = ""
    strategy: str = ""
    published: str | None = None


class Growth(BaseModel):
    """Costs at one image size. A size that was not computed has only the number of patches."""

    side_px: Positive
    patches: Count
    flops: Positive = _OPTIONAL
    device_bytes: Positive = _OPTIONAL
    reserved_bytes: Positive = _OPTIONAL
    host_bytes: Positive = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        found = (self.flops, self.device_bytes, self.reserved_bytes, self.host_bytes)
        if any(found) and not all(found):
            raise ValueError("a size must have all of flops and bytes, or none")


class Fit(BaseModel):
    """Goodness of fit."""

    rows: Number
    rank_correlation: Annotated[float, Field(ge=-1, le=1)]
    median_left_out_error: Number
    explained: Number


class Variant(Fit):
    """Goodness of fit with another choice for one network."""

    network: str
    choice: dict[str, str | int | float | bool]


class Explained(BaseModel):
    """The paper's memory figures and the model fitted to them."""

    rows: list[dict[str, str | Number | None]]
    fit: Annotated[dict[Literal["context_mb", "holding", "workspace"], float], Field(min_length=3)]
    summary: Fit
    variants: list[Variant]


class Predictions(BaseModel):
    """Content of `predict`."""

    runs: dict[str, SuiteCosts]
    height_px: Positive = _OPTIONAL
    width_px: Positive = _OPTIONAL
    definition: str = ""
    growth: dict[str, list[Growth]] = _OPTIONAL
    published: Explained = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        for run, sizes in (self.growth or {}).items():
            if len([size for size in sizes if size.flops]) < 2:
                raise ValueError(f"fewer than two sizes of `growth.{run}` were computed")


class Rows(BaseModel, Generic[T]):
    """Content of several stages."""

    rows: list[T]
    definition: str = ""


class Bytes(BaseModel):
    """Reading of a meter."""

    bytes: Positive


class OnGpu(Case):
    """A row of `card`."""

    key: str
    meters: dict[Literal["allocated", "reserved", "rss", "nvml"], Bytes] = _OPTIONAL
    wall_s: list[Number] | None = None
    forward_s: list[Number] | None = None
    side_px: Positive = _OPTIONAL

    def model_post_init(self, _: Any) -> None:
        if "nvml" in (self.meters or {}) and "reserved" not in self.meters:
            raise ValueError("`nvml` is without `reserved`")


class Estimate(BaseModel):
    """A row of `estimates`, and of `sub_batch`."""

    key: str
    kind: str
    allocated_bytes: Positive
    predicted_bytes: Positive
    others: dict[str, Positive]


class Repetition(BaseModel):
    wall_s: Number
    network_s: Number
    peak_rss_bytes: Count


class HeadCosts(Costs):
    flops: Count


class Head(BaseModel):
    """GLNet with one of its heads."""

    repetitions: Annotated[list[Repetition], Field(min_length=1)]
    predicted: HeadCosts
    labels_equal_share: Number | None = None


class Heads(BaseModel):  # costs at one image size
    plain: Head
    collapsed: Head


class CollapsedHead(BaseModel):
    """Content of `fast`."""

    sides: dict[Annotated[str, Field(pattern=r"^\d{1,9}$")], Heads]


CONTENTS: dict[str, type] = {
    "train": Trained,
    "tune": Tuned,
    "evaluate": Evaluation,
    "measure": Measurement,
    "steps": Steps,
    "predict": Predictions,
    "successors": Rows[PublishedCosts],
    "card": Rows[OnGpu],
    "estimates": Rows[Estimate],
    "sub_batch": Rows[Estimate],
    "fast": CollapsedHead,
    "cluster": Rows[dict[str, Number]],
}
"""Content by stage."""


class Provenance(BaseModel):
    commit: str | None = None
    dirty: bool | None = None
    versions: dict[str, str] = _OPTIONAL
    threads: Count = _OPTIONAL


class _Checked(BaseModel, Generic[T]):
    values: T
    stage: str
    name: str
    settings: dict[str, Any]
    provenance: Provenance
    schema_: Literal[1, 2, 3] = Field(alias="schema")
    benchmark: Positive = _OPTIONAL
    status: Status = "ok"
    reason: str | None = None


@cache
def checker(stage: str) -> TypeAdapter[Any]:
    """Validates the text of a record of a stage, strictly: a number in quotes is not a number."""
    kind: Any = CONTENTS[stage]
    return TypeAdapter(_Checked[kind])
