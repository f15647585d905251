"""One loaded model: float32 features in, probabilities and decisions out. The only module that knows onnxruntime."""

import hashlib
import statistics
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_never

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from app import metrics
from app.errors import StartupError
from app.serving.graph import read_classes
from app.serving.signature import Signature, Tensor, decision_rule, read_signature

WARM_UP_ROWS = (1, 64)
"""Sizes of the warm-up runs; the time of a run is predicted by the line through their medians."""

NO_FOLDER = "/dev/null"
"""Where weights outside the file are looked for: left to itself, onnxruntime reads them from the working directory."""

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Scores:
    """The answer for n rows: probabilities (n, n_classes), predicted class indices (n,), scores (n,)."""

    probabilities: Float32
    predicted: NDArray[np.intp]
    scores: Float32


class Model:
    """A classifier in memory, warmed up. Runs block; onnxruntime releases the interpreter lock meanwhile."""

    def __init__(self, name: str, version: str, content: bytes) -> None:
        self.name = name
        self.version = version
        self.sha256 = hashlib.sha256(content).hexdigest()
        self.loaded_at = datetime.now(UTC)
        self._session = _open_session(content)
        self.signature = _read_signature(self._session, content)
        self._rule = decision_rule(self.signature)
        self._index_of = {name: index for index, name in enumerate(self.signature.classes)}
        self._outputs = [self.signature.probability_output]
        if self._rule == "label" and self.signature.label_output is not None:
            self._outputs.append(self.signature.label_output)
        self._run_seconds = metrics.INFERENCE_SECONDS.labels(name, version)
        self._batch_rows = metrics.INFERENCE_BATCH_ROWS.labels(name, version)
        self._seconds_per_run, self._seconds_per_row = self._warm_up()

    def predict_seconds(self, rows: int) -> float:
        """Predict the time of one run from what the warm-up took."""
        return self._seconds_per_run + rows * self._seconds_per_row

    def score(self, features: Float32) -> Scores:
        """Score one batch: float32 (n, n_features) -> n rows. Blocks for one run."""
        started = time.perf_counter()
        scores = self._score(features)
        self._run_seconds.observe(time.perf_counter() - started)
        self._batch_rows.observe(len(features))
        return scores

    def _score(self, features: Float32) -> Scores:
        outputs = self._session.run(self._outputs, {self.signature.input_name: features})
        probabilities = self._read_probabilities(outputs[0])
        predicted = self._decide(probabilities, outputs)
        return Scores(probabilities, predicted, self._read_scores(probabilities, predicted))

    def _read_probabilities(self, output: Any) -> Float32:
        if not self.signature.probabilities_are_maps:
            return np.asarray(output, dtype=np.float32)
        classes = self.signature.classes
        return np.array([[row[name] for name in classes] for row in output], dtype=np.float32)

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

    def _warm_up(self) -> tuple[float, float]:
        """Check the answer's shape and measure; return seconds per run and seconds per row."""
        medians = []
        for rows in WARM_UP_ROWS:
            features = np.zeros((rows, len(self.signature.feature_names)), dtype=np.float32)
            medians.append(statistics.median(self._time_checked_run(features) for _ in range(5)))
        per_row = max(0.0, (medians[1] - medians[0]) / (WARM_UP_ROWS[1] - WARM_UP_ROWS[0]))
        return medians[0], per_row

    def _time_checked_run(self, features: Float32) -> float:
        started = time.perf_counter()
        try:
            scores = self._score(features)
        except KeyError as error:
            raise StartupError(f"the graph answers {error}, the classes are {list(self.signature.classes)}") from error
        except Exception as error:  # onnxruntime's errors share no class below this one
            raise StartupError(f"a run on {len(features)} rows of zeros failed: {_first_line(error)}") from error
        expected = (len(features), len(self.signature.classes))
        if scores.probabilities.shape != expected:
            raise StartupError(f"probabilities have the shape {scores.probabilities.shape}, expected is {expected}")
        if scores.predicted.shape != expected[:1]:
            raise StartupError(f"labels have the shape {scores.predicted.shape}, expected is {expected[:1]}")
        return time.perf_counter() - started


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
    except Exception as error:  # onnxruntime's errors share no class below this one
        is_split = "external" in str(error).lower() or NO_FOLDER in str(error)
        hint = "; its weights are in another file: save it as one" if is_split else ""
        raise StartupError(f"onnxruntime cannot load it: {_first_line(error)}{hint}") from error


def _read_signature(session: Any, content: bytes) -> Signature:
    try:
        graph_classes = read_classes(content)
        inputs = tuple(Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_inputs())
        outputs = tuple(Tensor(node.name, node.type, tuple(node.shape)) for node in session.get_outputs())
        metadata = session.get_modelmeta().custom_metadata_map
    except ValueError as error:  # onnxruntime checks no text: UnicodeDecodeError
        raise StartupError(f"not a readable ONNX file: {error}") from error
    return read_signature(inputs, outputs, metadata, graph_classes)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]
