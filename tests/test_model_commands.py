"""`scorekeeper model`: what it shows, what it writes, and that the request it shows is answered."""

import ast
import hashlib
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from rich.console import Console

from app.commands.model import Packing, inspect_model, pack_model
from app.commands.parser import run
from app.errors import StartupError
from app.serving.metadata import METADATA_KEYS
from app.serving.model import Model
from tests.conftest import OpenClient
from tests.support.family_models import FAMILIES, LOGITS, MADE, make_mixture, make_network, make_pipeline
from tests.support.onnx_models import build_echo, convert, write_model
from tests.support.processes import ROOT


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(output: io.StringIO) -> Console:
    return Console(file=output, width=200)


def read_rows(output: io.StringIO) -> dict[str, str]:
    """Return the two columns of every table."""
    lines = [line for line in output.getvalue().splitlines() if line.startswith("│")]
    return {name.strip(): value.strip() for name, value in (line.strip("│").split("│") for line in lines)}


def test_inspect_shows_what_the_server_sees(tmp_path: Path, console: Console, output: io.StringIO) -> None:
    content = make_mixture(
        decision_threshold="0.25", missing_values="allowed", classes='["no", "yes"]', by="me"
    ).content
    file = write_model(tmp_path, content)

    status = inspect_model(file, console)

    assert status == 0
    assert read_rows(output) == {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": f"{len(content):,}",
        "outputs": "p",
        "answer": "probabilities",
        "classes": "'no', 'yes'",
        "score": "probability of yes",
        "predicted class": "score >= 0.25",
        "label output": "none",
        "missing values": "allowed",
        "rows in one run": "any number",
        "inputs with a default value": "weight",
        "metadata": "classes, decision_threshold, missing_values",
        "other metadata": "by",
        "pair_0": "number, pair (FP32)",
        "pair_1": "number, pair (FP32)",
        "member": "boolean, member (BOOL)",
        "city": "text, city (BYTES)",
    }


@pytest.mark.parametrize("name", ["pipeline", "catboost", "batch-of-one", "mixture", "integers"])
async def test_request_that_inspect_shows_is_answered(
    open_client: OpenClient, tmp_path: Path, console: Console, output: io.StringIO, name: str
) -> None:
    file = write_model(tmp_path / "models", FAMILIES[name]().content)

    inspect_model(file, console)

    command = shlex.split(output.getvalue().splitlines()[-1])
    assert command[:4] == ["curl", "-X", "POST", "http://127.0.0.1:8000/predict"]
    header, _, media_type = command[command.index("-H") + 1].partition(": ")
    async with open_client(MODEL_DIR=str(tmp_path / "models")) as client:
        body = command[command.index("-d") + 1].encode()
        answer = await client.post("/predict", content=body, headers={header: media_type})
    assert answer.status_code == 200, answer.text


def test_quotes_and_brackets_in_names_are_shown_as_they_are(
    tmp_path: Path, console: Console, output: io.StringIO
) -> None:
    names = ["[bold]it's[/bold]", '"q"', "größe"]
    file = write_model(tmp_path, build_echo(3, feature_names=json.dumps(names)))

    inspect_model(file, console)

    assert set(names) <= set(read_rows(output))
    assert json.loads(shlex.split(output.getvalue().splitlines()[-1])[-1]) == {"features": dict.fromkeys(names, 0.0)}


def test_pack_writes_what_the_server_reads(tmp_path: Path, console: Console) -> None:
    output = tmp_path / "models" / "network" / "2" / "model.onnx"
    file = write_model(tmp_path / "exported", make_network(2, LOGITS).content)
    packing = Packing(
        feature_names="age,income,city,größe",
        classes="stays,leaves",
        positive_class="stays",
        decision_threshold=0.4,
        missing_values="allowed",
        probability_output="p",
        output_kind="logits",
        batching="off",
        example="[1, 2, 3, 4]",
        training_f1=0.875,
    )

    status = pack_model(file, output, packing, console)

    model = Model("network", "2", output.read_bytes())
    signature = model.signature
    assert status == 0
    assert set(packing.spell()) == METADATA_KEYS - {"missing_text"}
    assert signature.feature_names == ("age", "income", "city", "größe")
    assert (signature.classes, signature.positive_class) == (("stays", "leaves"), "stays")
    assert (signature.decision_threshold, signature.training_f1) == (0.4, 0.875)
    assert (signature.missing_allowed, signature.are_logits) == (True, True)
    assert signature.batching_doubt == 'metadata "batching" is off'
    assert model.example == [1, 2, 3, 4]
    onnx.checker.check_model(onnx.load(str(output)))


def test_pack_keeps_what_it_is_not_told(tmp_path: Path, console: Console) -> None:
    file = write_model(tmp_path, build_echo(2, classes='["a", "b"]', other="x"))

    pack_model(file, file, Packing(decision_threshold=0.1), console)
    pack_model(file, file, Packing(decision_threshold=0.2), console)

    metadata = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
    assert metadata == {"classes": '["a", "b"]', "other": "x", "decision_threshold": "0.2"}


@pytest.mark.parametrize(
    ("classes", "read"),
    [("0,1", (0, 1)), ("1,-1", (1, -1)), ("a,1", ("a", "1")), ('["0", "1"]', ("0", "1"))],
    ids=["integers", "negative", "mixed", "JSON"],
)
def test_classes_are_integers_when_all_are(
    tmp_path: Path, console: Console, classes: str, read: tuple[int | str, ...]
) -> None:
    file = write_model(tmp_path, build_echo(2))

    pack_model(file, file, Packing(classes=classes), console)

    assert Model("echo", "1", file.read_bytes()).signature.classes == read


@pytest.mark.parametrize(
    ("content", "packing", "reason"),
    [
        (build_echo(3), Packing(feature_names="a,b"), "2 names for 3 features"),
        (build_echo(3), Packing(decision_threshold=0.5), "for two classes"),
        (convert("regression", (0, 1)), Packing(), "which may not be probabilities"),
        (b"no model", Packing(), "not a readable ONNX file"),
        (b"", Packing(), "is empty"),
    ],
    ids=["names", "threshold", "regressor", "garbage", "empty"],
)
def test_pack_writes_nothing_when_the_server_could_not_load_it(
    tmp_path: Path, content: bytes, packing: Packing, reason: str
) -> None:
    file = write_model(tmp_path / "exported", content)
    output = write_model(tmp_path / "models", b"as before")

    with pytest.raises(StartupError, match=reason) as refusal:
        pack_model(file, output, packing)

    assert str(refusal.value).startswith(f"{file}: ")
    assert output.read_bytes() == b"as before"
    assert list(output.parent.iterdir()) == [output]


def test_pack_ends_in_one_line_when_the_output_cannot_be_written(tmp_path: Path) -> None:
    file = write_model(tmp_path, build_echo(2))

    with pytest.raises(StartupError, match=r"^/dev/null/1/model\.onnx: cannot be written: Not a directory$"):
        pack_model(file, Path("/dev/null/1/model.onnx"), Packing())


def test_commands_run_without_the_onnx_package(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    code = "import sys; sys.modules['onnx'] = None; from app.commands.parser import run; run(sys.argv[1:])"
    arguments = ["model", "pack", str(MADE / "xgboost.onnx"), "--output", str(output), "--feature-names", "a,b,c,d"]

    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert '{"a": 0.0, "b": 0.0, "c": 0.0, "d": 0.0}' in done.stdout
    assert Model("packed", "1", output.read_bytes()).signature.feature_names == ("a", "b", "c", "d")


def test_inspect_ends_in_one_line_when_the_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        run(["model", "inspect", str(tmp_path / "none.onnx")])

    assert str(ended.value) == f"error: {tmp_path / 'none.onnx'}: cannot be read: No such file or directory"


def test_every_key_of_the_metadata_is_documented() -> None:
    lines = (ROOT / "docs" / "models.md").read_text().splitlines()

    assert {line.split("`")[1] for line in lines if line.startswith("| `") and line.count("|") == 4} >= METADATA_KEYS


def test_every_refusal_in_the_documentation_is_one_of_the_code() -> None:
    table = (ROOT / "docs" / "models.md").read_text().partition("## Why a file is refused")[2]
    documented = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    texts = [text for file in (ROOT / "app" / "serving").glob("*.py") for text in list_texts(file)]

    patterns = [re.sub(r"\\\[\\\.\\\.\\\.\\\]|\d+", ".*", re.escape(phrase)) for phrase in documented]

    assert len(documented) == 19
    assert [pattern for pattern in patterns if not any(re.search(pattern, text) for text in texts)] == []


def list_texts(file: Path) -> list[str]:
    """Return every text in a module, what an f-string fills in as 0."""
    texts = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.JoinedStr):
            texts.append("".join(str(part.value) if isinstance(part, ast.Constant) else "0" for part in node.values))
        elif isinstance(node, ast.Constant):
            texts.append(str(node.value))
    return texts


def test_pipelines_example_has_a_known_category(tmp_path: Path, console: Console, output: io.StringIO) -> None:
    inspect_model(write_model(tmp_path, make_pipeline(zipmap=True).content), console)

    assert '"city": "Basel", "brand": "x"' in output.getvalue()
