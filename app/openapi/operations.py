"""Every route with what it takes and what it can answer: the table that `/openapi.json` is written from."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from app.api.model_admin import LoadBody, PinBody, UnloadBody
from app.api.predict_batch import Prediction, Predictions
from app.api.predictions import PageQuery
from app.api.quality import CountsQuery, HistoryQuery, QualityCounts, QualityQuery
from app.openapi import shapes

JSON = "application/json"

Content = type[msgspec.Struct] | str
"""What an answer holds: JSON of this shape, or something of this media type."""


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path; `problems` are the statuses answered as problem+json, beside those of any request.

    `body` is None where the document's writer has more to say of the body than a Struct can.
    """

    path: str
    id: str
    tag: Literal["predictions", "labels", "quality", "models", "operations"]
    summary: str
    answers: dict[int, tuple[Content, ...]]
    problems: tuple[int, ...] = ()
    query: type[msgspec.Struct] | None = None
    body: type[msgspec.Struct] | None = None
    method: Literal["get", "post"] = "get"


PROBLEMS_OF_ANY = (400, 408, 414, 431, 500, 503)
"""The server's protocol answers these before a route is looked up, and 500 would be a bug."""

OPERATIONS = (
    Operation(
        "/predict",
        "predict",
        "predictions",
        "Score one row or many; the 200 is sent when every row is safe",
        {200: (Prediction, Predictions)},
        problems=(404, 413, 415, 422),
        method="post",
    ),
    Operation(
        "/labels",
        "label",
        "labels",
        "Take true labels: one, many, or one per line; all or none, answered after COMMIT",
        {200: (shapes.LabelCounts,)},
        problems=(413, 415, 422),
        method="post",
    ),
    Operation(
        "/predictions",
        "listPredictions",
        "predictions",
        "Stored predictions, newest first",
        {200: (shapes.PredictionPage,)},
        problems=(422,),
        query=PageQuery,
    ),
    Operation(
        "/predictions/{prediction_id}",
        "getPrediction",
        "predictions",
        "One stored prediction with every label that came for it",
        {200: (shapes.PredictionHistory,)},
        problems=(404, 422),
    ),
    Operation(
        "/quality",
        "getQuality",
        "quality",
        "How good each version is: per window, or between since and until",
        {200: (shapes.QualityResults,)},
        problems=(422,),
        query=QualityQuery,
    ),
    Operation(
        "/quality/history",
        "getQualityHistory",
        "quality",
        "How good a version was: every minute of the last day, every hour before",
        {200: (shapes.QualityHistory,)},
        problems=(422,),
        query=HistoryQuery,
    ),
    Operation(
        "/quality/counts",
        "getQualityCounts",
        "quality",
        "What stands behind a version's numbers: its predictions over time, and by score",
        {200: (QualityCounts,)},
        problems=(404, 422),
        query=CountsQuery,
    ),
    Operation("/models", "listModels", "models", "Every version, served or not", {200: (shapes.ModelList,)}),
    Operation(
        "/models/{model}/versions/{version}",
        "getVersion",
        "models",
        "One version",
        {200: (shapes.ServedVersion, shapes.MissingVersion)},
        problems=(404,),
    ),
    Operation(
        "/models/{model}/load",
        "loadVersion",
        "models",
        "Serve a version from its file as it is now; without one, the highest in MODEL_DIR",
        {200: (shapes.ServedVersion,)},
        problems=(404, 409, 413, 415, 422),
        body=LoadBody,
        method="post",
    ),
    Operation(
        "/models/{model}/unload",
        "unloadVersion",
        "models",
        "Let a version take no more requests, until it is loaded or the server starts again",
        {200: (shapes.UnloadedVersion,)},
        problems=(404, 409, 413, 415, 422),
        body=UnloadBody,
        method="post",
    ),
    Operation(
        "/models/{model}/pin",
        "pinVersion",
        "models",
        "Make a version the default, also after a restart; null: the highest again",
        {200: (shapes.DefaultVersion,)},
        problems=(404, 413, 415, 422),
        body=PinBody,
        method="post",
    ),
    Operation("/health", "getHealth", "operations", "What is wrong, if anything", {200: (shapes.Health,)}),
    Operation("/health/live", "isLive", "operations", "Whether the process lives", {200: (shapes.Liveness,)}),
    Operation(
        "/health/ready",
        "isReady",
        "operations",
        "Whether /predict can keep its promise",
        {200: (shapes.Readiness,), 503: (shapes.Readiness,)},
    ),
    Operation(
        "/metrics",
        "getMetrics",
        "operations",
        "Metrics for Prometheus, in the format that Accept asks for",
        {200: ("text/plain", "application/openmetrics-text")},
    ),
    Operation("/openapi.json", "getOpenapi", "operations", "This document", {200: (JSON,), 304: ()}),
    Operation("/", "getModelPage", "operations", "How the model does, as a page", {200: ("text/html",), 304: ()}),
    Operation("/docs", "getDocs", "operations", "This document as a page", {200: ("text/html",), 304: ()}),
    Operation(
        "/page/{file}",
        "getPageFile",
        "operations",
        "A part of these pages",
        {200: ("text/css", "text/javascript"), 304: ()},
        problems=(404,),
    ),
)
