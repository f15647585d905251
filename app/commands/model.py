"""`scorekeeper model`: show how the server reads a model file, or add metadata to it."""

import argparse
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.commands.arguments import Commands, at_least
from app.commands.model_files import find_model_file
from app.errors import StartupError
from app.files import write_file
from app.serving.features import Value
from app.serving.graph import list_optional_inputs, set_metadata
from app.serving.loading import read_model_file
from app.serving.metadata import METADATA_KEYS
from app.serving.model import Model
from app.serving.signature import Signature, decision_rule
from app.serving.weights import join_weights


def add_parser(commands: Commands) -> argparse.ArgumentParser:
    """Add the command to the command line."""
    parser = commands.add_parser("model", help="show how the server reads a model file, or add metadata to it")
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    inspect = actions.add_parser("inspect", help="show how the server reads the file, with a request to try")
    inspect.add_argument("file", type=Path, metavar="FILE", help="an ONNX file, or the directory in which it is")
    pack = actions.add_parser(
        "pack", help="add metadata, join weights of other files, and write the file, if the server can load the result"
    )
    pack.add_argument("file", type=Path, metavar="FILE", help="an ONNX file, or the directory in which it is")
    pack.add_argument("--output", type=Path, required=True, metavar="FILE", help="the file to write; may be the same")
    pack.add_argument("--feature-names", metavar="A,B,...", help="in the order of the inputs; or a JSON array")
    pack.add_argument("--classes", metavar="A,B,...", help="in the order of the probabilities; or a JSON array")
    pack.add_argument(
        "--positive-class", metavar="CLASS", help="with two classes, the one whose probability is the score"
    )
    pack.add_argument(
        "--decision-threshold",
        type=at_least(0, float, at_most=1),
        help="predict the positive class from this score on",
    )
    pack.add_argument("--missing-values", choices=["allowed", "refused"], help="allowed: null becomes NaN")
    pack.add_argument(
        "--missing-text", metavar="TEXT", help="what a missing text becomes, such as nan; null is allowed"
    )
    pack.add_argument(
        "--probability-output", metavar="NAME", help="of several outputs, the one that has the probabilities"
    )
    pack.add_argument("--output-kind", choices=["probabilities", "logits"], help="what the graph returns")
    pack.add_argument("--batching", choices=["on", "off"], help="off: each row is a run of its own")
    pack.add_argument("--example", metavar="JSON", help="a row that the model accepts, as array or object")
    pack.add_argument("--training-f1", type=at_least(0, float, at_most=1), help="F1 on held-out rows")
    return parser


def run(options: argparse.Namespace) -> int:
    """Inspect or pack the file."""
    if options.action == "inspect":
        return inspect_model(options.file)
    values = {field.name: getattr(options, field.name) for field in fields(Packing)}
    return pack_model(options.file, options.output, Packing(**values))


@dataclass(frozen=True, slots=True)
class Packing:
    """Metadata to add to a file, as written on the command line; None adds nothing."""

    feature_names: str | None = None
    classes: str | None = None
    positive_class: str | None = None
    decision_threshold: float | None = None
    missing_values: str | None = None
    missing_text: str | None = None
    probability_output: str | None = None
    output_kind: str | None = None
    batching: str | None = None
    example: str | None = None
    training_f1: float | None = None

    def spell(self) -> dict[str, str]:
        """Return the metadata entries as they are written to the file."""
        entries = {
            "feature_names": _spell_list(self.feature_names, numbers=False),
            "classes": _spell_list(self.classes, numbers=True),
            "positive_class": None if self.positive_class is None else json.dumps(self.positive_class),
            "decision_threshold": None if self.decision_threshold is None else repr(self.decision_threshold),
            "missing_values": self.missing_values,
            "missing_text": self.missing_text,
            "probability_output": self.probability_output,
            "output": self.output_kind,
            "batching": self.batching,
            "example": self.example,
            "training_f1": None if self.training_f1 is None else repr(self.training_f1),
        }
        return {key: value for key, value in entries.items() if value is not None}


def _spell_list(text: str | None, *, numbers: bool) -> str | None:
    """Turn `a,b` into a JSON array, of integers if `numbers` is true and all are integers; leave JSON unchanged."""
    if text is None or text.lstrip().startswith("["):
        return text
    names: list[str] = text.split(",")
    try:
        return json.dumps([int(name) for name in names] if numbers else names, ensure_ascii=False)
    except ValueError:
        return json.dumps(names, ensure_ascii=False)


def pack_model(file: Path, output: Path, packing: Packing, console: Console | None = None) -> int:
    """Add metadata, load the model from the result as the server does, then write it; return 0. Raises StartupError."""
    file = find_model_file(file)
    try:
        content = set_metadata(join_weights(read_model_file(file), file.parent), packing.spell())
    except ValueError as error:
        raise StartupError(f"{file}: not a readable ONNX file: {error}") from error
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from error
    model = _load(file, output, content)
    try:
        write_file(output, content, mode=0o644)  # the server may run as another user
    except OSError as error:
        raise StartupError(f"{output}: cannot be written: {error.strerror}") from error
    _show(output, model, content, console or Console())
    return 0


def inspect_model(file: Path, console: Console | None = None) -> int:
    """Print how the server reads a file; return 0, or raise StartupError with the reason for which it is refused."""
    file = find_model_file(file)
    try:
        content = read_model_file(file)
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from error
    _show(file, _load(file, file, content), content, console or Console())
    return 0


def _load(file: Path, place: Path, content: bytes) -> Model:
    """Load the bytes with the name and version of `place`, a path in a repository."""
    try:
        return Model(place.absolute().parent.parent.name, place.absolute().parent.name, content)
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from error


def _show(file: Path, model: Model, content: bytes, console: Console) -> None:
    signature = model.signature
    is_binary = signature.positive_index is not None
    rule = decision_rule(signature)
    facts = {
        "sha256": model.sha256,
        "bytes": f"{len(content):,}",
        "outputs": ", ".join(filter(None, [signature.label_output, signature.probability_output])),
        "answer": "logits" if signature.are_logits else "probabilities",
        "classes": ", ".join(map(repr, signature.classes)),
        "score": f"probability of {signature.positive_class}" if is_binary else "probability of the predicted class",
        "predicted class": f"score >= {signature.decision_threshold}" if rule == "threshold" else RULES[rule],
        "label output": _describe_label(signature),
        "missing values": "allowed" if signature.missing_allowed else "refused",
        "rows in one run": "any number"
        if signature.batching_doubt is None
        else f"one, because {signature.batching_doubt}",
        "inputs with a default value": ", ".join(list_optional_inputs(content)) or "none",
        "metadata": ", ".join(sorted(set(model.metadata) & METADATA_KEYS)) or "none",
        "other metadata": ", ".join(sorted(set(model.metadata) - METADATA_KEYS)) or "none",
    }
    _print_table(console, str(file), facts)
    features = {
        feature.name: f"{feature.kind}, {one.name} ({one.type.datatype})"
        for one in signature.inputs
        for feature in signature.features[one.start : one.stop]
    }
    _print_table(console, f"{len(features):,} features, in this order", features)
    example = dict(zip(signature.feature_names, model.example, strict=True))
    console.print(_spell_request(example), soft_wrap=True, markup=False, highlight=False)


def _describe_label(signature: Signature) -> str:
    if signature.label_output is None:
        return "none"
    return "trusted" if signature.label_doubt is None else f"not used, because {signature.label_doubt}"


RULES = {"label": "the graph's label", "argmax": "the most likely"}


def _print_table(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=Text(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    console.print(table)


def _spell_request(features: Mapping[str, Value]) -> str:
    """Return a shell command that asks a server on this machine for one prediction."""
    body = json.dumps({"features": features}, ensure_ascii=False)
    return f"curl -X POST http://127.0.0.1:8000/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"
