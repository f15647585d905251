"""Join weights that are kept in files beside an ONNX file into the one file that the server reads.

PyTorch's exporter and `mlflow.onnx.save_model` put large tensors into files of their own.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from app.errors import StartupError
from app.serving.onnx_fields import (
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_GRAPHS,
    ATTRIBUTE_TENSOR,
    ATTRIBUTE_TENSORS,
    ENTRY_KEY,
    ENTRY_VALUE,
    FUNCTION_NODE,
    GRAPH_INITIALIZER,
    GRAPH_NODE,
    GRAPH_SPARSE_INITIALIZER,
    MODEL_FUNCTION,
    MODEL_GRAPH,
    NODE_ATTRIBUTE,
    SPARSE_INDICES,
    SPARSE_VALUES,
    TENSOR_DATA_LOCATION,
    TENSOR_EXTERNAL_DATA,
    TENSOR_RAW_DATA,
)
from app.serving.protobuf import encode_field, read_fields, read_integers, read_messages, read_texts

EXTERNAL = 1

Change = Callable[[memoryview], bytes]


def join_weights(model: bytes, folder: Path) -> bytes:
    """Return the model with all its weights, read from files in `folder`; the same bytes if it has them already.

    Raises ValueError when `model` is not a protocol buffer, StartupError when a file of weights cannot be read.
    """
    joiner = _Joiner(folder.resolve())
    return _change_fields(memoryview(model), {MODEL_GRAPH: joiner.join_graph, MODEL_FUNCTION: joiner.join_function})


class _Joiner:
    """Puts the external data of every tensor into the tensor."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._graph_changes: Mapping[int, Change] = {
            GRAPH_NODE: self._join_node,
            GRAPH_INITIALIZER: self._join_tensor,
            GRAPH_SPARSE_INITIALIZER: self._join_sparse,
        }
        self._attribute_changes: Mapping[int, Change] = {
            ATTRIBUTE_TENSOR: self._join_tensor,
            ATTRIBUTE_TENSORS: self._join_tensor,
            ATTRIBUTE_GRAPH: self.join_graph,
            ATTRIBUTE_GRAPHS: self.join_graph,
        }

    def join_graph(self, graph: memoryview) -> bytes:
        """Join the weights of a graph and of the graphs inside it."""
        return _change_fields(graph, self._graph_changes)

    def join_function(self, function: memoryview) -> bytes:
        """Join the weights of a function's nodes."""
        return _change_fields(function, {FUNCTION_NODE: self._join_node})

    def _join_node(self, node: memoryview) -> bytes:
        return _change_fields(node, {NODE_ATTRIBUTE: self._join_attribute})

    def _join_attribute(self, attribute: memoryview) -> bytes:
        return _change_fields(attribute, self._attribute_changes)

    def _join_sparse(self, sparse: memoryview) -> bytes:
        return _change_fields(sparse, {SPARSE_VALUES: self._join_tensor, SPARSE_INDICES: self._join_tensor})

    def _join_tensor(self, tensor: memoryview) -> bytes:
        if EXTERNAL not in read_integers(tensor, TENSOR_DATA_LOCATION):
            return bytes(tensor)
        entries = {
            b"".join(read_texts(entry, ENTRY_KEY)).decode(): b"".join(read_texts(entry, ENTRY_VALUE)).decode()
            for entry in read_messages(tensor, TENSOR_EXTERNAL_DATA)
        }
        kept, start = [], 0
        for number, _, end in read_fields(tensor):
            if number not in (TENSOR_EXTERNAL_DATA, TENSOR_DATA_LOCATION):
                kept.append(tensor[start:end])
            start = end
        return b"".join([*kept, encode_field(TENSOR_RAW_DATA, self._read(entries))])

    def _read(self, entries: Mapping[str, str]) -> bytes:
        """Read a tensor's data; a file outside the folder is refused, as onnxruntime refuses it."""
        location, offset = entries.get("location", ""), int(entries.get("offset") or 0)
        file = (self._folder / location).resolve()
        if not file.is_relative_to(self._folder):
            raise StartupError(f"its weights are in {location!r}, which is outside the folder of the model")
        if not file.is_file():
            raise StartupError(f"its weights are in {location!r}, which is not there")
        try:
            with file.open("rb") as opened:
                opened.seek(offset)
                data = opened.read(int(entries["length"]) if entries.get("length") else -1)
        except OSError as error:
            raise StartupError(f"its weights are in {location!r}, which cannot be read: {error.strerror}") from error
        if entries.get("length") and len(data) != int(entries["length"]):
            raise StartupError(f"its weights are in {location!r}, which is truncated")
        return data


def _change_fields(message: memoryview, changes: Mapping[int, Change]) -> bytes:
    """Return a message with some of its fields changed, the others byte for byte."""
    parts, start = [], 0
    for number, value, end in read_fields(message):
        part: bytes | memoryview = message[start:end]
        if number in changes and isinstance(value, memoryview):
            changed = changes[number](value)
            part = part if changed == value else encode_field(number, changed)
        parts.append(part)
        start = end
    return b"".join(parts)
