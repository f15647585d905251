"""`scorekeeper model` for a directory, and for weights in files of their own."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

from app.commands.model import Packing, inspect_model, pack_model
from app.errors import StartupError
from app.serving.loading import load_models
from app.serving.model import Model
from app.serving.weights import join_weights
from tests.support.family_models import FAMILIES, MADE
from tests.support.onnx_models import Place, build_echo, build_external, write_model

MLFLOW = MADE / "mlflow"


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def check_answers(model: Model) -> None:
    """Check that a model answers as the one that MLflow saved did in scikit-learn."""
    answers = json.loads((MLFLOW / "answers.json").read_text())
    probabilities = model.score(np.array(answers["rows"], dtype=np.float32)).probabilities
    np.testing.assert_allclose(probabilities, answers["probabilities"], atol=1e-5)


def test_directory_of_mlflow_is_packed_with_its_weights(tmp_path: Path, console: Console) -> None:
    output = tmp_path / "model.onnx"

    pack_model(MLFLOW, output, Packing(training_f1=0.9), console)

    check_answers(Model("iris", "1", output.read_bytes()))


def test_directory_of_mlflow_is_served_in_the_repository_when_it_has_all_weights_in_one_file(tmp_path: Path) -> None:
    version = tmp_path / "iris" / "1"
    shutil.copytree(MLFLOW, version)
    onnx.save(onnx.load(str(MLFLOW / "model.onnx")), str(version / "model.onnx"))  # save_as_external_data=False

    (model,) = load_models(tmp_path, None).models

    check_answers(model)


def test_inspect_shows_the_file_of_a_directory(tmp_path: Path, console: Console) -> None:
    (tmp_path / "exported.onnx").write_bytes(build_echo())

    assert inspect_model(tmp_path, console) == 0


def make_directory(folder: Path, *files: str, mlflow: str | None = None) -> Path:
    """Make a directory of empty files, and of what MLflow says of it."""
    folder.mkdir(parents=True)
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if mlflow is not None:
        (folder / "MLmodel").write_text(mlflow)
    return folder


DIRECTORIES: dict[str, tuple[tuple[str, ...], str | None, str]] = {
    "empty": ((), None, "a directory without an ONNX file: name the file that your library exported"),
    "pickle": (("model.pkl", "README"), None, "it has model.pkl: export the model to ONNX first"),
    "several": (("a.onnx", "b.onnx"), None, "several ONNX files: name one of a.onnx, b.onnx"),
    "repository": (
        ("churn/2/model.onnx",),
        None,
        "a model repository .*: name one of its files, such as churn/2/model",
    ),
    "MLflow of another kind": (
        ("model.pkl",),
        "flavors:\n  python_function:\n    data: model.pkl\n  sklearn:\n    code: null\nmlflow_version: 3.0\n",
        "a model that MLflow saved as python_function, sklearn, not as onnx: convert it to ONNX",
    ),
    "MLflow without its file": ((), "flavors:\n  onnx:\n    data: model.onnx\n", "model.onnx: cannot be read: No such"),
}


@pytest.mark.parametrize(("files", "mlflow", "reason"), DIRECTORIES.values(), ids=DIRECTORIES)
def test_inspect_says_what_a_directory_has_and_what_to_do(
    tmp_path: Path, files: tuple[str, ...], mlflow: str | None, reason: str
) -> None:
    folder = make_directory(tmp_path / "folder", *files, mlflow=mlflow)

    with pytest.raises(StartupError, match=reason):
        inspect_model(folder)


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_weights_of_another_file_are_joined(tmp_path: Path, console: Console, place: Place) -> None:
    (tmp_path / "weights.bin").write_bytes(np.eye(3, dtype=np.float32).tobytes())
    file = write_model(tmp_path / "exported", build_external(place))
    shutil.move(tmp_path / "weights.bin", file.parent)

    pack_model(file, tmp_path / "model.onnx", Packing(classes="a,b,c", output_kind="logits"), console)

    model = Model("external", "1", (tmp_path / "model.onnx").read_bytes())
    row = np.log(np.array([[0.5, 0.25, 0.25]], np.float32))
    np.testing.assert_allclose(model.score(row).probabilities, [[0.5, 0.25, 0.25]], rtol=1e-6)
    onnx.checker.check_model(onnx.load(str(tmp_path / "model.onnx"), load_external_data=False))


@pytest.mark.parametrize("name", FAMILIES)
def test_files_with_all_weights_are_not_changed(tmp_path: Path, name: str) -> None:
    content = FAMILIES[name]().content

    assert join_weights(content, tmp_path) == content


WEIGHTS: dict[str, tuple[str, bytes | None, str]] = {
    "outside": ("../weights.bin", bytes(36), "outside the folder"),
    "absolute": ("/etc/passwd", None, "outside the folder"),
    "not there": ("other.bin", None, "is not there"),
    "truncated": ("weights.bin", bytes(35), "is truncated"),
}


@pytest.mark.parametrize(("location", "data", "reason"), WEIGHTS.values(), ids=WEIGHTS)
def test_pack_refuses_weights_that_cannot_be_joined(
    tmp_path: Path, location: str, data: bytes | None, reason: str
) -> None:
    file = write_model(tmp_path, build_external("initializer", location))
    if data is not None:
        (file.parent / location).write_bytes(data)

    with pytest.raises(StartupError, match=reason):
        pack_model(file, tmp_path / "model.onnx", Packing())

    assert not (tmp_path / "model.onnx").exists()
