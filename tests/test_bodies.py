"""Bodies that /predict refuses: status, pointer and code of each, and that nothing is written."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tests.conftest import OpenClient
from tests.support.answers import BY_NAME, count_written, predict, read_problem
from tests.support.onnx_files import write_squares
from tests.support.refusing import Refusing, open_refusing, shared_loop

NESTED = b"[" * 100_000
DIGITS = b"9" * 5_000
MEMBERS = json.dumps(BY_NAME).encode()[1:-1]
MISSING_FOUR = [("/features", "missing_feature")] * 4


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Refusing]:
    """The application with the demo model and default settings, for all tests of this module."""
    async with open_refusing(postgres, tmp_path_factory.mktemp("data")) as opened:
        yield opened


MALFORMED = {
    "empty": b"",
    "blank": b"  ",
    "truncated": b'{"features": [1,2,3,4,5]',
    "truncated-after-a-wrong-type": b'{"features": [1,2,3,4,"x"',
    "trailing-text": b'{"features": [1,2,3,4,5]} x',
    "two-documents": b'{"features": [1,2,3,4,5]}\n{"features": [1,2,3,4,5]}',
    "trailing-comma": b'{"features": [1,2,3,4,5,]}',
    "leading-zero": b'{"features": [01,2,3,4,5]}',
    "single-quotes": b"{'features': [1,2,3,4,5]}",
    "comment": b'{"features": [1,2,3,4,5]} // one row',
    "nan": b'{"features": [NaN,2,3,4,5]}',
    "5000-digits-and-no-end": b'{"features": [%s' % (b"9" * 5000),
    "infinity": b'{"features": [Infinity,2,3,4,5]}',
    "minus-infinity": b'{"features": [-Infinity,2,3,4,5]}',
    "nan-by-name": b'{"features": {"car_value": NaN}}',
    "lone-surrogate-escaped": rb'{"features": [1,2,3,4,5], "external_id": "\ud800"}',
    "lone-surrogate-encoded": b'{"features": [1,2,3,4,5], "external_id": "\xed\xa0\x80"}',
    "latin-1": b'{"features": [1,2,3,4,5], "external_id": "\xe9"}',
    "latin-1-name": b'{"features": [1,2,3,4,5], "\xe9": 1}',
    "latin-1-name-of-a-feature": b'{"features": {"car_value": [], "\xe9": 1}}',
    "latin-1-in-a-value-of-a-feature": b'{"features": {"car_value": 1, "loan_length": ["\xe9"]}}',
    "utf-16": '{"features": [1,2,3,4,5]}'.encode("utf-16"),
    "utf-16-without-mark": '{"features": [1,2,3,4,5]}'.encode("utf-16-le"),
    "byte-order-mark": '{"features": [1,2,3,4,5]}'.encode("utf-8-sig"),
    "control-character": b'{"features": [1,2,3,4,5], "external_id": "a\x00b"}',
    "nested": NESTED,
    "nested-in-features": b'{"features": ' + NESTED + b"]" * 100_000 + b"}",
    "nested-objects": b'{"features":' * 100_000,
    "urlencoded": b"features=1&features=2",
}


@shared_loop
@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in MALFORMED.items()])
async def test_predict_answers_400_when_the_body_is_not_json(refusing: Refusing, body: bytes) -> None:
    answer = await refusing.post("/predict", body)

    assert answer.status_code == 400
    assert read_problem(answer) == []


UNACCEPTABLE: dict[str, tuple[bytes, list[tuple[str, str]]]] = {
    "null": (b"null", [("", "wrong_type")]),
    "array": (b"[[1,2,3,4,5]]", [("", "wrong_type")]),
    "text": (b'"features"', [("", "wrong_type")]),
    "no-member": (b"{}", [("", "features_or_instances")]),
    "both-members": (b'{"features": [1,2,3,4,5], "instances": [[1,2,3,4,5]]}', [("", "features_or_instances")]),
    "unknown-member": (b'{"features": [1,2,3,4,5], "feature": 1}', [("", "unknown_field")]),
    "features-null": (b'{"features": null}', [("/features", "wrong_type")]),
    "features-text": (b'{"features": "1,2,3,4,5"}', [("/features", "wrong_type")]),
    "features-rank-2": (
        b'{"features": [[1,2,3,4,5]]}',
        [("/features", "wrong_length"), ("/features/0", "wrong_type")],
    ),
    "instances-rank-1": (b'{"instances": [1,2,3,4,5]}', [("/instances/0", "wrong_type")]),
    "instances-rank-3": (
        b'{"instances": [[[1,2,3,4,5]]]}',
        [("/instances/0", "wrong_length"), ("/instances/0/0", "wrong_type")],
    ),
    "instances-object": (b'{"instances": {"0": [1,2,3,4,5]}}', [("/instances", "wrong_type")]),
    "instance-null": (b'{"instances": [[1,2,3,4,5], null]}', [("/instances/1", "wrong_type")]),
    "bool": (b'{"features": [1,true,3,4,5]}', [("/features/1", "wrong_type")]),
    "bool-by-name": (b'{"features": {"loan_length": false}}', [*MISSING_FOUR, ("/features/loan_length", "wrong_type")]),
    "text-value": (b'{"features": [1,2,"3",4,5]}', [("/features/2", "wrong_type")]),
    "text-value-in-a-batch": (b'{"instances": [[1,2,3,4,5], [1,2,3,4,"5"]]}', [("/instances/1/4", "wrong_type")]),
    "text-value-by-name-in-a-batch": (
        b'{"instances": [{"car_value": 1}, {"car_value": 1, "loan_length": "2"}]}',
        [
            *[("/instances/0", "missing_feature")] * 4,
            *[("/instances/1", "missing_feature")] * 3,
            ("/instances/1/loan_length", "wrong_type"),
        ],
    ),
    "text-value-and-null": (
        b'{"features": [1,null,"3",false,5]}',
        [("/features/1", "missing_value"), ("/features/2", "wrong_type"), ("/features/3", "wrong_type")],
    ),
    "null-value": (b'{"features": [1,2,3,4,null]}', [("/features/4", "missing_value")]),
    "null-value-by-name": (
        b'{"features": {' + MEMBERS.replace(b"1.5", b"null") + b"}}",
        [("/features/car_value", "missing_value")],
    ),
    "fault-behind-a-repeated-name": (
        b'{"features": {"car_value": []}, "features": [1,2,3,4,5]}',
        [("", "repeated_name")],
    ),
    "fault-behind-a-repeated-name-in-a-batch": (
        b'{"instances": [[1], {"car_value": []}], "instances": []}',
        [("", "repeated_name")],
    ),
    "1e39": (b'{"features": [1,2,3,4,1e39]}', [("/features/4", "out_of_range")]),
    "minus-1e39": (b'{"features": [1,2,3,4,-1e39]}', [("/features/4", "out_of_range")]),
    "1e400": (b'{"features": [1,2,3,4,1e400]}', [("/features/4", "out_of_range")]),
    "10**400": (b'{"features": [1,2,3,4,1%s]}' % (b"0" * 400), [("/features/4", "out_of_range")]),
    "5000-digits": (b'{"features": [1,2,3,4,%s]}' % DIGITS, [("/features/4", "out_of_range")]),
    "1e39-by-name": (
        b'{"features": {' + MEMBERS.replace(b"1.5", b"1e39") + b"}}",
        [("/features/car_value", "out_of_range")],
    ),
    "1e400-by-name": (b'{"features": {"car_value": 1e400}}', [("/features/car_value", "out_of_range")]),
    "1e400-by-name-behind-another": (
        b'{"instances": [{"car_value": 1, "loan_length": 1e400}]}',
        [("/instances/0/loan_length", "out_of_range")],
    ),
    "10**400-by-name": (
        b'{"features": {"car_value": 1%s}}' % (b"0" * 400),
        [*MISSING_FOUR, ("/features/car_value", "out_of_range")],
    ),
    "5000-digits-by-name": (b'{"features": {"car_value": %s}}' % DIGITS, [("/features/car_value", "out_of_range")]),
    "value-by-name-before-1e400": (
        b'{"features": {"car_value": [1], "loan_length": 2}, "version": 1e400}',
        [("/version", "out_of_range")],
    ),
    "5000-digits-version": (b'{"features": [1,2,3,4,5], "version": %s}' % DIGITS, [("/version", "out_of_range")]),
    "too-narrow": (b'{"features": [1,2,3,4]}', [("/features", "wrong_length")]),
    "too-wide": (b'{"features": [1,2,3,4,5,6]}', [("/features", "wrong_length")]),
    "no-value": (b'{"features": []}', [("/features", "wrong_length")]),
    "ragged": (b'{"instances": [[1,2,3,4,5], [1,2]]}', [("/instances/1", "wrong_length")]),
    "same-wrong-width": (b'{"instances": [[1,2], [1,2]]}', [(f"/instances/{row}", "wrong_length") for row in (0, 1)]),
    "unknown-name": (b'{"features": {' + MEMBERS + b', "a/b~c": 1}}', [("/features/a~1b~0c", "unknown_feature")]),
    "missing-names": (b'{"features": {"car_value": 1}}', MISSING_FOUR),
    "misspelt-name": (
        b'{"features": {' + MEMBERS.replace(b"car_value", b"Car_Value") + b"}}",
        [("/features", "missing_feature"), ("/features/Car_Value", "unknown_feature")],
    ),
    "empty-object": (b'{"features": {}}', [*MISSING_FOUR, ("/features", "missing_feature")]),
    "empty-batch": (b'{"instances": []}', [("/instances", "batch_size")]),
    "version-fraction": (b'{"features": [1,2,3,4,5], "version": 1.5}', [("/version", "wrong_type")]),
    "version-bool": (b'{"features": [1,2,3,4,5], "version": true}', [("/version", "wrong_type")]),
    "model-number": (b'{"features": [1,2,3,4,5], "model": 1}', [("/model", "wrong_type")]),
    "external-id-number": (b'{"features": [1,2,3,4,5], "external_id": 17}', [("/external_id", "wrong_type")]),
    "external-id-nul": (rb'{"features": [1,2,3,4,5], "external_id": "a\u0000b"}', [("/external_id", "not_storable")]),
    "external-id-201": (
        b'{"features": [1,2,3,4,5], "external_id": "%s"}' % (b"x" * 201),
        [("/external_id", "out_of_range")],
    ),
    "external-id-for-many": (
        b'{"instances": [[1,2,3,4,5]], "external_id": "a"}',
        [("/external_id", "unknown_field")],
    ),
    "external-ids-for-one": (
        b'{"features": [1,2,3,4,5], "external_ids": ["a"]}',
        [("/external_ids", "unknown_field")],
    ),
    "external-ids-too-few": (b'{"instances": [[1,2,3,4,5]], "external_ids": []}', [("/external_ids", "wrong_length")]),
    "external-ids-nul": (
        rb'{"instances": [[1,2,3,4,5], [1,2,3,4,5]], "external_ids": ["a", "\u0000"]}',
        [("/external_ids/1", "not_storable")],
    ),
    "external-ids-number": (
        b'{"instances": [[1,2,3,4,5]], "external_ids": [17]}',
        [("/external_ids/0", "wrong_type")],
    ),
    "faults-of-several-rows": (
        b'{"instances": [[1,2,3,4,1e39], [1], {"car_value": 1}]}',
        [
            ("/instances/0/4", "out_of_range"),
            ("/instances/1", "wrong_length"),
            *[("/instances/2", "missing_feature")] * 4,
        ],
    ),
}


@shared_loop
@pytest.mark.parametrize(("body", "errors"), [pytest.param(*case, id=name) for name, case in UNACCEPTABLE.items()])
async def test_predict_answers_422_and_points_at_the_fault_when_json_is_unacceptable(
    refusing: Refusing, body: bytes, errors: list[tuple[str, str]]
) -> None:
    answer = await refusing.post("/predict", body)

    assert answer.status_code == 422
    assert read_problem(answer) == errors


@shared_loop
@pytest.mark.parametrize(
    "body",
    [
        b'{"features": {"car_value": 9, ' + MEMBERS + b"}}",
        b'{"instances": [{"car_value": 9, ' + MEMBERS + b"}]}",
        b'{"features": [9,9,9,9,9], "features": [1,2,3,4,5]}',
        b'{"features": [1,2,3,4,5], "external_id": "a", "external_id": "b"}',
    ],
    ids=["feature", "feature-in-a-batch", "features", "external-id"],
)
async def test_predict_is_refused_when_a_name_stands_twice(refusing: Refusing, body: bytes) -> None:
    answer = await refusing.post("/predict", body)

    assert answer.status_code in (400, 422)
    read_problem(answer)


@shared_loop
@pytest.mark.parametrize(
    "asked",
    [{"model": "other"}, {"version": "2"}, {"version": 2}, {"version": -1}, {"version": ""}, {"model": ""}],
    ids=["model", "version", "version-number", "version-negative", "version-empty", "model-empty"],
)
async def test_predict_answers_404_when_the_version_is_not_loaded(refusing: Refusing, asked: dict[str, object]) -> None:
    answer = await refusing.post("/predict", {"features": [1, 2, 3, 4, 5], **asked})

    assert answer.status_code == 404
    assert read_problem(answer) == []


@shared_loop
@pytest.mark.parametrize(
    "body",
    [
        {"features": ["s3cret", 2, 3, 4, 5]},
        {"features": {"car_value": "s3cret"}},
        {"features": [1, 2, 3, 4, 5], "external_id": "s3cret\0"},
        {"features": [1, 2, 3, 4, 5], "external_id": ["s3cret"]},
        {"features": [1, 2, 3, 4, 5], "model": "s3cret"},
        {"features": [1, 2, 3, 4, 5], "version": "s3cret"},
        {"features": [7.77e38, 2, 3, 4, 5]},
        {"instances": [[7.77e38, None, 3, 4, 5]]},
    ],
    ids=["text", "text-by-name", "external-id", "external-id-array", "model", "version", "number", "number-and-null"],
)
async def test_predict_does_not_repeat_the_value_when_refused(refusing: Refusing, body: dict[str, object]) -> None:
    answer = await refusing.post("/predict", body)

    assert answer.status_code in (404, 422)
    assert "s3cret" not in answer.text
    assert "7.77" not in answer.text


@shared_loop
async def test_predict_lists_the_first_faults_when_there_are_thousands(refusing: Refusing) -> None:
    answer = await refusing.post("/predict", {"instances": [[1]] * 5_000})

    assert read_problem(answer) == [(f"/instances/{row}", "wrong_length") for row in range(20)]
    assert "4999 more" in answer.json()["detail"]


async def test_predict_refuses_only_a_batch_over_the_limit_when_max_batch_rows_is_set(
    open_client: OpenClient, connection: asyncpg.Connection
) -> None:
    async with open_client(MAX_BATCH_ROWS="3") as client:
        answer = await client.post("/predict", json={"instances": [[1, 2, 3, 4, 5]] * 4})
        await predict(client, instances=[[1, 2, 3, 4, 5]] * 3)

    assert answer.status_code == 422
    assert read_problem(answer) == [("/instances", "batch_size")]
    assert await count_written(connection) == 3


async def test_predict_answers_422_when_the_models_output_is_not_finite(
    open_client: OpenClient, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    write_squares(tmp_path, "squares", "1", ["no", "yes"])

    async with open_client(MODEL_DIR=str(tmp_path)) as client:
        answer = await client.post("/predict", json={"instances": [[0.5, 0.5], [0.5, 1e30]]})

    assert answer.status_code == 422
    assert read_problem(answer) == [("/instances/1", "non_finite_output")]
    assert await count_written(connection) == 0
