"""A session that gives one matrix of probabilities, in float32, whatever outputs the graph has."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Session(Protocol):
    """What a session of onnxruntime does."""

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], options: Any = None, /) -> list[Any]:
        """Return the values of these outputs."""


class AdaptedSession:
    """Joins the outputs of single classes to one matrix, and turns float16 into float32."""

    def __init__(self, session: Session, joined: str, columns: Sequence[str]) -> None:
        self._session = session
        self._joined = joined
        self._columns = tuple(columns)

    def run(self, outputs: Sequence[str], feeds: Mapping[str, NDArray[Any]], options: Any = None) -> list[Any]:
        """Return the values of these outputs; `joined` is (n, classes), made of the columns."""
        wanted = [name for output in outputs for name in (self._columns if self._is_joined(output) else (output,))]
        values = iter(self._session.run(wanted, feeds, options))
        return [
            np.column_stack([_widen(next(values)) for _ in self._columns])
            if self._is_joined(output)
            else _widen(next(values))
            for output in outputs
        ]

    def _is_joined(self, output: str) -> bool:
        return bool(self._columns) and output == self._joined


def _widen(value: Any) -> Any:
    is_half = isinstance(value, np.ndarray) and value.dtype == np.float16
    return value.astype(np.float32) if is_half else value
