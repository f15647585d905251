"""Names and versions of MODEL_DIR: what is the default, what is found, and what stops the start."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from app.errors import StartupError
from app.serving.batching import open_executor
from app.serving.loading import load_models
from app.serving.repository import ModelRepository, ServedModel, UnknownModelError
from tests.support.batchers import make_score_batcher
from tests.support.onnx_models import build_echo, write_model


def write_versions(directory: Path, name: str, *versions: str) -> None:
    """Write models under these versions, in an order of no meaning."""
    for version in random.Random(0).sample(versions, len(versions)):
        write_model(directory, build_echo(), name, version)


@asynccontextmanager
async def open_repository(directory: Path, default_model: str | None, **pins: str) -> AsyncIterator[ModelRepository]:
    """What a start serves; the batchers are there to be found, nothing is sent through them."""
    loaded = load_models(directory, default_model)
    repository = ModelRepository(loaded.default_model, pins)
    async with open_executor() as executor:
        for model in random.Random(1).sample(loaded.models, len(loaded.models)):
            repository.publish(ServedModel(model, make_score_batcher(model, executor)))
        yield repository


@pytest.mark.parametrize(
    "ascending",
    [
        ["1", "2", "9", "10", "100"],
        ["1.2", "1.9", "1.10", "2.0"],
        ["1.9.9", "1.10.0", "1.10.1"],
        ["v9", "v10"],
        ["2024-12-31", "2025-01-02", "2025-01-10"],
    ],
    ids=["whole", "two parts", "three parts", "prefix", "dates"],
)
async def test_versions_ascend_by_their_numbers(tmp_path: Path, ascending: list[str]) -> None:
    write_versions(tmp_path, "model", *ascending)

    async with open_repository(tmp_path, None) as repository:
        assert [served.model.version for served in repository.all()] == ascending
        assert repository.get().model.version == ascending[-1]


async def test_models_are_listed_by_name_then_version(tmp_path: Path) -> None:
    write_versions(tmp_path, "b", "1", "2")
    write_versions(tmp_path, "a", "3", "10")

    async with open_repository(tmp_path, "a") as repository:
        listed = [(served.model.name, served.model.version) for served in repository.all()]

    assert listed == [("a", "3"), ("a", "10"), ("b", "1"), ("b", "2")]


def test_default_is_the_only_model_when_none_is_set(tmp_path: Path) -> None:
    write_versions(tmp_path, "only", "1")

    assert load_models(tmp_path, None).default_model == "only"


async def test_pinned_version_is_the_default_while_it_is_served(tmp_path: Path) -> None:
    write_versions(tmp_path, "model", "1", "2", "3")

    async with open_repository(tmp_path, None, model="2") as repository:
        pinned = repository.get()
        repository.withdraw(pinned)
        highest = repository.get()

    assert (pinned.model.version, highest.model.version) == ("2", "3")


async def test_version_is_unknown_when_withdrawn(tmp_path: Path) -> None:
    write_versions(tmp_path, "model", "1", "2")

    async with open_repository(tmp_path, None) as repository:
        repository.withdraw(repository.get(None, "2"))

        assert repository.get().model.version == "1"
        with pytest.raises(UnknownModelError, match=r"loaded are 1$"):
            repository.get("model", "2")


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        (None, None, ("b", "10")),
        (None, "9", ("b", "9")),
        ("a", None, ("a", "2")),
        ("a", "1", ("a", "1")),
    ],
    ids=["nothing", "version", "model", "both"],
)
async def test_get_returns_what_is_asked_for(
    tmp_path: Path, name: str | None, version: str | None, found: tuple[str, str]
) -> None:
    write_versions(tmp_path, "a", "1", "2")
    write_versions(tmp_path, "b", "9", "10")

    async with open_repository(tmp_path, "b") as repository:
        model = repository.get(name, version).model

    assert (model.name, model.version) == found


@pytest.mark.parametrize(
    ("name", "version", "loaded"),
    [("c", None, "loaded are a, b"), ("a", "2", "loaded are 1"), ("a", "", "loaded are 1"), (None, "01", "are 9, 10")],
    ids=["model", "version", "empty version", "other spelling"],
)
async def test_get_says_what_is_loaded_when_it_is_not_there(
    tmp_path: Path, name: str | None, version: str | None, loaded: str
) -> None:
    write_versions(tmp_path, "a", "1")
    write_versions(tmp_path, "b", "9", "10")

    async with open_repository(tmp_path, "b") as repository:
        with pytest.raises(UnknownModelError, match=loaded):
            repository.get(name, version)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    write_versions(tmp_path, "model", "1")
    (tmp_path / "README.md").write_text("not a model")
    write_model(tmp_path, build_echo(), "model", ".3-being-copied")
    write_model(tmp_path, build_echo(), ".hidden", "1")
    (tmp_path / "model" / "2").mkdir()
    (tmp_path / "model" / "2" / "notes.txt").write_text("not a model either")

    loaded = load_models(tmp_path, None)

    assert [model.version for model in loaded.models] == ["1"]
    assert loaded.refusals == {}


def test_links_are_followed(tmp_path: Path) -> None:
    file = write_model(tmp_path / "elsewhere", build_echo())
    (tmp_path / "models" / "linked").mkdir(parents=True)
    (tmp_path / "models" / "linked" / "1").symlink_to(file.parent)
    (tmp_path / "models" / "linked" / "2").mkdir()
    (tmp_path / "models" / "linked" / "2" / "model.onnx").symlink_to(file)
    (tmp_path / "models" / "linked" / "3").symlink_to(tmp_path / "gone")

    assert [model.version for model in load_models(tmp_path / "models", None).models] == ["1", "2"]


def test_start_is_refused_when_model_dir_is_empty(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^MODEL_DIR is '.*', which has no <name>/<version>/model\.onnx$"):
        load_models(tmp_path, None)


def test_start_is_refused_when_model_dir_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^MODEL_DIR is "):
        load_models(tmp_path / "missing", None)


def test_start_is_refused_when_model_dir_is_a_file(tmp_path: Path) -> None:
    file = write_model(tmp_path, build_echo())

    with pytest.raises(StartupError, match=r"^MODEL_DIR is "):
        load_models(file, None)


def test_start_is_refused_when_several_models_have_no_default(tmp_path: Path) -> None:
    write_versions(tmp_path, "a", "1")
    write_versions(tmp_path, "b", "1")

    with pytest.raises(StartupError, match=r"^DEFAULT_MODEL is not set .* set it to a or b$"):
        load_models(tmp_path, None)


def test_start_is_refused_when_the_default_is_not_there(tmp_path: Path) -> None:
    write_versions(tmp_path, "a", "1")

    with pytest.raises(StartupError, match=r"^DEFAULT_MODEL is 'A', allowed is a$"):
        load_models(tmp_path, "A")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("with space", "1"),
        ("-option", "1"),
        ("größe", "1"),
        ("line\nbreak", "1"),
        ("model", "1+1"),
        ("model", "٣"),
        ("a" * 101, "1"),
    ],
    ids=["space", "dash first", "umlaut", "line break", "plus", "other digits", "too long"],
)
def test_start_is_refused_when_a_directory_has_another_name(tmp_path: Path, name: str, version: str) -> None:
    write_model(tmp_path, build_echo(), name, version)

    with pytest.raises(StartupError, match="names and versions begin with a letter or digit") as refusal:
        load_models(tmp_path, None)

    assert "\n" not in str(refusal.value)


def test_start_is_refused_when_the_file_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model" / "1" / "model.onnx").mkdir(parents=True)

    with pytest.raises(StartupError, match=r"model/1/model\.onnx: cannot be read: Is a directory$"):
        load_models(tmp_path, None)


def test_good_versions_are_loaded_when_others_are_bad(tmp_path: Path) -> None:
    write_versions(tmp_path, "model", "1", "3")
    bad = write_model(tmp_path, b"not a model", "model", "2")
    write_model(tmp_path, build_echo(), "model", "with space")

    loaded = load_models(tmp_path, None)

    assert [model.version for model in loaded.models] == ["1", "3"]
    assert set(loaded.refusals) == {("model", "2"), ("model", "with space")}
    assert loaded.refusals["model", "2"].startswith(f"{bad}: onnxruntime cannot load it")


def test_start_is_refused_when_the_default_model_has_no_usable_version(tmp_path: Path) -> None:
    write_versions(tmp_path, "other", "1")
    write_model(tmp_path, b"not a model", "model", "1")
    write_model(tmp_path, b"not a model", "model", "2")

    with pytest.raises(StartupError, match=r"model/2/model\.onnx: .* \(and 1 more of this model\)$") as refusal:
        load_models(tmp_path, "model")

    assert "\n" not in str(refusal.value)
