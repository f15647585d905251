"""Fields that many requests and answers have, each with its description and an example."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from msgspec import Meta

from app.serving.signature import ClassName

ModelName = Annotated[
    str, Meta(description="The model's name, which is the name of its folder in MODEL_DIR", examples=["car-loan"])
]
ModelVersion = Annotated[
    str, Meta(description="The version's name, which is the name of its folder below the model's", examples=["1"])
]
MODEL_PATH = {"model": ModelName, "version": ModelVersion}
"""The parameters of a path that names a model, or a version of it."""

PredictionId = Annotated[
    UUID,
    Meta(
        description="The row's id, which /predict answered: a UUIDv7 of the server's clock",
        examples=["01a2082d-7b3c-7000-8000-2f6d5a1c9e04"],
    ),
]
ModelClass = Annotated[
    ClassName, Meta(description="A class of the model, in the type that the model gives it", examples=[1])
]
Role = Annotated[
    Literal["live", "shadow"],
    Meta(description="`live`: the version answered the requests; `shadow`: it only watched them", examples=["live"]),
]
WindowName = Annotated[str, Meta(description="A trailing window, as QUALITY_WINDOWS names it", examples=["1h"])]
Instant = Annotated[datetime, Meta(tz=True, examples=["2026-01-01T00:00:00Z"])]
Since = Annotated[Instant, Meta(description="Start of the period, inclusive")]
Until = Annotated[
    Instant,
    Meta(description="End of the period, exclusive", examples=["2026-01-01T01:00:00Z"]),
]
