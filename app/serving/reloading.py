"""Change which versions are served, as MODEL_DIR and operators ask, while requests go on."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from app import metrics
from app.errors import ConflictError, Reason, StartupError, UnavailableError
from app.serving.batching import Batcher
from app.serving.loading import (
    LoadedModels,
    RefusedVersionError,
    Stamp,
    TroubleCode,
    check_bytes,
    find_files,
    load_found,
    locate,
    read_stamp,
    shorten,
)
from app.serving.model import Model
from app.serving.pins import write_pins
from app.serving.repository import ModelRepository, ServedModel, UnknownModelError, VersionRecord

logger = logging.getLogger(__name__)

RETRY_LOAD_SECONDS = 60.0
"""Until a file is tried again that failed unexpectedly: the log has a traceback each time."""


class Reloader:
    """Changes which versions are served, one change at a time. Use `start` to make one.

    `register` records a version in the database. It returns False when the database has it with other classes, and
    raises UnavailableError when the database cannot be reached: then the version is served first, and `look` registers
    it later.
    """

    def __init__(
        self,
        directory: Path,
        repository: ModelRepository,
        make_batcher: Callable[[Model], Batcher[Any, Any]],
        register: Callable[[Model], Awaitable[bool]],
        pins_file: Path,
        *,
        is_default_asked: bool,
    ) -> None:
        self._directory = directory
        self._repository = repository
        self._make_batcher = make_batcher
        self._register = register
        self._pins_file = pins_file
        self._is_default_asked = is_default_asked
        self._lock = asyncio.Lock()
        self.trouble: Reason | None = None
        """What is wrong with MODEL_DIR as a whole: the next start could not choose the default model."""

    @classmethod
    async def start(
        cls,
        loaded: LoadedModels,
        directory: Path,
        repository: ModelRepository,
        make_batcher: Callable[[Model], Batcher[Any, Any]],
        register: Callable[[Model], Awaitable[bool]],
        pins_file: Path,
    ) -> "Reloader":
        """Serve the loaded models; raise StartupError when no version of the default model can be served."""
        is_asked = loaded.is_default_asked
        reloader = cls(directory, repository, make_batcher, register, pins_file, is_default_asked=is_asked)
        await reloader._serve_loaded(loaded)
        return reloader

    async def look(self) -> None:
        """Read MODEL_DIR and follow its changes; a file must be the same at two looks. Register what waits for it."""
        try:
            async with self._lock:
                await self._look()
        except Exception:
            metrics.MODEL_LOAD_FAILURES.inc()
            logger.exception("MODEL_DIR could not be read")

    async def load(self, name: str, version: str | None) -> ServedModel:
        """Serve a version, by default the highest in MODEL_DIR, from its file as it is now.

        Raises UnknownModelError when there is no file, RefusedVersionError when it is not served.
        """
        async with self._lock:
            found = await asyncio.to_thread(find_files, self._directory)
            versions = [known for model, known in found if model == name]
            asked = next(reversed(versions), "") if version is None else version
            if asked not in versions:
                raise UnknownModelError("MODEL_DIR has no file of this model and version")
            record = self._repository.open_record(name, asked)
            record.is_unloaded = False
            return await self._take(record, found[name, asked])

    async def unload(self, name: str, version: str) -> None:
        """Stop serving a version until it is loaded again; raise ConflictError when it must be served."""
        async with self._lock:
            served = self._repository.get(name, version)
            record = self._repository.open_record(name, version)
            if reason := self._find_tie(record, served):
                raise ConflictError(f"this version cannot be unloaded: {reason}")
            self._withdraw(record, served)
            record.trouble = None
            record.is_unloaded = True

    async def pin(self, name: str, version: str | None) -> None:
        """Make a version the default of its model, also after a restart; None removes the pin."""
        async with self._lock:
            pins = self._repository.pins
            if version is not None or name not in pins:
                self._repository.get(name, version)
            pins.pop(name, None)
            if version is not None:
                pins[name] = version
            try:
                await asyncio.to_thread(write_pins, self._pins_file, pins)
            except OSError as error:
                raise UnavailableError(f"the pin cannot be written under DATA_DIR: {error.strerror}") from error
            self._repository.pin(name, version)
            for record in self._repository.records():
                if record.name == name and record.trouble is not None and record.trouble.code == "model_pin":
                    record.trouble = None
            logger.info("model %s: pinned version is %s", name, version)

    async def _serve_loaded(self, loaded: LoadedModels) -> None:
        for key, stamp in loaded.stamps.items():
            record = self._repository.open_record(*key)
            record.file = record.file_tried = stamp
        for key, reason in loaded.refusals.items():
            _note(self._repository.open_record(*key), "model_not_loadable", shorten(reason, self._directory, key))
        refusals: list[str] = []
        for model in loaded.models:
            record = self._repository.open_record(model.name, model.version)
            try:
                await self._admit(record, model)
            except RefusedVersionError as error:
                logger.error("%s", error)  # noqa: TRY400  # a refusal, not a bug: no traceback
                _note(record, error.code, str(error))
                if model.name == loaded.default_model:
                    refusals.append(str(error))
        if self._repository.find_default(loaded.default_model) is None:
            raise StartupError(refusals[-1])
        for record in self._repository.records():
            if record.is_pinned and record.served is None and record.trouble is None:
                _note(record, "model_pin", "the pinned version does not exist, the highest is the default instead")

    async def _look(self) -> None:
        found = await asyncio.to_thread(find_files, self._directory)
        for key in found:
            self._repository.open_record(*key)
        records = self._repository.records()
        for record in records:
            record.file_before, record.file = record.file, found.get(record.key)
        self._watch_default(len({name for name, _ in found}))
        now = asyncio.get_running_loop().time()
        for record in records:
            if (stamp := record.find_new_file(now)) is not None:
                await self._try_file(record, stamp)
        for record in records:
            if record.has_lost_file:
                await self._remove(record, is_empty=not found)
        with suppress(UnavailableError):
            for record in records:
                if record.must_register and record.served is not None:
                    await self._register_late(record, record.served)
        self._repository.drop_blank_records()

    async def _try_file(self, record: VersionRecord, stamp: Stamp) -> None:
        """Serve a file; a failure, which the record shows, must not hold up other versions."""
        try:
            await self._take(record, stamp)
        except RefusedVersionError as error:
            logger.error("model %s version %s: %s", *record.printable, error)  # noqa: TRY400  # not a bug
        except Exception:
            logger.exception("model %s version %s is not served, it is tried again", *record.printable)

    async def _take(self, record: VersionRecord, stamp: Stamp) -> ServedModel:
        """Serve a file, or raise RefusedVersionError; a refused file is not tried again until it changes.

        Any other error is a bug, or memory that is used up: it says nothing about the file, which is tried again.
        """
        record.file_tried, record.retry_at = stamp, None
        served = record.served
        try:
            if served is None:
                model = await asyncio.to_thread(load_found, self._directory, record.key, stamp)
                served = await self._admit(record, model)
            else:
                await asyncio.to_thread(check_bytes, self._directory, served.model)
        except RefusedVersionError as error:
            metrics.MODEL_LOAD_FAILURES.inc()
            _note(record, error.code, str(error))
            raise
        except Exception:
            metrics.MODEL_LOAD_FAILURES.inc()
            record.retry_at = asyncio.get_running_loop().time() + RETRY_LOAD_SECONDS
            _note(
                record, "model_not_loadable", "an unexpected error, see the server's log; it is tried again each minute"
            )
            raise
        if record.trouble is None or record.trouble.code != "model_conflict":  # the file does not settle that one
            record.trouble = None
        return served

    async def _admit(self, record: VersionRecord, model: Model) -> ServedModel:
        """Register a version, then let it take requests; raise RefusedVersionError for other classes."""
        try:
            if not await self._register(model):
                raise _refuse_classes(record)
        except UnavailableError:
            record.must_register = True
        served = ServedModel(model, self._make_batcher(model))
        self._repository.publish(served)
        default = "" if self._repository.find_default(model.name) is served else " (not the default)"
        logger.info("model %s version %s takes requests%s", *record.printable, default)
        return served

    async def _register_late(self, record: VersionRecord, served: ServedModel) -> None:
        """Register a version that is served already; on other classes withdraw it, unless it must be served."""
        known = await self._register(served.model)
        record.must_register = False
        if not known:
            refusal = _refuse_classes(record)
            logger.error("%s", refusal)
            _note(record, refusal.code, str(refusal))
            if self._find_tie(record, served) is None:
                self._withdraw(record, served)

    async def _remove(self, record: VersionRecord, *, is_empty: bool) -> None:
        """Withdraw a version whose file is gone; while it must be served, only report the missing file."""
        try:
            if await asyncio.to_thread(read_stamp, locate(self._directory, *record.key)) is not None:
                return
        except OSError:  # the file cannot be checked, so it may still exist
            return
        served = record.served
        tie = None if served is None else "MODEL_DIR is empty" if is_empty else self._find_tie(record, served)
        is_first_time, record.file_tried, record.retry_at = record.file_tried is not None, None, None
        if tie is None:
            record.trouble = None
            if served is not None:
                self._withdraw(record, served)
        elif is_first_time:
            message = "model %s version %s: the file is gone, the version is still served: %s"
            logger.error(message, *record.printable, tie)
            _note(record, "model_removed", f"the file is gone, the version is still served: {tie}")

    def _find_tie(self, record: VersionRecord, served: ServedModel) -> str | None:
        """Return why a version must be served, None when it can be withdrawn."""
        if record.is_pinned:
            return "it is pinned"
        return "it is the only version of the default model" if self._repository.is_last(served) else None

    def _withdraw(self, record: VersionRecord, served: ServedModel) -> None:
        self._repository.withdraw(served)
        record.must_register = False
        logger.info("model %s version %s takes no more requests", *record.printable)

    def _watch_default(self, models: int) -> None:
        """Note when the next start would be refused, because it could not choose the default model."""
        if self._is_default_asked or models <= 1:
            self.trouble = None
        elif self.trouble is None:
            self.trouble = Reason(
                code="default_model_unset",
                detail="MODEL_DIR has several models now and DEFAULT_MODEL is not set: the next start will be refused",
            )


def _note(record: VersionRecord, code: TroubleCode, detail: str) -> None:
    record.trouble = Reason(code=code, detail=detail)


def _refuse_classes(record: VersionRecord) -> RefusedVersionError:
    name, version = record.printable
    return RefusedVersionError(
        "model_conflict",
        f"model {name} version {version} has been served with other classes: give this file a new version",
    )
