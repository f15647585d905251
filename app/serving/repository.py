"""What is known of every version, in one record each, and the lookup of those that take requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app import metrics
from app.errors import NotFoundError, Reason
from app.serving.batching import Batcher
from app.serving.loading import Stamp, VersionKey, version_order
from app.serving.model import Model


class UnknownModelError(NotFoundError):
    """The request names a model or version that is not loaded."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that takes requests, and what they go through. Whoever holds it may finish with it at any time."""

    model: Model
    batcher: Batcher[Any, Any]


@dataclass(slots=True)
class VersionRecord:
    """All that is known of one version. The repository sets `served` and `is_pinned`, the reloader all else."""

    name: str
    version: str
    served: ServedModel | None = None
    """None: it takes no requests."""
    is_pinned: bool = False
    """It is the default of its model while it is served, whatever else comes."""
    is_unloaded: bool = False
    """An operator has unloaded it: it stays so until it is loaded, or the server starts again."""
    must_register: bool = False
    """It was served before the database could be asked about it."""
    trouble: Reason | None = None
    """What is wrong with it in MODEL_DIR."""
    file: Stamp | None = None
    """Its file at the latest look into MODEL_DIR; None: there was none."""
    file_before: Stamp | None = None
    """The same at the look before."""
    file_tried: Stamp | None = None
    """Its file when it was served or refused, which is not tried again before it changes; None: none was tried yet."""

    @property
    def key(self) -> VersionKey:
        """Name and version."""
        return self.name, self.version

    @property
    def printable(self) -> tuple[str, str]:
        """Name and version for answers and logs: directories may have any name, also one that is no valid text."""
        return ascii(self.name)[1:-1], ascii(self.version)[1:-1]

    @property
    def is_missing(self) -> bool:
        """Whether it could be served and is not: an operator has unloaded it, or something is wrong with it."""
        return self.served is None and (self.is_unloaded or self.trouble is not None)

    def find_new_file(self) -> Stamp | None:
        """Return the file that is to be tried: two looks have found it the same, and it may be loaded."""
        is_settled = self.file == self.file_before and self.file != self.file_tried
        return self.file if is_settled and not self.is_unloaded else None

    @property
    def has_lost_file(self) -> bool:
        """Whether two looks have found no file, and something is left of the one before."""
        is_left = self.file_tried is not None or self.served is not None
        return is_left and self.file is None and self.file_before is None


@dataclass(frozen=True, slots=True)
class _ModelVersions:
    """The served versions of one model in ascending order, and the one for requests that name none."""

    served: dict[str, ServedModel]
    default: ServedModel


class ModelRepository:
    """The record of every version. Changed on the event loop only.

    What requests read is one mapping, replaced by one assignment, so that reading needs no lock. The default version of
    a model is the pinned one when it is served, else the highest. A version that is withdrawn leaves memory with the
    last request that has taken it out before.
    """

    def __init__(self, default_model: str, pins: Mapping[str, str]) -> None:
        self.default_model = default_model
        self._records: dict[VersionKey, VersionRecord] = {}
        self._models: Mapping[str, _ModelVersions] = {}
        for name, version in pins.items():
            self.open_record(name, version).is_pinned = True

    def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return the model asked for: by default the default model's default version."""
        versions = self._models.get(self.default_model if name is None else name)
        if versions is None:
            raise UnknownModelError(f"no such model; loaded are {', '.join(self._models)}")
        served = versions.default if version is None else versions.served.get(version)
        if served is None:
            raise UnknownModelError(f"no such version of this model; loaded are {', '.join(versions.served)}")
        return served

    def all(self) -> list[ServedModel]:
        """Return all models that take requests, by name, each name's versions in ascending order."""
        return [served for versions in self._models.values() for served in versions.served.values()]

    def find_default(self, name: str) -> ServedModel | None:
        """Return the version for requests that name none, None when no version of this model is served."""
        versions = self._models.get(name)
        return None if versions is None else versions.default

    def is_last(self, served: ServedModel) -> bool:
        """Return whether without this version the default model would be gone."""
        name = served.model.name
        return name == self.default_model and len(self._models[name].served) == 1

    @property
    def pins(self) -> dict[str, str]:
        """The pinned versions by model, whether they are served or not."""
        return {record.name: record.version for record in self.records() if record.is_pinned}

    def records(self) -> list[VersionRecord]:
        """Return every record, by name, each name's versions in ascending order."""
        return sorted(self._records.values(), key=lambda record: (record.name, version_order(record.version)))

    def find_record(self, name: str, version: str) -> VersionRecord | None:
        """Return the record of a version, None when nothing is known of it."""
        return self._records.get((name, version))

    def open_record(self, name: str, version: str) -> VersionRecord:
        """Return the record of a version, a new one when nothing was known of it."""
        return self._records.setdefault((name, version), VersionRecord(name, version))

    def drop_blank_records(self) -> None:
        """Forget the versions of which nothing is known any more."""
        self._records = {key: record for key, record in self._records.items() if record != VersionRecord(*key)}

    def publish(self, served: ServedModel) -> None:
        """Let a version take requests."""
        model = served.model
        self.open_record(model.name, model.version).served = served
        self._arrange(model.name)
        metrics.MODEL_INFO.labels(model.name, model.version, model.sha256).set(1)

    def withdraw(self, served: ServedModel) -> None:
        """Let a version take no more requests."""
        model = served.model
        self.open_record(model.name, model.version).served = None
        self._arrange(model.name)
        metrics.MODEL_INFO.remove(model.name, model.version, model.sha256)

    def pin(self, name: str, version: str | None) -> None:
        """Make a version the default of its model whatever comes; None: the highest."""
        for record in self._records.values():
            if record.name == name:
                record.is_pinned = record.version == version
        self._arrange(name)

    def _arrange(self, name: str) -> None:
        """Have requests for a model find what its records say."""
        models = {other: versions for other, versions in self._models.items() if other != name}
        known = [record for record in self.records() if record.name == name]
        served = {record.version: record.served for record in known if record.served is not None}
        if served:
            pinned = next((record.served for record in known if record.is_pinned), None)
            models[name] = _ModelVersions(served, pinned or next(reversed(served.values())))
        self._models = {other: models[other] for other in sorted(models)}
