"""What the routes of /quality answer; `docs/quality.md` explains the numbers."""

from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.measures.measure import QualityState
from app.quality.page_counts import ScoreCounts, TimeCounts
from app.settings import F1Average
from app.web.fields import ModelName, ModelVersion, Role, Since, Until, WindowName

Predicted = Annotated[int, Meta(description="Predictions in the period", examples=[1200])]
Labelled = Annotated[int, Meta(description="Those with a label", examples=[1000])]
F1 = Annotated[float | None, Meta(description="F1 of the labelled rows", examples=[0.94])]
F1Lower = Annotated[float | None, Meta(description="Lower bound of F1, 95 % confidence", examples=[0.92])]
F1Upper = Annotated[float | None, Meta(description="Upper bound of F1, 95 % confidence", examples=[0.955])]
CorrectedF1 = Annotated[
    float | None,
    Meta(description="F1 with labels weighted to stand for all predictions with a similar score", examples=[0.938]),
]
BaselineF1 = Annotated[float | None, Meta(description="F1 of always predicting one class", examples=[0.66])]
Precision = Annotated[float | None, Meta(description="Share of a class's predictions that are right", examples=[0.95])]
Recall = Annotated[float | None, Meta(description="Share of a class's labels that were predicted", examples=[0.93])]
Accuracy = Annotated[float | None, Meta(description="Share of the labelled rows that are right", examples=[0.94])]


class Quality(msgspec.Struct, kw_only=True):
    """How good one version is in one window; undefined measures are null."""

    model: ModelName
    model_version: ModelVersion
    role: Role
    window: WindowName
    since: Since
    until: Until
    computed_at: Annotated[
        datetime, Meta(description="When the numbers were computed", examples=["2026-01-01T01:00:00Z"])
    ]
    state: Annotated[
        Literal[QualityState, "stale"], Meta(description="Whether and why the numbers are weak", examples=["ok"])
    ]
    objective: Annotated[float | None, Meta(description="F1_OBJECTIVE; null when it is not set", examples=[0.9])]
    average: Annotated[F1Average, Meta(description="How F1 averages over the classes", examples=["binary"])]
    predictions: Predicted
    labelled: Labelled
    coverage: Annotated[float | None, Meta(description="labelled / predictions", examples=[0.83])]
    label_delay_seconds: Annotated[
        float | None, Meta(description="Mean time from a prediction to its label", examples=[420.5])
    ]
    confusion: Annotated[
        dict[str, dict[str, int]],
        Meta(
            description="Labelled rows by label, then by predicted class",
            examples=[{"0": {"0": 470, "1": 30}, "1": {"0": 30, "1": 470}}],
        ),
    ]
    f1: F1
    f1_lower: F1Lower
    f1_upper: F1Upper
    corrected_f1: CorrectedF1
    baseline_f1: BaselineF1
    precision: Precision
    recall: Recall
    specificity: Annotated[
        float | None,
        Meta(description="Share of the labels of other classes that were not predicted as this class", examples=[0.94]),
    ]
    accuracy: Accuracy
    ece: Annotated[
        float | None,
        Meta(description="Expected calibration error: how far scores are from frequencies", examples=[0.02]),
    ]
    brier: Annotated[float | None, Meta(description="Mean of (score - outcome) squared; two classes", examples=[0.06])]
    auc: Annotated[float | None, Meta(description="Area under the ROC curve; two classes", examples=[0.98])]
    best_threshold: Annotated[
        float | None, Meta(description="The threshold with the highest F1 in hindsight; two classes", examples=[0.48])
    ]
    best_threshold_f1: Annotated[float | None, Meta(description="F1 at that threshold", examples=[0.942])]
    regret: Annotated[float | None, Meta(description="best_threshold_f1 - f1", examples=[0.002])]
    regret_is_certain: Annotated[
        bool | None, Meta(description="Whether chance does not explain the regret; two classes", examples=[False])
    ]
    f1_by_threshold: Annotated[
        list[float | None] | None,
        Meta(description="F1 at the thresholds 0.00, 0.01 .. 0.99; two classes", examples=[[0.66, 0.7, 0.75]]),
    ]


class QualityResults(msgspec.Struct):
    """How good each version is."""

    results: Annotated[list[Quality], Meta(description="One for each version, role and window, or period")]


class PastQuality(msgspec.Struct, kw_only=True):
    """How good a version was at one minute; undefined measures are null."""

    minute: Annotated[datetime, Meta(description="When", examples=["2026-01-01T01:00:00Z"])]
    since: Since
    until: Until
    state: Annotated[QualityState, Meta(description="Whether and why the numbers were weak", examples=["ok"])]
    predictions: Predicted
    labelled: Labelled
    f1: F1
    f1_lower: F1Lower
    f1_upper: F1Upper
    corrected_f1: CorrectedF1
    baseline_f1: BaselineF1
    precision: Precision
    recall: Recall
    accuracy: Accuracy


class QualityHistory(msgspec.Struct):
    """Past results of one version and window."""

    history: Annotated[list[PastQuality], Meta(description="The results, newest first")]


class QualityCounts(msgspec.Struct):
    """The counts behind the result that was computed at `until`: predictions over time, and by score."""

    since: Since
    until: Until
    by_time: Annotated[list[TimeCounts], Meta(description="Buckets of equal length, without gaps")]
    by_score: Annotated[list[ScoreCounts], Meta(description="Bars of equal width, from 0 to 1")]
