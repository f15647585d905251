"""Names and versions of MODEL_DIR: what is the default, what is found, and what stops the start."""

import random
from pathlib import Path

import pytest

from app.errors import StartupError
from app.serving.repository import UnknownModelError, load_repository
from tests.onnx_models import build_echo, write_model


def write_versions(directory: Path, name: str, *versions: str) -> None:
    """Write models under these versions, in an order of no meaning."""
    for version in random.Random(0).sample(versions, len(versions)):
        write_model(directory, build_echo(), name, version)


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
def test_versions_ascend_by_their_numbers(tmp_path: Path, ascending: list[str]) -> None:
    write_versions(tmp_path, "model", *ascending)

    repository = load_repository(tmp_path, None)

    assert [model.version for model in repository.all()] == ascending
    assert repository.get().version == ascending[-1]


def test_models_are_listed_by_name_then_version(tmp_path: Path) -> None:
    write_versions(tmp_path, "b", "1", "2")
    write_versions(tmp_path, "a", "3", "10")

    listed = [(model.name, model.version) for model in load_repository(tmp_path, "a").all()]

    assert listed == [("a", "3"), ("a", "10"), ("b", "1"), ("b", "2")]


def test_default_is_the_only_model_when_none_is_set(tmp_path: Path) -> None:
    write_versions(tmp_path, "only", "1")

    assert load_repository(tmp_path, None).default_model == "only"


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
def test_get_returns_what_is_asked_for(
    tmp_path: Path, name: str | None, version: str | None, found: tuple[str, str]
) -> None:
    write_versions(tmp_path, "a", "1", "2")
    write_versions(tmp_path, "b", "9", "10")

    model = load_repository(tmp_path, "b").get(name, version)

    assert (model.name, model.version) == found


@pytest.mark.parametrize(
    ("name", "version", "loaded"),
    [("c", None, "loaded are a, b"), ("a", "2", "loaded are 1"), ("a", "", "loaded are 1"), (None, "01", "are 9, 10")],
    ids=["model", "version", "empty version", "other spelling"],
)
def test_get_says_what_is_loaded_when_it_is_not_there(
    tmp_path: Path, name: str | None, version: str | None, loaded: str
) -> None:
    write_versions(tmp_path, "a", "1")
    write_versions(tmp_path, "b", "9", "10")
    repository = load_repository(tmp_path, "b")

    with pytest.raises(UnknownModelError, match=loaded):
        repository.get(name, version)


def test_other_files_are_ignored(tmp_path: Path) -> None:
    write_versions(tmp_path, "model", "1")
    (tmp_path / "README.md").write_text("not a model")
    (tmp_path / "model" / "2").mkdir()
    (tmp_path / "model" / "2" / "notes.txt").write_text("not a model either")

    assert [model.version for model in load_repository(tmp_path, None).all()] == ["1"]


def test_links_are_followed(tmp_path: Path) -> None:
    file = write_model(tmp_path / "elsewhere", build_echo())
    (tmp_path / "models" / "linked").mkdir(parents=True)
    (tmp_path / "models" / "linked" / "1").symlink_to(file.parent)
    (tmp_path / "models" / "linked" / "2").mkdir()
    (tmp_path / "models" / "linked" / "2" / "model.onnx").symlink_to(file)
    (tmp_path / "models" / "linked" / "3").symlink_to(tmp_path / "gone")

    assert [model.version for model in load_repository(tmp_path / "models", None).all()] == ["1", "2"]


def test_start_is_refused_when_model_dir_is_empty(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^MODEL_DIR is '.*', which has no <name>/<version>/model\.onnx$"):
        load_repository(tmp_path, None)


def test_start_is_refused_when_model_dir_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match=r"^MODEL_DIR is "):
        load_repository(tmp_path / "missing", None)


def test_start_is_refused_when_model_dir_is_a_file(tmp_path: Path) -> None:
    file = write_model(tmp_path, build_echo())

    with pytest.raises(StartupError, match=r"^MODEL_DIR is "):
        load_repository(file, None)


def test_start_is_refused_when_several_models_have_no_default(tmp_path: Path) -> None:
    write_versions(tmp_path, "a", "1")
    write_versions(tmp_path, "b", "1")

    with pytest.raises(StartupError, match=r"^DEFAULT_MODEL is not set .* allowed is a or b$"):
        load_repository(tmp_path, None)


def test_start_is_refused_when_the_default_is_not_there(tmp_path: Path) -> None:
    write_versions(tmp_path, "a", "1")

    with pytest.raises(StartupError, match=r"^DEFAULT_MODEL is 'A', allowed is a$"):
        load_repository(tmp_path, "A")


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("with space", "1"),
        (".hidden", "1"),
        ("-option", "1"),
        ("größe", "1"),
        ("line\nbreak", "1"),
        ("model", "1+1"),
        ("model", "٣"),
        ("a" * 101, "1"),
    ],
    ids=["space", "hidden", "dash first", "umlaut", "line break", "plus", "other digits", "too long"],
)
def test_start_is_refused_when_a_directory_has_another_name(tmp_path: Path, name: str, version: str) -> None:
    write_model(tmp_path, build_echo(), name, version)

    with pytest.raises(StartupError, match="names and versions are letters, digits") as refusal:
        load_repository(tmp_path, None)

    assert "\n" not in str(refusal.value)


def test_start_is_refused_when_the_file_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "model" / "1" / "model.onnx").mkdir(parents=True)

    with pytest.raises(StartupError, match=r"model/1/model\.onnx: cannot be read: Is a directory$"):
        load_repository(tmp_path, None)
