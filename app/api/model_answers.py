"""What the routes of /models answer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from app.errors import Reason
from app.serving.features import FeatureKind
from app.serving.signature import DecisionRule
from app.web.fields import ModelClass, ModelName, ModelVersion

IsDefault = Annotated[
    bool, Meta(description="Whether requests that name the model but no version get this one", examples=[True])
]
IsPinned = Annotated[bool, Meta(description="Whether the operator has pinned this version", examples=[False])]


class InputFeature(msgspec.Struct):
    """One feature."""

    name: Annotated[str, Meta(description="The feature's name", examples=["loan_length"])]
    type: Annotated[FeatureKind, Meta(description="What its values are in JSON", examples=["number"])]


class ServedVersion(msgspec.Struct):
    """A version that takes requests."""

    name: ModelName
    version: ModelVersion
    state: Annotated[Literal["serving"], Meta(description="It takes requests", examples=["serving"])]
    default: IsDefault
    pinned: IsPinned
    trouble: Annotated[
        Reason | None,
        Meta(description="What is wrong with its file or its answers; null when nothing is", examples=[None]),
    ]
    sha256: Annotated[
        str,
        Meta(
            description="The SHA-256 of the file that was loaded",
            examples=["bc7edee1a1c7b0a1d4b7d6f9a8b3c5e2f1d0c9b8a7968574635241302f1e0d9c"],
        ),
    ]
    loaded_at: Annotated[datetime, Meta(description="When it was loaded", examples=["2026-01-01T00:00:00Z"])]
    inputs: Annotated[list[InputFeature], Meta(description="Its features, in their order")]
    missing_values: Annotated[
        Literal["allowed", "refused"], Meta(description="Whether a number may be null", examples=["refused"])
    ]
    classes: Annotated[
        Sequence[ModelClass], Meta(description="Its classes, in the order of the probabilities", examples=[[0, 1]])
    ]
    positive_class: Annotated[
        ModelClass | None,
        Meta(description="The class whose probability is the score; null with more than two classes", examples=[1]),
    ]
    decision: Annotated[DecisionRule, Meta(description="How the predicted class is chosen", examples=["label"])]
    label_doubt: Annotated[
        str | None,
        Meta(
            description="Why the label output of the graph is not used; null when it is, or there is none",
            examples=["it says 0, which is not a class"],
        ),
    ]
    decision_threshold: Annotated[
        float | None,
        Meta(
            description="The score from which the positive class is predicted; null when none is set", examples=[None]
        ),
    ]
    batching: Annotated[
        Literal["on", "off"],
        Meta(description="`on`: waiting rows are one run; `off`: each row is a run of its own", examples=["on"]),
    ]
    batching_doubt: Annotated[
        str | None,
        Meta(
            description="Why each row is a run of its own; null when it is not",
            examples=["DynamicQuantizeLinear scales by all rows of a run"],
        ),
    ]
    training_f1: Annotated[
        float | None, Meta(description="The F1 that the file says the model had in training", examples=[0.94])
    ]


class MissingVersion(msgspec.Struct):
    """A version that takes no requests."""

    name: ModelName
    version: ModelVersion
    state: Annotated[
        Literal["unloaded", "refused"],
        Meta(description="`unloaded`: the operator asked for it; `refused`: `trouble` says why", examples=["unloaded"]),
    ]
    default: Annotated[Literal[False], Meta(description="No: it takes no requests", examples=[False])]
    pinned: IsPinned
    trouble: Annotated[
        Reason | None, Meta(description="What is wrong with its file; null when nothing is", examples=[None])
    ]


class ModelList(msgspec.Struct):
    """Every known version, served or not."""

    default_model: Annotated[str, Meta(description="The model for requests that name none", examples=["car-loan"])]
    models: Annotated[list[ServedVersion], Meta(description="The versions that take requests")]
    not_serving: Annotated[list[MissingVersion], Meta(description="The versions that take none")]
    pins: Annotated[
        Mapping[str, str],
        Meta(description="The pinned version of each model that has one", examples=[{"car-loan": "1"}]),
    ]


class UnloadedVersion(msgspec.Struct):
    """A version that takes no more requests."""

    name: ModelName
    version: ModelVersion
    state: Annotated[Literal["unloaded"], Meta(description="It takes no requests", examples=["unloaded"])] = "unloaded"


class DefaultVersion(msgspec.Struct):
    """The version for requests that name the model but no version: the pinned one when it is served."""

    name: ModelName
    pinned: Annotated[str | None, Meta(description="The pinned version; null: none is", examples=["1"])]
    default_version: Annotated[
        str | None, Meta(description="The version that such requests get now; null: none is served", examples=["1"])
    ]
