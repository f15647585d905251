"""One loaded model: scores rows or arrays. The only module that imports onnxruntime."""

import hashlib
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, assert_never

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from app import metrics
from app.errors import InvalidRequestError, ModelOutputError, Reason, StartupError, keep_since
from app.serving.adapted_session import AdaptedSession
from app.serving.features import Tensor, Value, group_by_lengths, make_arrays
from app.serving.formats import name_foreign_format
from app.serving.graph import GraphFacts, read_facts
from app.serving.metadata import Metadata
from app.serving.probabilities import Float32, read_probabilities
from app.serving.probe import Probe
from app.serving.refusals import find_hint, tell_reason
from app.serving.row_mixing import find_row_mixing
from app.serving.signature import Signature, decision_rule, read_signature

logger = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 64)
"""Sizes of the warm-up runs; the line through their median times predicts the time of a run."""

TOKENS_SECONDS = 0.001
"""A run on tokens is never predicted to be shorter: longer texts than the example's must not hold up the event loop."""

NO_FOLDER = "/dev/null"
"""Where onnxruntime looks for weights outside the file; by default it would read them from the working directory."""


OutputFault = Literal["model_output_not_probabilities", "model_output_unknown_class"]
"""What can be wrong with a model's output, as a code for /health and for answers."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of n rows: probabilities (n, n_classes), predicted class indices (n,), scores (n,)."""

    probabilities: Float32
    predicted: NDArray[np.intp]
    scores: Float32


class Model:
    """A classifier in memory, warmed up. Runs block; onnxruntime releases the interpreter lock during a run.

    `example` is a row that the model can score.
    """

    def __init__(self, name: str, version: str, content: bytes) -> None:
        self.name = name
        self.version = version
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.loaded_at = datetime.now(UTC)
        self._session = _open_session(content)
        self.metadata, declared, graph = _read_signature(self._session, content)
        self._session = _adapt(self._session, declared)
        self._inputs = [one.name for one in declared.inputs]
        self._outputs = [name for name in (declared.probability_output, declared.label_output) if name is not None]
        self._run_options = _make_quiet_options()
        probe = Probe(declared, graph, self.metadata, self._run)
        self.example = probe.choose_example()
        self.signature = probe.examine(self.example, find_row_mixing(content))
        self._run_options = None
        self._rule = decision_rule(self.signature)
        if self._rule != "label":
            del self._outputs[1:]
        self.trouble: Reason | None = None
        """Why rows were answered 503: the model's output for them was not probabilities of its classes."""
        self._index_of = {name: index for index, name in enumerate(self.signature.classes)}
        self._seconds_per_run, self._seconds_per_row = self._warm_up()
        self._run_seconds = metrics.INFERENCE_SECONDS.labels(name, version)  # not for a file that is refused above
        self._batch_rows = metrics.INFERENCE_BATCH_ROWS.labels(name, version)
        self._refused_rows = metrics.MODEL_OUTPUT_REFUSED.labels(name, version)

    def predict_seconds(self, rows: int) -> float:
        """Predict the seconds of one run from the warm-up's times."""
        seconds = self._seconds_per_run + rows * self._seconds_per_row
        return max(seconds, TOKENS_SECONDS) if self.signature.has_sequences else seconds

    def score_rows(self, rows: Sequence[Sequence[Value]]) -> Scores:
        """Score one batch of checked rows, values in the model's order. Blocks for one run.

        Rows with tokens take one run for each length.
        """
        inputs = self.signature.inputs
        if not self.signature.has_sequences:
            return self.score(*make_arrays(inputs, rows))
        groups = group_by_lengths(rows)
        parts = [self.score(*make_arrays(inputs, [rows[at] for at in group])) for group in groups]
        order = np.argsort([at for group in groups for at in group])
        return Scores(
            np.concatenate([part.probabilities for part in parts])[order],
            np.concatenate([part.predicted for part in parts])[order],
            np.concatenate([part.scores for part in parts])[order],
        )

    def score(self, *arrays: NDArray[Any]) -> Scores:
        """Score one batch of n rows: an array per input, in the type and shape of the signature. Blocks for one run."""
        started = time.perf_counter()
        scores = self._score(arrays)
        self._run_seconds.observe(time.perf_counter() - started)
        self._batch_rows.observe(len(arrays[0]))
        return scores

    def _score(self, arrays: Sequence[NDArray[Any]]) -> Scores:
        outputs = self._run(arrays) if self.signature.batching_doubt is None else self._run_row_by_row(arrays)
        try:
            probabilities = read_probabilities(outputs[0], self.signature)
        except KeyError as error:
            raise self.refuse_output("model_output_unknown_class", f"probabilities without class {error}") from error
        predicted = self._decide(probabilities, outputs)
        return Scores(probabilities, predicted, self._read_scores(probabilities, predicted))

    def refuse_output(self, code: OutputFault, found: str, pointers: Sequence[str] = ()) -> ModelOutputError:
        """Return the error to raise for rows at these pointers, and keep it as the model's trouble."""
        reason = Reason(code=code, detail=f"the model answers {found}: it needs a corrected version")
        self.trouble = keep_since(reason, self.trouble)
        return ModelOutputError(reason, pointers)

    def count_refused_rows(self, rows: int) -> None:
        """Count rows that were answered 503 because of the model's output."""
        self._refused_rows.inc(rows)

    def _run(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        """Run the graph once; raise InvalidRequestError when it fails, since the input is the cause."""
        try:
            feed = dict(zip(self._inputs, arrays, strict=True))
            outputs: list[Any] = self._session.run(self._outputs, feed, self._run_options)
        except Exception as error:  # onnxruntime's errors have no narrower common class
            raise InvalidRequestError("the model fails on this input") from error
        return outputs

    def _run_row_by_row(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        runs = [self._run([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
        return [
            [answer for answers in output for answer in _list_answers(answers)] for output in zip(*runs, strict=True)
        ]

    def _decide(self, probabilities: Float32, outputs: list[Any]) -> NDArray[np.intp]:
        match self._rule:
            case "threshold":
                positive = self.signature.positive_index or 0
                # In float32, as the scores are: 7 of 10 trees give 0.7, of which the nearest float32 lies below 0.7.
                is_positive = probabilities[:, positive] >= np.float32(self.signature.decision_threshold or 0.0)
                return np.where(is_positive, positive, 1 - positive)
            case "label":
                return self._find_classes(np.asarray(outputs[1]).reshape(-1).tolist(), probabilities)
            case "argmax":
                return np.asarray(probabilities.argmax(axis=1), dtype=np.intp)
            case rule:
                assert_never(rule)

    def _find_classes(self, labels: list[Any], probabilities: Float32) -> NDArray[np.intp]:
        try:
            return np.array([self._index_of[label] for label in labels], dtype=np.intp)
        except KeyError as error:
            if np.isfinite(probabilities).all():
                raise self.refuse_output("model_output_unknown_class", f"the label {error}, no class") from error
            return np.asarray(probabilities.argmax(axis=1), dtype=np.intp)  # such rows are refused for their values

    def _read_scores(self, probabilities: Float32, predicted: NDArray[np.intp]) -> Float32:
        if self.signature.positive_index is not None:
            return probabilities[:, self.signature.positive_index]
        return np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0]

    def _warm_up(self) -> tuple[float, float]:
        """Run the example and measure; return seconds per run and seconds per row."""
        medians = [statistics.median(self._time_run([self.example] * rows) for _ in range(5)) for rows in WARM_UP_ROWS]
        per_row = max(0.0, (medians[1] - medians[0]) / (WARM_UP_ROWS[1] - WARM_UP_ROWS[0]))
        return medians[0], per_row

    def _time_run(self, rows: Sequence[Sequence[Value]]) -> float:
        started = time.perf_counter()
        try:
            self._score(make_arrays(self.signature.inputs, rows))
        except InvalidRequestError as error:
            raise StartupError(f"a run on {len(rows)} rows failed: {tell_reason(error.__cause__ or error)}") from error
        return time.perf_counter() - started


def _list_answers(answers: Any) -> Any:
    """Return the answers of a run on one row as a list; a Squeeze may have removed the dimension of the rows."""
    return answers if isinstance(answers, list) else np.atleast_1d(answers)


def _make_quiet_options() -> Any:
    """Return options of runs whose failures onnxruntime does not log: made-up rows may be refused."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4
    return options


def _open_session(content: bytes) -> Any:
    """Open a session with one thread: a run of a small classifier is shorter than waking a second one."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no narrower common class
        hint = name_foreign_format(content) or find_hint(error)
        reason = f"onnxruntime cannot load it: {tell_reason(error)}"
        raise StartupError(f"{reason}; {hint}" if hint else reason) from error


def _adapt(session: Any, signature: Signature) -> Any:
    """Return the session, adapted if its outputs are not as the rest expects them."""
    is_half = any(output.type == "tensor(float16)" for output in session.get_outputs())
    if not signature.probability_columns and not is_half:
        return session
    return AdaptedSession(session, signature.probability_output, signature.probability_columns)


def _read_signature(session: Any, content: bytes) -> tuple[Metadata, Signature, GraphFacts]:
    try:
        inputs = [Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_inputs()]
        outputs = [Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_outputs()]
        metadata: Metadata = session.get_modelmeta().custom_metadata_map
        graph = read_facts(content, [output.name for output in outputs])
    except ValueError as error:  # onnxruntime checks no text: UnicodeDecodeError
        raise StartupError(f"not a readable ONNX file: {error}") from error
    return metadata, read_signature(inputs, outputs, metadata, graph), graph
