"""The shapes of answers that handlers write as dictionaries: what `/openapi.json` says of them, and tests hold them to.

No member is optional and none goes unnamed, so that a handler that gains one without a word here fails a test.
"""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from app.errors import Fault
from app.measures.measure import QualityState
from app.serving.features import FeatureKind
from app.serving.loading import TroubleCode
from app.serving.signature import DecisionRule
from app.settings import F1Average

ClassName = int | str


class Shape(msgspec.Struct, forbid_unknown_fields=True):
    """One answer, or a part of it."""


class Problem(Shape):
    """What went wrong (RFC 9457); `instance` is the request's id, `errors` the faults of the request, at most 20."""

    type: str
    title: str
    status: int
    detail: str
    instance: str
    errors: list[Fault] | msgspec.UnsetType = msgspec.UNSET


class LabelCounts(Shape):
    """What became of each label; the other counts add up to `received`."""

    received: int
    new: int
    unchanged: int
    corrected: int
    withdrawn: int
    pending: int
    expired: int
    rejected: int


class StoredLabel(Shape):
    """The label that counts; null: it was withdrawn."""

    label: ClassName | None
    observed_at: datetime
    received_at: datetime


class StoredPrediction(Shape):
    """A row of the log; `label` is null when none has come."""

    prediction_id: UUID
    created_at: datetime
    model: str
    model_version: str
    prediction: ClassName
    score: float
    probabilities: dict[str, float] | None
    features: dict[str, bool | float | str | None]
    external_id: str | None
    request_id: str
    role: Literal["live", "shadow"]
    label: StoredLabel | None


class ReceivedLabel(StoredLabel):
    """A label that came, and what became of it."""

    outcome: str


class PredictionHistory(StoredPrediction):
    """A row of the log with every label that came for it."""

    label_history: list[ReceivedLabel]


class PredictionPage(Shape):
    """One page; `next` is the cursor of the following one, null on the last."""

    predictions: list[StoredPrediction]
    next: UUID | None


class Quality(Shape):
    """How good one version is in one window, [since, until); what is undefined is null."""

    model: str
    model_version: str
    role: Literal["live", "shadow"]
    window: str
    since: datetime
    until: datetime
    computed_at: datetime
    state: Literal[QualityState, "stale"]
    objective: float | None
    average: F1Average
    predictions: int
    labelled: int
    coverage: float | None
    label_delay_seconds: float | None
    confusion: Annotated[dict[str, dict[str, int]], Meta(description="Rows by label, then by predicted class")]
    f1: float | None
    f1_lower: float | None
    f1_upper: float | None
    corrected_f1: float | None
    baseline_f1: float | None
    precision: float | None
    recall: float | None
    specificity: float | None
    accuracy: float | None
    ece: float | None
    brier: float | None
    auc: float | None
    best_threshold: float | None
    best_threshold_f1: float | None
    regret: float | None
    f1_by_threshold: list[float | None] | None


class QualityResults(Shape):
    """How good each version is."""

    results: list[Quality]


class PastQuality(Shape):
    """How good a version was at this minute."""

    minute: datetime
    since: datetime
    until: datetime
    state: QualityState
    predictions: int
    labelled: int
    f1: float | None
    f1_lower: float | None
    f1_upper: float | None
    corrected_f1: float | None
    baseline_f1: float | None
    precision: float | None
    recall: float | None
    accuracy: float | None


class QualityHistory(Shape):
    """Past results of one version and window, newest first."""

    history: list[PastQuality]


class ModelInput(Shape):
    """One feature."""

    name: str
    type: FeatureKind


class ModelTrouble(Shape):
    """What is wrong with a version in MODEL_DIR."""

    code: TroubleCode
    detail: str
    since: datetime


class ServedVersion(Shape):
    """A version that takes requests; `trouble` is what is wrong with its file now."""

    name: str
    version: str
    state: Literal["serving"]
    default: bool
    pinned: bool
    trouble: ModelTrouble | None
    sha256: str
    loaded_at: datetime
    inputs: list[ModelInput]
    missing_values: Literal["allowed", "refused"]
    classes: list[ClassName]
    positive_class: ClassName | None
    decision: DecisionRule
    decision_threshold: float | None
    training_f1: float | None


class MissingVersion(Shape):
    """A version that takes no requests: somebody has unloaded it, or `trouble` says why it cannot be served."""

    name: str
    version: str
    state: Literal["unloaded", "refused"]
    default: Literal[False]
    pinned: bool
    trouble: ModelTrouble | None


class ModelList(Shape):
    """Every version that is served or could have been; `pins` are default versions by model."""

    default_model: str
    models: list[ServedVersion]
    not_serving: list[MissingVersion]
    pins: dict[str, str]


class UnloadedVersion(Shape):
    """A version that takes no more requests."""

    name: str
    version: str
    state: Literal["unloaded"]


class DefaultVersion(Shape):
    """The version for requests that name none: the pinned one when it is served."""

    name: str
    pinned: str | None
    default_version: str | None


class Reason(Shape):
    """Something that is wrong."""

    code: str
    detail: str
    since: datetime


class Health(Shape):
    """How the server is."""

    status: Literal["ok", "degraded"]
    reasons: list[Reason]


class Readiness(Shape):
    """Whether /predict can keep its promise."""

    ready: bool
    reasons: list[Reason]


class Liveness(Shape):
    """That the server lives."""

    live: bool
