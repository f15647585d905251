"""What a refusal says: onnxruntime's whole reason, and advice that works when it is followed."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper
from skl2onnx import to_onnx
from sklearn.datasets import load_iris
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from app.errors import StartupError
from app.serving.model import Model
from tests.support.onnx_models import add_metadata, build_external, build_graph, declare, name_predictions
from tests.support.processes import ROOT
from tests.support.text_models import build_text_pipeline, score_texts

GUIDE = (ROOT / "docs" / "models.md").read_text()


def build_softmax() -> bytes:
    """Build a model that every version of the operators since 13 can be declared for."""
    node = helper.make_node("Softmax", ["x"], ["p"])
    return build_graph([node], [declare("p", None, 3)], [declare("x", None, 3)])


def read_refusal(content: bytes) -> str:
    """Return why this file is refused."""
    with pytest.raises(StartupError) as refusal:
        Model("model", "1", content)
    return str(refusal.value)


def ask_onnxruntime(content: bytes) -> str:
    """Return the last words of onnxruntime's own reason, which are after the place in its source code."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    with pytest.raises(Exception, match="ONNXRuntimeError") as refusal:
        onnxruntime.InferenceSession(content, options)
    return " ".join(str(refusal.value).split()).rpartition(") ")[2]


def change(content: bytes, edit: Callable[[Any], None]) -> bytes:
    """Return the model after an edit."""
    model = onnx.load_from_string(content)
    edit(model)
    return bytes(model.SerializeToString())


def set_ir(version: int) -> Callable[[Any], None]:
    return lambda model: setattr(model, "ir_version", version)


def set_opset(domain: str, version: int) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        del model.opset_import[:]
        model.opset_import.extend([helper.make_opsetid(domain, version)])

    return edit


@pytest.mark.parametrize(
    "edit", [set_ir(99), set_opset("", 99), set_opset("ai.onnx.ml", 99)], ids=["IR", "ai.onnx", "ai.onnx.ml"]
)
def test_refusal_has_the_versions_when_the_file_is_too_new(edit: Callable[[Any], None]) -> None:
    content = change(build_softmax(), edit)

    refusal = read_refusal(content)

    assert ask_onnxruntime(content) in refusal
    assert "onnxruntime_src" not in refusal


def test_ir_version_that_a_refusal_advises_is_served() -> None:
    refusal = read_refusal(change(build_softmax(), set_ir(99)))

    advised = re.search(r"model\.ir_version = (\d+)", refusal)

    assert advised
    Model("model", "1", change(build_softmax(), set_ir(int(advised[1]))))


def test_opset_that_a_refusal_advises_is_served() -> None:
    refusal = read_refusal(change(build_softmax(), set_opset("", 99)))

    advised = re.search(r"with opset (\d+) of ai\.onnx at most", refusal)

    assert advised
    Model("model", "1", change(build_softmax(), set_opset("", int(advised[1]))))


def test_versions_in_the_documentation_are_onnxruntimes() -> None:
    found = re.search(
        r"IR\nversions up to (\d+) and opsets up to (\d+) \(`ai.onnx`\) and (\d+) \(`ai.onnx.ml`\)", GUIDE
    )

    assert found
    reasons = [
        ask_onnxruntime(change(build_softmax(), edit))
        for edit in (set_ir(99), set_opset("", 99), set_opset("ai.onnx.ml", 99))
    ]
    assert [re.findall(r"\d+", reason)[-1] for reason in reasons] == list(found.groups())


@pytest.mark.parametrize(
    "classifier", [LogisticRegression(max_iter=1000), GradientBoostingClassifier()], ids=["logistic", "boosting"]
)
def test_export_with_float32_is_served_when_that_with_float64_is_refused(classifier: Any) -> None:
    rows, labels = load_iris(return_X_y=True)
    classifier.fit(rows, labels)

    refusal = read_refusal(to_onnx(classifier, rows[:1]).SerializeToString())

    assert 'X[:1].astype("float32")' in refusal
    model = Model("model", "1", to_onnx(classifier, rows[:1].astype("float32")).SerializeToString())
    expected = classifier.predict_proba(rows.astype(np.float32))
    np.testing.assert_allclose(model.score(rows.astype(np.float32)).probabilities, expected, atol=1e-5)


def test_example_of_an_export_is_served_as_scikit_learn_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    example = GUIDE.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)

    exec(compile(example, "docs/models.md", "exec"), {})

    rows, labels = load_iris(return_X_y=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression()).fit(rows, labels)
    model = Model("iris", "1", (tmp_path / "models/iris/1/model.onnx").read_bytes())
    assert name_predictions(model, rows.astype(np.float32)) == classifier.predict(rows).tolist()


FOREIGN: dict[str, tuple[bytes, str]] = {
    "pickle": (pickle.dumps({"model": 1}), "a Python pickle, which is not loaded"),
    "zip": (b"PK\x03\x04 a zip file", "PyTorch's torch.save"),
    "Git LFS": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "web page": (b"<!DOCTYPE html><html></html>", "a web page"),
}


@pytest.mark.parametrize(("content", "advice"), FOREIGN.values(), ids=FOREIGN)
def test_refusal_says_what_a_file_is_when_it_is_no_onnx(content: bytes, advice: str) -> None:
    assert advice in read_refusal(content)


def build_picky() -> bytes:
    """Build an echo that fails on every row with another value than 5."""
    nodes = [
        helper.make_node(
            "Constant", [], ["table"], value=helper.make_tensor("table", onnx.TensorProto.FLOAT, [1], [0])
        ),
        helper.make_node("Constant", [], ["five"], value_float=5.0),
        helper.make_node("Sub", ["x", "five"], ["zero"]),
        helper.make_node("Cast", ["zero"], ["indices"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "indices"], ["zeros"]),
        helper.make_node("Add", ["x", "zeros"], ["p"]),
    ]
    return build_graph(nodes, [declare("p", None, 2)], [declare("x", None, 2)], output="logits")


def test_example_that_a_refusal_advises_is_served() -> None:
    assert 'add one of them as metadata "example"' in read_refusal(build_picky())

    assert Model("model", "1", add_metadata(build_picky(), example="[5, 5]", output="logits")).example == [5, 5]


def test_example_is_not_advised_when_it_is_what_fails() -> None:
    refusal = read_refusal(add_metadata(build_picky(), example="[7, 1]", output="logits"))

    assert 'the metadata "example" must be a row that the model accepts' in refusal


@pytest.mark.parametrize("names", [None, '["a", "b", "c"]'], ids=["without names", "with names"])
def test_names_of_features_are_not_advised_when_they_cannot_help(names: str | None) -> None:
    node = helper.make_node("Concat", ["x", "z"], ["p"], axis=1)
    inputs = [declare("x", None, None), declare("z", None, None)]
    metadata = {} if names is None else {"feature_names": names}

    refusal = read_refusal(build_graph([node], [declare("p", None, 2)], inputs, classes="[0, 1]", **metadata))

    assert "export with a fixed number of features in all but one of them" in refusal
    assert "feature_names" not in refusal


def test_refusal_names_the_locale_and_its_cure_when_a_text_model_needs_one(tmp_path: Path) -> None:
    _, content = build_text_pipeline()

    refusal = score_texts(content, tmp_path, tmp_path / "none", ["good"])

    assert "need the locale en_US.UTF-8, which this machine does not have" in refusal
    assert "localedef -i en_US -f UTF-8 en_US.UTF-8" in refusal


@pytest.mark.parametrize("place", ["initializer", "constant", "subgraph"])
def test_weights_of_another_file_are_advised_to_be_packed(place: Any) -> None:
    assert '"scorekeeper model pack" writes one file' in read_refusal(build_external(place))
