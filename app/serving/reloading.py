"""Keep the served models as MODEL_DIR and the operator say, while requests go on."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from app import metrics
from app.errors import ConflictError, ScorekeeperError, StartupError, UnavailableError
from app.serving.batching import Batcher
from app.serving.loading import Key, Loaded, Stamp, find_files, load_model, locate, read_stamp
from app.serving.model import Model
from app.serving.pins import write_pins
from app.serving.repository import ModelRepository, Served, UnknownModelError

logger = logging.getLogger(__name__)

GONE = Stamp(0, 0, 0, 0)
"""In the place of a file's stamp: it is gone, and its version is served nevertheless."""

TroubleCode = Literal["model_not_loadable", "model_conflict", "model_replaced", "model_removed", "model_pin"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a version in MODEL_DIR, for the operator."""

    name: str
    version: str
    code: TroubleCode
    detail: str
    since: datetime


class RefusedVersionError(ScorekeeperError):
    """A file is not served as it is: 422 when it cannot be, 409 when something else of this version is in the way."""

    def __init__(self, code: TroubleCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = 422 if code == "model_not_loadable" else 409


class Reloader:
    """Changes which versions are served, one change at a time. `begin` comes first.

    `register` makes a version known to the database; False: it is known with other classes there; UnavailableError:
    the database cannot be asked now, so that the version is served first and registered by a later look.
    """

    def __init__(
        self,
        directory: Path,
        repository: ModelRepository,
        make_batcher: Callable[[Model], Batcher[Any, Any]],
        register: Callable[[Model], Awaitable[bool]],
        pins_file: Path,
    ) -> None:
        self._directory = directory
        self._repository = repository
        self._make_batcher = make_batcher
        self._register = register
        self._pins_file = pins_file
        self._lock = asyncio.Lock()
        self._is_default_asked = True
        self._seen: dict[Key, Stamp] = {}
        self._judged: dict[Key, Stamp] = {}
        self._unregistered: set[Key] = set()
        self.unloaded: set[Key] = set()
        """Versions that stay unloaded until somebody loads them, or the server starts again."""
        self.troubles: dict[Key, Trouble] = {}

    async def begin(self, loaded: Loaded) -> None:
        """Serve what the start has loaded; raise StartupError when nothing of the default model is left."""
        self._is_default_asked = loaded.is_default_asked
        self._seen, self._judged = loaded.stamps, dict(loaded.stamps)
        refusals: list[str] = []
        for key, reason in loaded.refusals.items():
            self._note(key, "model_not_loadable", self._shorten(key, reason))
        for model in loaded.models:
            try:
                await self._admit(model)
            except RefusedVersionError as error:
                logger.error("%s", error)  # noqa: TRY400  # the error says it all
                self._note((model.name, model.version), error.code, str(error))
                if model.name == loaded.default_model:
                    refusals.append(str(error))
        if self._repository.find_default(loaded.default_model) is None:
            raise StartupError(refusals[-1])
        for key in self._repository.pins.items():
            if self._repository.find(*key) is None and key not in self.troubles:
                self._note(key, "model_pin", "the pinned version is not there, the highest is served instead")

    @property
    def is_default_unclear(self) -> bool:
        """Whether the next start would refuse to choose among the models that MODEL_DIR has now."""
        return not self._is_default_asked and len({name for name, _ in self._seen}) > 1

    async def look(self) -> None:
        """Take up what has changed in MODEL_DIR, a file when two looks have found it the same, and register."""
        try:
            async with self._lock:
                await self._look()
        except Exception:
            metrics.MODEL_LOAD_FAILURES.inc()
            logger.exception("MODEL_DIR could not be looked through")

    async def load(self, name: str, version: str | None) -> Served:
        """Serve this version, or the highest in MODEL_DIR, from its file as it is now; raise why it cannot be."""
        async with self._lock:
            found = await asyncio.to_thread(find_files, self._directory)
            versions = [known for model, known in found if model == name]
            asked = next(reversed(versions), "") if version is None else version
            if asked not in versions:
                raise UnknownModelError("MODEL_DIR has no file for this model and version")
            self.unloaded.discard((name, asked))
            return await self._take((name, asked), found[name, asked])

    async def unload(self, name: str, version: str) -> None:
        """Let a version take no more requests until it is loaded again; raise ConflictError for one that must stay."""
        async with self._lock:
            served = self._repository.get(name, version)
            if reason := self._find_tie(served):
                raise ConflictError(f"this version stays: {reason}")
            self._withdraw(served)
            self.troubles.pop((name, version), None)
            self.unloaded.add((name, version))

    async def pin(self, name: str, version: str | None) -> None:
        """Make a version the default of its model, also after a restart; None: the highest again."""
        async with self._lock:
            pins = dict(self._repository.pins)
            if version is not None or name not in pins:
                self._repository.get(name, version)
            previous = pins.pop(name, "")
            if version is not None:
                pins[name] = version
            try:
                await asyncio.to_thread(write_pins, self._pins_file, pins)
            except OSError as error:
                raise UnavailableError(f"the pin cannot be kept under DATA_DIR: {error.strerror}") from error
            self._repository.pin(name, pins)
            if (trouble := self.troubles.get((name, previous))) is not None and trouble.code == "model_pin":
                del self.troubles[name, previous]
            logger.info("model %s: pinned is %s", name, version)

    async def _look(self) -> None:
        found = await asyncio.to_thread(find_files, self._directory)
        before, self._seen = self._seen, found
        for key, stamp in found.items():
            if before.get(key) == stamp != self._judged.get(key) and key not in self.unloaded:
                try:
                    await self._take(key, stamp)
                except RefusedVersionError as error:
                    logger.error("model %s version %s: %s", *key, error)  # noqa: TRY400  # the error says it all
        for key in [key for key in self._judged if key not in found and key not in before]:
            await self._remove(key, is_empty=not found)
        with suppress(UnavailableError):
            for name, version in list(self._unregistered):
                await self._register_late(self._repository.get(name, version))

    async def _take(self, key: Key, stamp: Stamp) -> Served:
        """Serve a file, or raise why not, which is not tried again before the file changes."""
        self._judged[key] = stamp
        served = self._repository.find(*key)
        try:
            if served is None:
                served = await self._admit(await asyncio.to_thread(self._load, key, stamp))
            else:
                await asyncio.to_thread(self._check_unchanged, key, served.model.sha256)
        except RefusedVersionError as error:
            metrics.MODEL_LOAD_FAILURES.inc()
            self._note(key, error.code, str(error))
            raise
        self.troubles.pop(key, None)
        return served

    def _load(self, key: Key, stamp: Stamp) -> Model:
        file = locate(self._directory, *key)
        try:
            model = load_model(*key, file)
            changed = read_stamp(file) != stamp
        except (StartupError, OSError) as error:
            raise RefusedVersionError("model_not_loadable", self._shorten(key, str(error))) from error
        if changed:
            raise RefusedVersionError("model_not_loadable", "the file has changed while it was read")
        return model

    def _check_unchanged(self, key: Key, sha256: str) -> None:
        try:
            content = locate(self._directory, *key).read_bytes()
        except OSError as error:
            raise RefusedVersionError("model_not_loadable", f"cannot be read: {error.strerror}") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise RefusedVersionError(
                "model_replaced",
                "the file has other bytes than what is served under this version, which goes on: "
                "give the new file a new version",
            )

    async def _admit(self, model: Model) -> Served:
        """Register a version, then let it take requests."""
        key = (model.name, model.version)
        try:
            if not await self._register(model):
                raise _refuse_classes(model)
        except UnavailableError:
            self._unregistered.add(key)
        served = Served(model, self._make_batcher(model))
        self._repository.publish(served)
        default = "" if self._repository.find_default(model.name) is served else " (not the default)"
        logger.info("model %s version %s takes requests%s", *key, default)
        return served

    async def _register_late(self, served: Served) -> None:
        """Register a version that is served already; one that should not be is withdrawn, unless it is tied."""
        model = served.model
        key = (model.name, model.version)
        known = await self._register(model)
        self._unregistered.discard(key)
        if not known:
            refusal = _refuse_classes(model)
            logger.error("%s", refusal)
            self._note(key, refusal.code, str(refusal))
            if self._find_tie(served) is None:
                self._withdraw(served)

    async def _remove(self, key: Key, *, is_empty: bool) -> None:
        """Follow the removal of a file, found missing twice; when the version is tied, as soon as it no longer is."""
        try:
            if await asyncio.to_thread(read_stamp, locate(self._directory, *key)) is not None:
                return
        except OSError:  # it is out of reach, which is no removal
            return
        served = self._repository.find(*key)
        tie = None if served is None else "MODEL_DIR is empty" if is_empty else self._find_tie(served)
        if tie is not None:
            if self._judged[key] != GONE:
                logger.error("model %s version %s: the file is gone, the version goes on: %s", *key, tie)
                self._note(key, "model_removed", f"the file is gone, the version goes on: {tie}")
            self._judged[key] = GONE
            return
        del self._judged[key]
        self.troubles.pop(key, None)
        if served is not None:
            self._withdraw(served)

    def _find_tie(self, served: Served) -> str | None:
        """Say why a version must be served; None when it need not."""
        model = served.model
        if self._repository.pins.get(model.name) == model.version:
            return "it is pinned"
        return "it is the only one of the default model" if self._repository.is_last(served) else None

    def _withdraw(self, served: Served) -> None:
        key = (served.model.name, served.model.version)
        self._repository.withdraw(served)
        self._unregistered.discard(key)
        logger.info("model %s version %s takes no more requests", *key)

    def _note(self, key: Key, code: TroubleCode, detail: str) -> None:
        name, version = (ascii(part)[1:-1] for part in key)  # names of directories may be anything
        self.troubles[key] = Trouble(name, version, code, detail, datetime.now(UTC))

    def _shorten(self, key: Key, reason: str) -> str:
        return reason.removeprefix(f"{locate(self._directory, *key)}: ")


def _refuse_classes(model: Model) -> RefusedVersionError:
    return RefusedVersionError(
        "model_conflict",
        f"model {model.name} version {model.version} has been served with other classes: give this file a new version",
    )
