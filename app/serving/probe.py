"""Try a model at load on made-up rows, and find what its declarations do not tell.

Do the rows of a run depend on each other? Are its values probabilities? Does its label name its classes? Every wrong
answer of this kind would be a 200.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from app.errors import InvalidRequestError, StartupError
from app.serving.features import Value, make_arrays
from app.serving.graph import GraphFacts
from app.serving.label_check import doubt_label
from app.serving.metadata import Metadata
from app.serving.probabilities import (
    Float32,
    are_probabilities,
    find_improper_rows,
    read_values,
    turn_into_probabilities,
)
from app.serving.probe_rows import RowMaker
from app.serving.refusals import find_hint, tell_reason
from app.serving.signature import Signature, decision_rule

RowValues = Sequence[Sequence[Value]]

Run = Callable[[Sequence[NDArray[Any]]], list[Any]]
"""Runs the graph once and returns the probability output, and the label output if there is one.

Raises InvalidRequestError, from onnxruntime's error, when the graph refuses the rows.
"""

SAME_ANSWER = 1e-3
"""How far a row's probabilities alone may lie from those in a batch: arithmetic rounds differently there."""

SEARCH_ROUNDS, SEARCH_ROWS = 8, 64
"""How long to search for rows of classes that no row had: milliseconds for most models."""

TRIAL_SECONDS, MIN_ROWS = 5.0, 6
"""A model that takes longer for a row than this for all rows is tried on fewer, and no class is searched for."""


@dataclass(frozen=True, slots=True)
class Answers:
    """What rows were answered: `values` as the graph gives them, and the labels of each row, if there is an output."""

    rows: list[Sequence[Value]]
    values: list[NDArray[Any]]
    labels: list[list[Any]]

    def __add__(self, other: "Answers") -> "Answers":
        return Answers(self.rows + other.rows, self.values + other.values, self.labels + other.labels)


class Probe:
    """Tries one model. `signature` is what is known so far; `examine` returns it with what was found."""

    def __init__(self, signature: Signature, graph: GraphFacts, metadata: Metadata, run: Run) -> None:
        self.signature = signature
        self._graph = graph
        self._metadata = metadata
        self._run_arrays = run

    def choose_example(self) -> Sequence[Value]:
        """Return the first example whose probabilities are finite, else the first that can be scored."""
        answers: list[tuple[Float32, Sequence[Value]]] = []
        errors: list[InvalidRequestError] = []
        for example in self.signature.examples:
            try:
                answers.append((self._read(self._score_together([example])), example))
            except InvalidRequestError as error:
                errors.append(error)
        if not answers:
            first = errors[0].__cause__ or errors[0]
            raise StartupError(
                f"a run on 1 row(s) such as {list(self.signature.examples[0])} failed: {tell_reason(first)}; "
                f"{find_hint(first) or self._advise_run()}"
            )
        return next((example for answer, example in answers if np.isfinite(answer).all()), answers[0][1])

    def _advise_run(self) -> str:
        """Return what helps when no example row can be scored and the error itself does not tell."""
        if "example" in self._metadata:
            return 'the metadata "example" must be a row that the model accepts'
        return 'if the model accepts other rows, add one of them as metadata "example"'

    def examine(self, example: Sequence[Value], row_mixing: str | None) -> Signature:
        """Try the model on rows around the example. Raises StartupError when its values are no probabilities."""
        maker = RowMaker(self.signature, self._graph.categories, example)
        started = time.perf_counter()
        first = self._score_alone([example])
        limit = max(MIN_ROWS, int(TRIAL_SECONDS / (time.perf_counter() - started)))
        usual, extreme = self._score_alone(maker.make_usual()[:limit]), self._score_alone(maker.make_extreme()[:limit])
        tried = first + usual + extreme
        self._refuse_random(tried)
        self._examine_batching(usual, extreme, row_mixing)
        self._examine_logits(tried)
        self._refuse_improper(tried)
        if decision_rule(self.signature) == "label":
            if limit > SEARCH_ROUNDS * SEARCH_ROWS:
                tried = self._reach_classes(maker, tried)
                self._refuse_improper(tried)
            doubt = doubt_label(self.signature, self._read(tried), tried.labels)
            self.signature = replace(self.signature, label_doubt=doubt)
        return self.signature

    def _run(self, rows: RowValues) -> list[Any]:
        return self._run_arrays(make_arrays(self.signature.inputs, rows))

    def _score(self, rows: RowValues) -> Answers:
        """Score rows in one run, or one by one when each is a run of its own; leave out those that are refused."""
        if self.signature.batching_doubt is None:
            try:
                return self._score_together(rows)
            except InvalidRequestError:  # then all but the rows at fault are scored
                pass
        return self._score_alone(rows)

    def _score_together(self, rows: RowValues) -> Answers:
        outputs = self._run(rows)
        values = self._read_values(outputs[0], len(rows))
        return Answers(list(rows), list(values), _split_labels(outputs[1:], len(rows)))

    def _score_alone(self, rows: RowValues) -> Answers:
        answers = Answers([], [], [])
        for row in rows:
            try:
                answers += self._score_together([row])
            except InvalidRequestError:
                continue
        return answers

    def _read_values(self, output: Any, count: int) -> NDArray[Any]:
        """Read a run's values and check their shape."""
        classes = list(self.signature.classes)
        try:
            values = read_values(output, self.signature)
        except KeyError as error:
            raise StartupError(f"{self.signature.probability_output!r} lacks class {error}, of {classes}") from error
        widths = (1, 2) if len(classes) == 2 else (len(classes),)
        if len(values) != count or values.shape[1] not in widths:
            expected = (count, len(classes))
            raise StartupError(f"probabilities have the shape {values.shape}, expected is {expected}")
        return values

    def _read(self, answers: Answers) -> Float32:
        """Return the probabilities of all answers."""
        return turn_into_probabilities(np.array(answers.values), self.signature)

    def _refuse_random(self, tried: Answers) -> None:
        """Refuse a model that answers the same rows otherwise when they are scored again.

        Scoring rows one by one would not help: the answers are random, or depend on the rows of earlier requests.
        """
        again = self._score_alone(tried.rows[:MIN_ROWS])
        if not np.array_equal(again.values, tried.values[:MIN_ROWS], equal_nan=True):
            raise StartupError(
                "the model answers the same row differently when it is scored again: export it for inference (PyTorch: "
                "model.eval() before the export), without random operators"
            )

    def _examine_batching(self, usual: Answers, extreme: Answers, row_mixing: str | None) -> None:
        """Have each row run by itself when its answer depends on the rows that are scored with it."""
        if self.signature.batching_doubt is not None or self._metadata.get("batching") == "on":
            return
        doubt = row_mixing or self._compare_batches(usual, extreme)
        if doubt is not None:
            self.signature = replace(self.signature, batching_doubt=doubt)

    def _compare_batches(self, usual: Answers, extreme: Answers) -> str | None:
        """Compare rows alone, beside equal rows, and beside extreme rows; return how they differ, None if not."""
        count, others = len(usual.rows), extreme.rows or usual.rows[::-1]
        if not count:
            return None
        try:
            calm = self._score_together([*usual.rows, *[usual.rows[0]] * len(others)])
            mixed = self._score_together([*usual.rows, *others])
        except InvalidRequestError as error:
            return f"a run of several rows fails: {tell_reason(error.__cause__ or error)}"
        # Rows at the same places of batches of the same size are computed alike, to the last bit.
        is_same = np.array_equal(calm.values[:count], mixed.values[:count], equal_nan=True)
        if not is_same or calm.labels[:count] != mixed.labels[:count]:
            return "a row's answer depends on the other rows of a run"
        alone, together = self._read(usual), self._read(calm)[:count]
        differs = np.abs(alone - together).max(axis=1) > SAME_ANSWER
        return "a row's answer alone differs from its answer in a run of several" if differs.mean() > 0.5 else None

    def _examine_logits(self, tried: Answers) -> None:
        """Tell logits that need no softmax: two columns [-s, s], or values that are probabilities already."""
        if not self.signature.are_logits:
            return
        values = np.array(tried.values)
        values = values[np.isfinite(values).all(axis=1)]
        if not len(np.unique(values, axis=0)) > 1:
            return
        name = self.signature.probability_output
        columns = np.hstack([1 - values, values]) if values.shape[1] == 1 else values
        if are_probabilities(columns.astype(np.float32)):
            raise StartupError(f'metadata "output" is logits, but {name!r} has probabilities: leave the entry out')
        if values.shape[1] == 2 and np.array_equal(values[:, 0], -values[:, 1]):
            maker = self._graph.makers.get(name)
            if maker not in MIRRORING and not (maker is None and self._graph.classes is not None):
                raise StartupError(
                    f"{name!r} has two columns [-s, s] made by {maker}: whether they are for a softmax or a sigmoid is "
                    "not in the graph; export the probabilities instead"
                )
            self.signature = replace(self.signature, has_mirrored_logits=True)

    def _refuse_improper(self, tried: Answers) -> None:
        """Refuse a model whose values are no probabilities for some row."""
        probabilities = self._read(tried)
        improper = find_improper_rows(probabilities)
        if not len(improper):
            return
        row, values = tried.rows[improper[0]], probabilities[improper[0]].tolist()
        low, high, total = min(values), max(values), sum(values)
        what = f"values from {low:g} to {high:g}" if low < 0 or high > 1 else f"values that sum to {total:g}"
        raise StartupError(
            f"{self.signature.probability_output!r} has {what} for the row {_shorten(row)}, which are not "
            'probabilities: if they are the logits of a softmax or sigmoid, add metadata "output": logits; margins '
            "(LinearSVC, RidgeClassifier, SGDClassifier with hinge) need CalibratedClassifierCV around the classifier"
        )

    def _reach_classes(self, maker: RowMaker, tried: Answers) -> Answers:
        """Search for rows of the classes that no row reached yet."""
        for _ in range(SEARCH_ROUNDS):
            chances = np.nan_to_num(self._read(tried))
            missing = sorted(set(range(chances.shape[1])) - set(chances.argmax(axis=1).tolist()))
            if not missing:
                break
            best = chances[:, missing].argmax(axis=0).tolist()[:SEARCH_ROWS]
            count = max(1, SEARCH_ROWS // len(best))
            tried += self._score([row for at in best for row in maker.make_near(tried.rows[at], tried.rows, count)])
        return tried


def _split_labels(outputs: Sequence[Any], count: int) -> list[list[Any]]:
    """Return the labels of each row: one, unless the output is made for something else, or there is none."""
    labels = np.asarray(outputs[0]).reshape(-1).tolist() if outputs else []
    size = len(labels) // count
    return [labels[row * size : (row + 1) * size] if size * count == len(labels) else [] for row in range(count)]


MIRRORING = frozenset({"LinearClassifier", "TreeEnsembleClassifier", "Concat", "ZipMap"})
"""Operators with which skl2onnx makes raw scores of two classes, [-s, s]; the probability is the sigmoid of s.

The second output of a classifier counts as made by None.
"""


def _shorten(row: Sequence[Value]) -> str:
    shown = ", ".join(repr(value) for value in row[:5])
    return f"[{shown}, ...]" if len(row) > 5 else f"[{shown}]"
