"""The models that take requests, looked up by name and version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app import metrics
from app.errors import NotFoundError
from app.serving.batching import Batcher
from app.serving.loading import version_key
from app.serving.model import Model


class UnknownModelError(NotFoundError):
    """The request names a model or version that is not loaded."""


@dataclass(frozen=True, slots=True)
class Served:
    """A model that takes requests, and what they go through. Whoever holds it may finish with it at any time."""

    model: Model
    batcher: Batcher[Any, Any]


@dataclass(frozen=True, slots=True)
class Versions:
    """The served versions of one model in ascending order, and the one for requests that name none."""

    served: dict[str, Served]
    default: Served


class ModelRepository:
    """Every served model. Changed on the event loop only, each time by one assignment, so that reading needs no lock.

    The default version of a model is the pinned one when it is served, else the highest. A version that is withdrawn
    leaves memory with the last request that has taken it out before.
    """

    def __init__(self, default_model: str, pins: Mapping[str, str]) -> None:
        self.default_model = default_model
        self.pins = pins
        self._models: Mapping[str, Versions] = {}

    def get(self, name: str | None = None, version: str | None = None) -> Served:
        """Return the model asked for: by default the default model's default version."""
        versions = self._models.get(self.default_model if name is None else name)
        if versions is None:
            raise UnknownModelError(f"no such model; loaded are {', '.join(self._models)}")
        served = versions.default if version is None else versions.served.get(version)
        if served is None:
            raise UnknownModelError(f"no such version of this model; loaded are {', '.join(versions.served)}")
        return served

    def find(self, name: str, version: str) -> Served | None:
        """Return a version, None when it is not served."""
        return self._list_versions(name).get(version)

    def all(self) -> list[Served]:
        """Return all models, by name, each name's versions in ascending order."""
        return [served for versions in self._models.values() for served in versions.served.values()]

    def find_default(self, name: str) -> Served | None:
        """Return the version for requests that name none, None when no version of this model is served."""
        versions = self._models.get(name)
        return None if versions is None else versions.default

    def is_last(self, served: Served) -> bool:
        """Tell whether without this version the default model would be gone."""
        name = served.model.name
        return name == self.default_model and len(self._list_versions(name)) == 1

    def publish(self, served: Served) -> None:
        """Let a version take requests."""
        model = served.model
        self._arrange(model.name, {**self._list_versions(model.name), model.version: served})
        metrics.MODEL_INFO.labels(model.name, model.version, model.sha256).set(1)

    def withdraw(self, served: Served) -> None:
        """Let a version take no more requests."""
        model = served.model
        versions = self._list_versions(model.name)
        self._arrange(model.name, {name: one for name, one in versions.items() if one is not served})
        metrics.MODEL_INFO.remove(model.name, model.version, model.sha256)

    def pin(self, name: str, pins: Mapping[str, str]) -> None:
        """Take over other pins, which differ for this model."""
        self.pins = pins
        self._arrange(name, self._list_versions(name))

    def _list_versions(self, name: str) -> dict[str, Served]:
        versions = self._models.get(name)
        return {} if versions is None else versions.served

    def _arrange(self, name: str, served: dict[str, Served]) -> None:
        models = {other: versions for other, versions in self._models.items() if other != name}
        if served:
            ascending = {version: served[version] for version in sorted(served, key=version_key)}
            pinned = ascending.get(self.pins.get(name, ""))
            models[name] = Versions(ascending, pinned or next(reversed(ascending.values())))
        self._models = {name: models[name] for name in sorted(models)}
