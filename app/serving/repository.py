"""One record for each known version, and the lookup of the versions that take requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app import metrics
from app.errors import NotFoundError, Reason
from app.serving.batching import Batcher
from app.serving.loading import Stamp, VersionKey
from app.serving.model import Model
from app.serving.ordering import version_order


class UnknownModelError(NotFoundError):
    """The request names a model or version that is not loaded."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that takes requests, and its batcher. A request that has it can use it even after it was withdrawn."""

    model: Model
    batcher: Batcher[Any, Any]


@dataclass(slots=True)
class VersionRecord:
    """All that is known about one version. The repository sets `served` and `is_pinned`, the reloader the rest."""

    name: str
    version: str
    served: ServedModel | None = None
    """None when the version takes no requests."""
    is_pinned: bool = False
    """While it is served, it is the default of its model, even when a higher version comes."""
    is_unloaded: bool = False
    """An operator has unloaded it: it stays unloaded until it is loaded, or the server restarts."""
    must_register: bool = False
    """It was served while the database could not be reached, and is not registered there yet."""
    trouble: Reason | None = None
    """What is wrong with it in MODEL_DIR."""
    file: Stamp | None = None
    """Its file when MODEL_DIR was last read; None when there was no file."""
    file_before: Stamp | None = None
    """Its file when MODEL_DIR was read the time before."""
    file_tried: Stamp | None = None
    """The file that was served or refused, which is not tried again until it changes; None before the first try."""
    retry_at: float | None = None
    """When `file_tried` is tried again although it has not changed, by the event loop's clock; None: it is not."""

    @property
    def key(self) -> VersionKey:
        """Name and version."""
        return self.name, self.version

    @property
    def printable(self) -> tuple[str, str]:
        """Name and version in ASCII, for answers and logs: the name of a directory may not be valid text."""
        return ascii(self.name)[1:-1], ascii(self.version)[1:-1]

    @property
    def is_missing(self) -> bool:
        """Whether it is not served because an operator has unloaded it, or because something is wrong with it."""
        return self.served is None and (self.is_unloaded or self.trouble is not None)

    def list_troubles(self) -> list[Reason]:
        """Return what is wrong with its file, and with what the served model answers."""
        of_model = None if self.served is None else self.served.model.trouble
        return [trouble for trouble in (self.trouble, of_model) if trouble is not None]

    def find_new_file(self, now: float) -> Stamp | None:
        """Return the file to try to serve: it was the same when MODEL_DIR was read twice, and its try is due."""
        is_due = self.file != self.file_tried or (self.retry_at is not None and now >= self.retry_at)
        return self.file if self.file == self.file_before and is_due and not self.is_unloaded else None

    @property
    def has_lost_file(self) -> bool:
        """Whether MODEL_DIR had no file when it was read twice, and the version was served or tried before."""
        is_left = self.file_tried is not None or self.served is not None
        return is_left and self.file is None and self.file_before is None


@dataclass(frozen=True, slots=True)
class _ModelVersions:
    """The served versions of one model in ascending order, and the default for requests that name no version."""

    served: dict[str, ServedModel]
    default: ServedModel


class ModelRepository:
    """The record of every version. Changed on the event loop only.

    Requests read one mapping, which one assignment replaces, so that reading needs no lock. The default version of a
    model is the pinned one when it is served, else the highest. A withdrawn version stays in memory until the last
    request that uses it ends.
    """

    def __init__(self, default_model: str, pins: Mapping[str, str]) -> None:
        self.default_model = default_model
        self._records: dict[VersionKey, VersionRecord] = {}
        self._models: Mapping[str, _ModelVersions] = {}
        for name, version in pins.items():
            self.open_record(name, version).is_pinned = True

    def get(self, name: str | None = None, version: str | None = None) -> ServedModel:
        """Return the served version of these names; by default, the default version of the default model.

        Raises UnknownModelError.
        """
        versions = self._models.get(self.default_model if name is None else name)
        if versions is None:
            raise UnknownModelError(f"no such model; loaded are {', '.join(self._models)}")
        served = versions.default if version is None else versions.served.get(version)
        if served is None:
            raise UnknownModelError(f"no such version of this model; loaded are {', '.join(versions.served)}")
        return served

    def all(self) -> list[ServedModel]:
        """Return all versions that take requests, by name, each name's versions in ascending order."""
        return [served for versions in self._models.values() for served in versions.served.values()]

    def find_default(self, name: str) -> ServedModel | None:
        """Return the default version of a model, None when no version of it is served."""
        versions = self._models.get(name)
        return None if versions is None else versions.default

    def is_last(self, served: ServedModel) -> bool:
        """Return whether this is the only served version of the default model."""
        name = served.model.name
        return name == self.default_model and len(self._models[name].served) == 1

    @property
    def pins(self) -> dict[str, str]:
        """The pinned version of each model that has one, served or not."""
        return {record.name: record.version for record in self.records() if record.is_pinned}

    def records(self) -> list[VersionRecord]:
        """Return every record, by name, each name's versions in ascending order."""
        return sorted(self._records.values(), key=lambda record: (record.name, version_order(record.version)))

    def find_record(self, name: str, version: str) -> VersionRecord | None:
        """Return the record of a version, None when there is none."""
        return self._records.get((name, version))

    def open_record(self, name: str, version: str) -> VersionRecord:
        """Return the record of a version; make one when there is none."""
        return self._records.setdefault((name, version), VersionRecord(name, version))

    def drop_blank_records(self) -> None:
        """Remove the records that no longer say anything about their version."""
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
        metrics.MODEL_VERSION_DEFAULT.remove(model.name, model.version)

    def pin(self, name: str, version: str | None) -> None:
        """Make a version the default of its model; None: the highest is the default again."""
        for record in self._records.values():
            if record.name == name:
                record.is_pinned = record.version == version
        self._arrange(name)

    def _arrange(self, name: str) -> None:
        """Replace the mapping that requests read by one with the model's records as they are now."""
        models = {other: versions for other, versions in self._models.items() if other != name}
        known = [record for record in self.records() if record.name == name]
        served = {record.version: record.served for record in known if record.served is not None}
        if served:
            pinned = next((record.served for record in known if record.is_pinned), None)
            default = pinned or next(reversed(served.values()))
            models[name] = _ModelVersions(served, default)
            for version, one in served.items():
                metrics.MODEL_VERSION_DEFAULT.labels(name, version).set(one is default)
        self._models = {other: models[other] for other in sorted(models)}
