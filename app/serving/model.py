"""One loaded model: scores rows or arrays. The only module that imports onnxruntime."""

import hashlib
import logging
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from app import metrics
from app.errors import StartupError
from app.serving.adapted_session import AdaptedSession
from app.serving.features import Tensor, Value, make_arrays
from app.serving.formats import name_foreign_format
from app.serving.graph import read_facts
from app.serving.metadata import Metadata
from app.serving.probabilities import Float32, read_probabilities
from app.serving.refusals import find_hint, tell_reason
from app.serving.signature import Signature, decision_rule, read_signature

logger = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 64)
"""Sizes of the warm-up runs; the line through their median times predicts the time of a run."""

NO_FOLDER = "/dev/null"
"""Where onnxruntime looks for weights outside the file; by default it would read them from the working directory."""

TOLERANCE = 0.01
"""How far outside 0 to 1 a probability may lie, and its row's sum from 1: float32 arithmetic is not exact."""


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
        self.metadata, self.signature = _read_signature(self._session, content)
        self._session = _adapt(self._session, self.signature)
        self._rule = decision_rule(self.signature)
        self._index_of = {name: index for index, name in enumerate(self.signature.classes)}
        self._inputs = [one.name for one in self.signature.inputs]
        self._outputs = [self.signature.probability_output]
        if self._rule == "label" and self.signature.label_output is not None:
            self._outputs.append(self.signature.label_output)
        self.example = self._choose_example()
        self._seconds_per_run, self._seconds_per_row = self._warm_up()
        self._run_seconds = metrics.INFERENCE_SECONDS.labels(name, version)  # not for a file that is refused above
        self._batch_rows = metrics.INFERENCE_BATCH_ROWS.labels(name, version)

    def predict_seconds(self, rows: int) -> float:
        """Predict the seconds of one run from the warm-up's times."""
        return self._seconds_per_run + rows * self._seconds_per_row

    def score_rows(self, rows: Sequence[Sequence[Value]]) -> Scores:
        """Score one batch of checked rows, values in the model's order. Blocks for one run."""
        return self.score(*make_arrays(self.signature.inputs, rows))

    def score(self, *arrays: NDArray[Any]) -> Scores:
        """Score one batch of n rows: an array per input, in the type and shape of the signature. Blocks for one run."""
        started = time.perf_counter()
        scores = self._score(arrays)
        self._run_seconds.observe(time.perf_counter() - started)
        self._batch_rows.observe(len(arrays[0]))
        return scores

    def _score(self, arrays: Sequence[NDArray[Any]]) -> Scores:
        outputs = self._run_row_by_row(arrays) if self.signature.takes_one_row else self._run(arrays)
        probabilities = read_probabilities(outputs[0], self.signature)
        predicted = self._decide(probabilities, outputs)
        return Scores(probabilities, predicted, self._read_scores(probabilities, predicted))

    def _run(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        outputs: list[Any] = self._session.run(self._outputs, dict(zip(self._inputs, arrays, strict=True)))
        return outputs

    def _run_row_by_row(self, arrays: Sequence[NDArray[Any]]) -> list[Any]:
        runs = [self._run([array[row : row + 1] for array in arrays]) for row in range(len(arrays[0]))]
        return [[answer for answers in output for answer in answers] for output in zip(*runs, strict=True)]

    def _decide(self, probabilities: Float32, outputs: list[Any]) -> NDArray[np.intp]:
        match self._rule:
            case "threshold":
                positive = self.signature.positive_index or 0
                is_positive = probabilities[:, positive] >= np.float64(self.signature.decision_threshold or 0.0)
                return np.where(is_positive, positive, 1 - positive)
            case "label":
                labels = np.asarray(outputs[1]).reshape(-1).tolist()
                return np.array([self._index_of[label] for label in labels], dtype=np.intp)
            case "argmax":
                return np.asarray(probabilities.argmax(axis=1), dtype=np.intp)
            case rule:
                assert_never(rule)

    def _read_scores(self, probabilities: Float32, predicted: NDArray[np.intp]) -> Float32:
        if self.signature.positive_index is not None:
            return probabilities[:, self.signature.positive_index]
        return np.take_along_axis(probabilities, predicted[:, None], axis=1)[:, 0]

    def _choose_example(self) -> Sequence[Value]:
        """Return the first example whose probabilities are finite, else the first that can be scored."""
        answers, errors = [], []
        for example in self.signature.examples:
            try:
                answers.append((self._try_run([example]).probabilities, example))
            except StartupError as error:
                errors.append(error)
        if not answers:
            raise errors[0]
        for probabilities, _ in answers:
            self._check_range(probabilities)
        return next((example for answer, example in answers if np.isfinite(answer).all()), answers[0][1])

    def _check_range(self, probabilities: Float32) -> None:
        low, high, total = float(probabilities.min()), float(probabilities.max()), float(probabilities.sum())
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise StartupError(
                f"{self.signature.probability_output!r} has values from {low:g} to {high:g}, which are not "
                'probabilities: if they are logits, add metadata "output": logits'
            )
        if abs(total - 1) > TOLERANCE:
            logger.warning("model %s version %s: the probabilities of a row sum to %g", self.name, self.version, total)

    def _warm_up(self) -> tuple[float, float]:
        """Run the example and measure; return seconds per run and seconds per row."""
        medians = [statistics.median(self._time_run([self.example] * rows) for _ in range(5)) for rows in WARM_UP_ROWS]
        per_row = max(0.0, (medians[1] - medians[0]) / (WARM_UP_ROWS[1] - WARM_UP_ROWS[0]))
        return medians[0], per_row

    def _time_run(self, rows: Sequence[Sequence[Value]]) -> float:
        started = time.perf_counter()
        self._try_run(rows)
        return time.perf_counter() - started

    def _try_run(self, rows: Sequence[Sequence[Value]]) -> Scores:
        """Score example rows and check the shapes of the result; raise StartupError when that fails."""
        try:
            scores = self._score(make_arrays(self.signature.inputs, rows))
        except KeyError as error:
            raise StartupError(f"the graph returns {error}, the classes are {list(self.signature.classes)}") from error
        except Exception as error:  # onnxruntime's errors have no narrower common class
            raise StartupError(
                f"a run on {len(rows)} row(s) such as {list(rows[0])} failed: {tell_reason(error)}; "
                f"{find_hint(error) or self._advise_run(len(rows))}"
            ) from error
        expected = (len(rows), len(self.signature.classes))
        if scores.probabilities.shape != expected:
            raise StartupError(f"probabilities have the shape {scores.probabilities.shape}, expected is {expected}")
        if scores.predicted.shape != expected[:1]:
            raise StartupError(f"labels have the shape {scores.predicted.shape}, expected is {expected[:1]}")
        return scores

    def _advise_run(self, rows: int) -> str:
        """Return what helps when example rows cannot be scored and the error itself does not tell."""
        if rows > 1:
            return "one such row alone can be scored: export with a free first dimension, so that rows can run together"
        if "example" in self.metadata:
            return 'the metadata "example" must be a row that the model accepts'
        return 'if the model accepts other rows, add one of them as metadata "example"'


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


def _read_signature(session: Any, content: bytes) -> tuple[Metadata, Signature]:
    try:
        inputs = [Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_inputs()]
        outputs = [Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_outputs()]
        metadata: Metadata = session.get_modelmeta().custom_metadata_map
        graph = read_facts(content, [output.name for output in outputs])
    except ValueError as error:  # onnxruntime checks no text: UnicodeDecodeError
        raise StartupError(f"not a readable ONNX file: {error}") from error
    return metadata, read_signature(inputs, outputs, metadata, graph)
