"""Whatever is sent to /predict and /labels: 200 or a well-formed 4xx, never an error of the server."""

import json
from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import OpenClient
from tests.support.answers import BY_NAME, FEATURES, JSON_HEADERS, NDJSON_HEADERS, read_problem
from tests.support.family_models import make_mixture
from tests.support.onnx_models import write_model
from tests.support.strategies import ANY_JSON, NUMBERS, SCALARS, TEXTS, moderate, spell, spoilt

ROWS = st.one_of(
    st.lists(NUMBERS, min_size=4, max_size=6),
    st.fixed_dictionaries(dict.fromkeys(BY_NAME, NUMBERS)),
    st.just(list(FEATURES)),
    st.just(BY_NAME),
    st.dictionaries(st.sampled_from([*BY_NAME, "other"]), NUMBERS | ANY_JSON),
    ANY_JSON,
)
PREDICT_BODIES = st.fixed_dictionaries(
    {},
    optional={
        "features": ROWS,
        "instances": st.lists(ROWS, max_size=4) | ANY_JSON,
        "model": st.just("car-loan") | SCALARS,
        "version": st.sampled_from(["1", 1]) | SCALARS,
        "external_id": TEXTS | ANY_JSON,
        "external_ids": st.lists(st.none() | TEXTS, max_size=4) | ANY_JSON,
    },
)
INSTANTS = st.datetimes(
    timezones=st.sampled_from([None, *(timezone(timedelta(hours=hours)) for hours in (-14, 0, 14))])
).map(datetime.isoformat)
LABELS = st.fixed_dictionaries(
    {},
    optional={
        "prediction_id": st.uuids().map(str) | SCALARS,
        "external_id": TEXTS | SCALARS,
        "label": st.sampled_from([0, 1, "1", None]) | ANY_JSON,
        "observed_at": INSTANTS | SCALARS,
    },
)


async def check(client: httpx2.AsyncClient, path: str, body: bytes, headers: dict[str, str] = JSON_HEADERS) -> None:
    """Send a body; anything but 200 must be a problem of the client's making."""
    answer = await client.post(path, content=body, headers=headers)
    if answer.status_code != 200:
        assert answer.status_code in (400, 404, 422), answer.text
        read_problem(answer)


@moderate
@given(body=ANY_JSON)
async def test_predict_is_200_or_4xx_when_the_body_is_any_json(client: httpx2.AsyncClient, body: object) -> None:
    await check(client, "/predict", spell(body))


@moderate
@given(body=PREDICT_BODIES)
async def test_predict_is_200_or_4xx_when_members_are_arbitrary(client: httpx2.AsyncClient, body: object) -> None:
    await check(client, "/predict", spell(body))


@moderate
@given(
    body=spoilt(json.dumps({"features": BY_NAME, "external_id": "é\u20ac", "version": 1}).encode())
    | spoilt(json.dumps({"instances": [FEATURES, BY_NAME], "external_ids": ["a", None]}, ensure_ascii=False).encode())
)
async def test_predict_is_200_or_4xx_when_a_valid_body_is_spoilt(client: httpx2.AsyncClient, body: bytes) -> None:
    await check(client, "/predict", body)


MIXED_VALUES = st.one_of(NUMBERS, st.booleans(), st.none(), TEXTS, st.text(max_size=5))
MIXED_ROWS = st.one_of(
    st.tuples(NUMBERS, NUMBERS, st.booleans(), TEXTS).map(list),
    st.lists(MIXED_VALUES, min_size=3, max_size=5),
    st.fixed_dictionaries(dict.fromkeys(make_mixture().names, MIXED_VALUES), optional={"other": MIXED_VALUES}),
)


@pytest.fixture
async def mixed(open_client: OpenClient, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of a model of numbers, which may be missing, a boolean and a text."""
    write_model(tmp_path / "models", make_mixture(missing_values="allowed").content)
    async with open_client(MODEL_DIR=str(tmp_path / "models")) as opened:
        yield opened


@moderate
@given(rows=st.lists(MIXED_ROWS, min_size=1, max_size=4))
async def test_predict_is_200_or_4xx_when_features_are_of_every_kind(
    mixed: httpx2.AsyncClient, rows: list[object]
) -> None:
    await check(mixed, "/predict", spell({"instances": rows}))


@moderate
@given(body=LABELS | st.fixed_dictionaries({"labels": st.lists(LABELS, max_size=4) | ANY_JSON}))
async def test_labels_is_200_or_4xx_when_members_are_arbitrary(client: httpx2.AsyncClient, body: object) -> None:
    await check(client, "/labels", spell(body))


@moderate
@given(body=spoilt(b'{"external_id": "a", "label": 1, "observed_at": "2026-01-01T00:00:00Z"}\n' * 2))
async def test_labels_is_200_or_4xx_when_valid_lines_are_spoilt(client: httpx2.AsyncClient, body: bytes) -> None:
    await check(client, "/labels", body, NDJSON_HEADERS)
