"""An environment of which every setting is unset."""

from typing import ClassVar


class Recorder(dict[str, str]):
    """An environment that notes which variables are asked for."""

    asked: ClassVar[set[str]] = set()

    def get(self, key: str, default: object = None) -> str | None:  # type: ignore[override]
        del default  # every setting is unset
        self.asked.add(key)
        return None
