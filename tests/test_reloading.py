"""What happens to served versions when MODEL_DIR changes, look by look."""

import asyncio
import gc
import os
import shutil
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY

from app.errors import ConflictError, StartupError, UnavailableError
from app.serving.batching import open_executor
from app.serving.loading import RefusedVersionError, load_models
from app.serving.model import Model
from app.serving.pins import read_pins
from app.serving.reloading import Reloader
from app.serving.repository import ModelRepository, UnknownModelError
from tests.support.batchers import ScoreJob, make_score_batcher
from tests.support.onnx_models import build_echo, build_slow, write_model
from tests.support.processes import WAIT_SECONDS, wait_until


@dataclass
class World:
    """A repository on disk and in memory, and what a database would say of each version's classes."""

    directory: Path
    pins_file: Path
    default_model: str | None = "model"
    conflicting: set[str] = field(default_factory=set)
    is_away: bool = False
    broken: set[str] = field(default_factory=set)
    registered: list[str] = field(default_factory=list)

    async def register(self, model: Model) -> bool:
        if self.is_away:
            raise UnavailableError("away")
        if model.version in self.broken:
            raise RuntimeError("an error that nobody expected")
        if model.version in self.conflicting:
            return False
        self.registered.append(model.version)
        return True

    def write(self, version: str, content: bytes, name: str = "model") -> Path:
        return write_model(self.directory, content, name, version)

    def remove(self, version: str) -> None:
        shutil.rmtree(self.directory / "model" / version)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[tuple[Reloader, ModelRepository]]:
        """What a server has after its start."""
        loaded = load_models(self.directory, self.default_model)
        repository = ModelRepository(loaded.default_model, read_pins(self.pins_file))
        async with open_executor() as executor:
            reloader = await Reloader.start(
                loaded,
                self.directory,
                repository,
                make_batcher=lambda model: make_score_batcher(model, executor),
                register=self.register,
                pins_file=self.pins_file,
            )
            del loaded
            yield reloader, repository


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Version 1 of one model."""
    made = World(tmp_path / "models", tmp_path / "data" / "pins.json")
    made.write("1", build_echo(2))
    return made


def list_versions(repository: ModelRepository) -> list[str]:
    return [served.model.version for served in repository.all()]


def list_codes(repository: ModelRepository) -> dict[str, str]:
    return {record.version: record.trouble.code for record in repository.records() if record.trouble is not None}


def list_unloaded(repository: ModelRepository) -> list[str]:
    return [record.version for record in repository.records() if record.is_unloaded]


async def look(reloader: Reloader, times: int = 2) -> None:
    for _ in range(times):
        await reloader.look()


def count_failures() -> float:
    return REGISTRY.get_sample_value("model_load_failures_total") or 0.0


def read_info(served_version: str, sha256: str) -> float | None:
    labels = {"model": "model", "model_version": served_version, "sha256": sha256}
    return REGISTRY.get_sample_value("model_info", labels)


async def test_new_version_is_the_default_when_two_looks_have_found_it_the_same(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.write("10", build_echo(2))
        world.write("9", build_echo(2))
        await look(reloader, 1)
        early = list_versions(repository)
        await look(reloader, 1)

        assert early == ["1"]
        assert list_versions(repository) == ["1", "9", "10"]
        assert repository.get().model.version == "10"
        assert world.registered == ["1", "9", "10"]
        assert list_codes(repository) == {}


async def test_new_model_is_served_when_its_directory_comes(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.write("1", build_echo(3), "other")
        await look(reloader)

        assert repository.get("other").model.signature.classes == (0, 1, 2)
        assert repository.get().model.name == "model"

        shutil.rmtree(world.directory / "other")
        await look(reloader)

        with pytest.raises(UnknownModelError):
            repository.get("other")


async def test_file_is_not_taken_while_it_grows(world: World) -> None:
    content = build_echo(2)
    async with world.open() as (reloader, repository):
        file = world.write("2", b"")
        for size in range(0, len(content), 20):
            file.write_bytes(content[:size])
            await look(reloader, 1)
        assert (list_versions(repository), list_codes(repository)) == (["1"], {})

        file.write_bytes(content)
        await look(reloader)

        assert repository.get().model.version == "2"


async def test_half_a_file_is_tried_once_and_again_when_it_is_whole(world: World) -> None:
    content, failures = build_echo(2), count_failures()
    async with world.open() as (reloader, repository):
        file = world.write("2", content[:-10])
        await look(reloader, 6)
        assert list_codes(repository) == {"2": "model_not_loadable"}
        assert count_failures() == failures + 1
        assert repository.get().model.version == "1"

        file.write_bytes(content)
        await look(reloader)

        assert repository.get().model.version == "2"
        assert list_codes(repository) == {}


async def test_directory_of_another_name_is_told_when_it_has_a_model(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.write("2 copy", build_echo(2))
        await look(reloader)

        assert list_codes(repository) == {"2 copy": "model_not_loadable"}
        assert list_versions(repository) == ["1"]


async def test_version_goes_on_when_its_file_is_replaced(world: World) -> None:
    async with world.open() as (reloader, repository):
        before = repository.get()
        file = world.directory / "model" / "1" / "model.onnx"
        content = file.read_bytes()
        file.write_bytes(build_echo(2, note="other bytes"))
        await look(reloader)
        assert list_codes(repository) == {"1": "model_replaced"}
        assert repository.get() is before

        file.write_bytes(content)
        await look(reloader)

        assert list_codes(repository) == {}
        assert repository.get() is before


async def test_nothing_changes_when_a_file_is_written_again_with_the_same_bytes(world: World) -> None:
    async with world.open() as (reloader, repository):
        before = repository.get()
        file = world.directory / "model" / "1" / "model.onnx"
        draft = file.with_name("draft")
        draft.write_bytes(file.read_bytes())
        draft.replace(file)
        await look(reloader, 4)

        assert repository.get() is before
        assert list_codes(repository) == {}


async def test_removed_version_is_not_served_when_two_looks_have_missed_it(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        sha256 = repository.get().model.sha256
        assert read_info("2", sha256) == 1
        world.remove("2")
        await look(reloader, 1)
        early = list_versions(repository)
        await look(reloader, 1)

        assert early == ["1", "2"]
        assert list_versions(repository) == ["1"]
        assert read_info("2", sha256) is None
        assert read_info("1", sha256) == 1


async def test_removed_version_comes_back_when_its_file_does(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        (world.directory / "model" / "2").rename(world.directory / "model" / ".2")
        await look(reloader)
        (world.directory / "model" / ".2").rename(world.directory / "model" / "2")
        await look(reloader)

        assert list_versions(repository) == ["1", "2"]


async def test_last_version_goes_on_when_removed_until_another_is_there(world: World) -> None:
    world.write("1", build_echo(2), "other")
    async with world.open() as (reloader, repository):
        world.remove("1")
        await look(reloader, 4)
        assert list_codes(repository) == {"1": "model_removed"}
        assert repository.get().model.version == "1"

        world.write("2", build_echo(2))
        await look(reloader)

        assert [served.model.version for served in repository.all() if served.model.name == "model"] == ["2"]
        assert list_codes(repository) == {}


async def test_every_version_goes_on_when_the_directory_is_empty(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        world.directory.rename(world.directory.with_name("unmounted"))
        await look(reloader, 3)
        assert list_codes(repository) == {"1": "model_removed", "2": "model_removed"}
        assert list_versions(repository) == ["1", "2"]

        world.directory.with_name("unmounted").rename(world.directory)
        await look(reloader)

        assert list_codes(repository) == {}


async def test_unloaded_version_stays_unloaded_until_it_is_loaded(world: World) -> None:
    file = world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        await reloader.unload("model", "2")
        file.write_bytes(build_echo(2, note="changed"))
        await look(reloader, 3)
        assert (list_versions(repository), list_unloaded(repository)) == (["1"], ["2"])

        served = await reloader.load("model", "2")

        assert repository.get() is served
        assert list_unloaded(repository) == []


async def test_unloaded_version_stays_unloaded_when_its_file_goes_and_comes_back(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        await reloader.unload("model", "2")
        world.remove("2")
        await look(reloader, 3)
        world.write("2", build_echo(2, note="another"))
        await look(reloader, 3)

        assert (list_versions(repository), list_unloaded(repository)) == (["1"], ["2"])


async def test_nothing_is_known_of_a_version_when_its_file_is_gone(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        world.write("3", b"not a model")
        await look(reloader)
        world.write("4", build_echo(2))
        await look(reloader, 1)
        known = [record.version for record in repository.records()]
        for version in ("2", "3", "4"):
            world.remove(version)
        await look(reloader)

        assert known == ["1", "2", "3", "4"]
        assert [record.version for record in repository.records()] == ["1"]


async def test_nothing_is_known_of_a_version_when_it_has_gone_before_it_was_registered(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.is_away = True
        world.write("2", build_echo(2))
        await look(reloader)
        world.remove("2")
        await look(reloader)

        assert [record.version for record in repository.records()] == ["1"]


async def test_trouble_of_the_default_has_one_beginning_until_it_is_over(world: World) -> None:
    world.default_model = None
    async with world.open() as (reloader, repository):
        world.write("1", build_echo(2), "other")
        await look(reloader, 1)
        first = reloader.trouble
        await look(reloader)
        later = reloader.trouble
        shutil.rmtree(world.directory / "other")
        await look(reloader, 1)

        assert first is not None
        assert (first.code, later) == ("default_model_unset", first)
        assert reloader.trouble is None
        assert repository.default_model == "model"


async def test_version_cannot_be_unloaded_when_it_is_the_last_or_pinned(world: World) -> None:
    async with world.open() as (reloader, repository):
        with pytest.raises(ConflictError, match="the only version of the default model"):
            await reloader.unload("model", "1")

        world.write("2", build_echo(2))
        await reloader.load("model", None)
        await reloader.pin("model", "1")
        with pytest.raises(ConflictError, match="it is pinned"):
            await reloader.unload("model", "1")

        await reloader.pin("model", None)
        await reloader.unload("model", "1")
        assert list_versions(repository) == ["2"]


async def test_load_takes_the_highest_version_when_none_is_named(world: World) -> None:
    async with world.open() as (reloader, _):
        world.write("9", build_echo(2))
        world.write("10", build_echo(2))

        served = await reloader.load("model", None)

        assert served.model.version == "10"


@pytest.mark.parametrize(("name", "version"), [("other", None), ("model", "2"), ("model", ""), ("..", "models")])
async def test_load_is_refused_when_there_is_no_file(world: World, name: str, version: str | None) -> None:
    async with world.open() as (reloader, _):
        with pytest.raises(UnknownModelError):
            await reloader.load(name, version)


async def test_load_says_why_when_the_file_is_bad(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.write("2", b"not a model")
        world.write("3", build_echo(2))
        world.conflicting.add("3")

        with pytest.raises(RefusedVersionError, match=r"^onnxruntime cannot load it") as garbage:
            await reloader.load("model", "2")
        with pytest.raises(RefusedVersionError, match="has been served with other classes") as conflict:
            await reloader.load("model", "3")

        assert (garbage.value.status, conflict.value.status) == (422, 409)
        assert list_codes(repository) == {"2": "model_not_loadable", "3": "model_conflict"}
        assert list_versions(repository) == ["1"]


async def test_version_is_served_and_registered_later_when_the_database_is_away(world: World) -> None:
    async with world.open() as (reloader, repository):
        world.is_away = True
        world.write("2", build_echo(2))
        await look(reloader, 3)
        assert repository.get().model.version == "2"
        assert world.registered == ["1"]

        world.is_away = False
        await look(reloader, 3)

        assert world.registered == ["1", "2"]


async def test_version_is_withdrawn_when_the_database_knows_it_with_other_classes_later(world: World) -> None:
    world.is_away = True
    async with world.open() as (reloader, repository):
        world.write("2", build_echo(2))
        await look(reloader)
        world.is_away, world.conflicting = False, {"1", "2"}
        await look(reloader)

        assert list_codes(repository) == {"1": "model_conflict", "2": "model_conflict"}
        assert len(list_versions(repository)) == 1  # one must go on


async def test_conflict_is_still_told_when_the_file_is_loaded_again(world: World) -> None:
    world.is_away = True
    async with world.open() as (reloader, repository):
        world.is_away, world.conflicting = False, {"1"}
        await look(reloader)
        await reloader.load("model", "1")

        assert list_codes(repository) == {"1": "model_conflict"}
        assert list_versions(repository) == ["1"]  # the last version goes on


async def test_version_goes_on_when_a_pipe_stands_in_the_place_of_its_file(world: World) -> None:
    """A pipe that nobody writes to never ends: reading it would stop every later load, too."""
    async with world.open() as (reloader, repository):
        file = world.directory / "model" / "1" / "model.onnx"
        file.unlink()
        os.mkfifo(file)
        async with asyncio.timeout(WAIT_SECONDS):
            await look(reloader, 3)

        assert list_codes(repository) == {"1": "model_not_loadable"}
        assert list_versions(repository) == ["1"]


async def test_start_is_refused_when_every_version_has_other_classes(world: World) -> None:
    world.conflicting = {"1"}

    with pytest.raises(StartupError, match=r"^model model version 1 has been served with other classes: give"):
        async with world.open():
            pass


async def test_start_goes_on_when_one_version_has_other_classes(world: World) -> None:
    world.write("2", build_echo(2))
    world.conflicting = {"2"}

    async with world.open() as (_, repository):
        assert list_versions(repository) == ["1"]
        assert list_codes(repository) == {"2": "model_conflict"}


async def test_version_is_tried_again_when_loading_it_fails_unexpectedly(world: World) -> None:
    world.broken = {"2"}
    async with world.open() as (reloader, repository):
        before = count_failures()
        world.write("2", build_echo(2))
        world.write("3", build_echo(2))
        await look(reloader)

        assert list_versions(repository) == ["1", "3"]
        assert list_codes(repository) == {"2": "model_not_loadable"}
        assert count_failures() == before + 1

        await look(reloader)
        assert count_failures() == before + 1  # not at each look: the log would be full of it

        record = repository.open_record("model", "2")
        assert record.retry_at is not None
        record.retry_at = asyncio.get_running_loop().time()
        await look(reloader)
        assert count_failures() == before + 2

        world.broken = set()
        record.retry_at = asyncio.get_running_loop().time()
        await look(reloader)
        assert list_versions(repository) == ["1", "2", "3"]
        assert list_codes(repository) == {}


async def test_version_is_forgotten_when_its_file_goes_after_an_unexpected_failure(world: World) -> None:
    world.broken = {"2"}
    async with world.open() as (reloader, repository):
        world.write("2", build_echo(2))
        await look(reloader)
        world.remove("2")
        await look(reloader)

        assert list_codes(repository) == {}
        assert [record.version for record in repository.records()] == ["1"]


async def test_operator_is_told_when_loading_fails_unexpectedly(world: World) -> None:
    world.broken = {"2"}
    async with world.open() as (reloader, repository):
        world.write("2", build_echo(2))
        with pytest.raises(RuntimeError):
            await reloader.load("model", "2")

        assert list_codes(repository) == {"2": "model_not_loadable"}


def read_default(version: str) -> float | None:
    return REGISTRY.get_sample_value("model_version_default", {"model": "model", "model_version": version})


async def test_default_version_is_exported_when_it_changes(world: World) -> None:
    async with world.open() as (reloader, _):
        world.write("2", build_echo(2))
        await look(reloader)
        assert (read_default("1"), read_default("2")) == (0, 1)

        await reloader.pin("model", "1")
        assert (read_default("1"), read_default("2")) == (1, 0)

        await reloader.unload("model", "2")
        assert (read_default("1"), read_default("2")) == (1, None)


async def test_pin_holds_when_a_higher_version_comes_and_after_a_restart(world: World) -> None:
    async with world.open() as (reloader, repository):
        await reloader.pin("model", "1")
        world.write("2", build_echo(2))
        await look(reloader)
        assert repository.get().model.version == "1"

    async with world.open() as (reloader, repository):
        assert repository.get().model.version == "1"
        await reloader.pin("model", None)
        assert repository.get().model.version == "2"

    assert read_pins(world.pins_file) == {}


async def test_pinned_version_goes_on_when_its_file_is_gone(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        await reloader.pin("model", "1")
        world.remove("1")
        await look(reloader)
        assert repository.get().model.version == "1"

        await reloader.pin("model", None)
        await look(reloader, 1)

        assert list_versions(repository) == ["2"]


async def test_highest_version_is_served_when_the_pinned_one_is_gone_at_the_start(world: World) -> None:
    world.write("2", build_echo(2))
    async with world.open() as (reloader, _):
        await reloader.pin("model", "1")
    world.remove("1")

    async with world.open() as (reloader, repository):
        assert repository.get().model.version == "2"
        assert list_codes(repository) == {"1": "model_pin"}

        world.write("1", build_echo(2))
        await look(reloader)

        assert repository.get().model.version == "1"
        assert list_codes(repository) == {}


async def test_pin_is_refused_when_there_is_no_such_version(world: World) -> None:
    async with world.open() as (reloader, _):
        with pytest.raises(UnknownModelError):
            await reloader.pin("model", "2")
        with pytest.raises(UnknownModelError):
            await reloader.pin("other", None)


async def test_pin_is_refused_when_it_cannot_be_kept(world: World) -> None:
    world.pins_file.parent.write_text("a file where DATA_DIR should be")
    world.write("2", build_echo(2))
    async with world.open() as (reloader, repository):
        with pytest.raises(UnavailableError, match="cannot be written"):
            await reloader.pin("model", "1")

        assert repository.get().model.version == "2"


@pytest.mark.parametrize("content", [b"", b"{", b'{"model": 1}', b"[]"])
def test_start_is_refused_when_the_pins_cannot_be_read(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pins.json").write_bytes(content)

    with pytest.raises(StartupError, match="the pins cannot be read"):
        read_pins(tmp_path / "pins.json")


async def test_request_finishes_on_its_version_when_that_is_withdrawn_and_memory_is_free_then(world: World) -> None:
    world.write("2", build_slow())
    rows = np.tile(np.array([0.25, 0.75], np.float32), (8, 1))
    async with world.open() as (reloader, repository):
        served = repository.get()
        gone = weakref.ref(served.model)
        jobs = [ScoreJob(rows, asyncio.get_running_loop().create_future()) for _ in range(2)]
        gc.disable()
        try:
            served.batcher.submit(jobs[0])
            await reloader.unload("model", "2")
            served.batcher.submit(jobs[1])  # of a request that had looked its version up before
            del served
            assert gone() is not None
            answers = [await job.answer for job in jobs]

            async def is_gone() -> bool:  # a moment later: the thread still has to let go of its last batch
                return gone() is None

            await wait_until(is_gone)
        finally:
            gc.enable()
    assert all(np.array_equal(answer.probabilities, rows) for answer in answers)


async def test_memory_does_not_grow_when_versions_come_and_go(world: World) -> None:
    content = build_echo(2, padding="x" * 2_000_000)
    async with world.open() as (reloader, repository):
        used: list[int] = []
        for turn in range(60):
            world.write("2", content)
            served = await reloader.load("model", "2")
            await submit(served.batcher.submit)
            del served
            world.remove("2")
            await look(reloader)
            assert list_versions(repository) == ["1"]
            if turn % 20 == 9:
                used.append(read_rss())

    assert used[-1] - used[0] < 20 * 2**20  # 40 turns that kept their bytes would take 80 MB, twice


async def submit(send: Callable[[ScoreJob], None]) -> None:
    job = ScoreJob(np.full((8, 2), 0.5, np.float32), asyncio.get_running_loop().create_future())
    send(job)
    await job.answer


def read_rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
