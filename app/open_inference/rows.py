"""Turn tensors of the Open Inference Protocol into feature rows, and predictions into tensors."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from app.api.predict_batch import Prediction
from app.api.predict_rows import describe_row_limit, read_features
from app.errors import MalformedBodyError
from app.open_inference.tensors import NamedTensor
from app.open_inference.wire import InferRequest
from app.prediction_log.record import is_storable
from app.serving.features import Value
from app.serving.signature import Signature

INTEGER_DATATYPES = frozenset(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
NUMBER_DATATYPES = INTEGER_DATATYPES | {"FP16", "BF16", "FP32", "FP64"}

ACCEPTED: Mapping[str, frozenset[str]] = {
    "FP32": NUMBER_DATATYPES,
    "FP64": NUMBER_DATATYPES,
    "FP16": NUMBER_DATATYPES,
    "INT64": INTEGER_DATATYPES,
    "INT32": INTEGER_DATATYPES,
    "BOOL": frozenset({"BOOL"}),
    "BYTES": frozenset({"BYTES"}),
}
"""By the datatype that a model takes: the datatypes that may be sent. /predict takes an integer for a float, too."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of a model: rows of `width` elements, -1 for any number of tokens.

    `is_vector`: the shape is [rows], the width 1.
    """

    name: str
    datatype: str
    width: int
    is_vector: bool

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Its shape without the rows."""
        return () if self.is_vector else (self.width,)


def list_inputs(signature: Signature) -> list[TensorSpec]:
    """Return what the model takes, in the order of its features."""
    return [
        TensorSpec(one.name, one.type.datatype, -1 if one.is_sequence else one.stop - one.start, one.is_vector)
        for one in signature.inputs
    ]


def list_outputs(signature: Signature) -> list[TensorSpec]:
    """Return the outputs of an answer: label and probabilities; the label also if the graph has no such output."""
    probabilities = _name_probabilities(signature)
    datatype = "INT64" if isinstance(signature.classes[0], int) else "BYTES"
    name = signature.label_output or ("predicted_label" if probabilities == "label" else "label")
    outputs = [
        TensorSpec(name, datatype, 1, is_vector=True),
        TensorSpec(probabilities, "FP32", len(signature.classes), is_vector=False),
    ]
    return outputs if signature.label_output else outputs[::-1]


def _name_probabilities(signature: Signature) -> str:
    """Return the name of the output with the probabilities: the graph's, unless that promises logits."""
    name = signature.probability_output
    if not signature.are_logits and "logit" not in name.lower():
        return name
    return "class_probabilities" if signature.label_output == "probabilities" else "probabilities"


def read_feature_rows(request: InferRequest, signature: Signature, limit: int) -> list[list[Value]]:
    """Return the features of each row in the model's order; raise 400 or 422 for tensors that it does not take."""
    specs = list_inputs(signature)
    tensors = {tensor.name: tensor for tensor in request.inputs}
    names = [spec.name for spec in specs]
    if len(request.inputs) != len(names) or tensors.keys() != set(names):
        raise MalformedBodyError(f"the model takes these inputs, each once: {', '.join(names)}")
    arrays = [_read_matrix(tensors[spec.name], spec) for spec in specs]
    count = len(arrays[0])
    if any(len(array) != count for array in arrays):
        raise MalformedBodyError("the inputs have different numbers of rows")
    if count > limit:
        raise MalformedBodyError(f"{count} rows, allowed are up to {limit}")
    if count > signature.max_rows:
        raise MalformedBodyError(describe_row_limit(count, signature))
    parts = [
        [[tokens] for tokens in array.tolist()] if spec.width == -1 else _list_values(array)
        for spec, array in zip(specs, arrays, strict=True)
    ]
    rows = [list(chain.from_iterable(row)) for row in zip(*parts, strict=True)]
    return read_features(rows, signature, lambda: [f"/rows/{row}" for row in range(count)])


def _read_matrix(tensor: NamedTensor, spec: TensorSpec) -> NDArray[Any]:
    """Return the tensor as (rows, width): a column may come as [N] or [N, 1]."""
    if tensor.datatype not in ACCEPTED[spec.datatype]:
        raise MalformedBodyError(f"input {spec.name!r}: {tensor.datatype} is sent, the model takes {spec.datatype}")
    shape = tensor.array.shape
    if spec.width == -1 and len(shape) == 2:
        return tensor.array
    if shape[1:] != (spec.width,) and not (spec.width == 1 and len(shape) == 1):
        expected = [-1, *spec.row_shape]
        raise MalformedBodyError(f"input {spec.name!r}: the shape is {list(shape)}, the model takes {expected}")
    return tensor.array.reshape(-1, spec.width)


def _list_values(array: NDArray[Any]) -> list[list[Any]]:
    """Return rows of values as JSON has them: NaN, a missing number, is None."""
    if array.dtype.kind == "f" and (missing := np.isnan(array)).any():
        array = array.astype(object)
        array[missing] = None
    values: list[list[Any]] = array.tolist()
    return values


EXTERNAL_IDS = msgspec.json.Decoder(list[str | None])


def read_external_ids(parameters: Mapping[str, Any], count: int) -> Sequence[str | None]:
    """Return each row's external id: `external_id` for one row, or `external_ids`, a JSON array as text."""
    if "external_id" in parameters:
        ids = [parameters["external_id"]]
    else:
        ids = _decode_ids(parameters["external_ids"]) if "external_ids" in parameters else [None] * count
    if len(ids) != count:
        raise MalformedBodyError(f"{len(ids)} external ids for {count} rows")
    if not all(one is None or (isinstance(one, str) and is_storable(one)) for one in ids):
        raise MalformedBodyError("an external id is a text of up to 200 characters without NUL")
    return ids


def _decode_ids(value: object) -> list[str | None]:
    if isinstance(value, str):
        try:
            return EXTERNAL_IDS.decode(value)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            pass
    raise MalformedBodyError("parameter external_ids must be a string that holds a JSON array of strings")


def make_outputs(predictions: Sequence[Prediction], signature: Signature) -> dict[str, NamedTensor]:
    """Return the output tensors of these rows by name."""
    is_integer = isinstance(signature.classes[0], int)
    labels = np.array([one.prediction for one in predictions], dtype=np.int64 if is_integer else object)
    chances = np.array([list(one.probabilities.values()) for one in predictions], dtype=np.float32)
    arrays = {_name_probabilities(signature): chances}
    return {
        spec.name: NamedTensor(spec.name, spec.datatype, arrays.get(spec.name, labels))
        for spec in list_outputs(signature)
    }
