"""`python -m app model`: see what the server sees in a file, and add what it needs to know."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.errors import StartupError
from app.serving.features import Value
from app.serving.files import read_model_file, write_model_file
from app.serving.graph import list_optional_inputs, set_metadata
from app.serving.metadata import METADATA_KEYS
from app.serving.model import Model
from app.serving.signature import decision_rule


@dataclass(frozen=True, slots=True)
class Packing:
    """What is to be added to a file's metadata, each as on the command line; None adds nothing."""

    feature_names: str | None = None
    classes: str | None = None
    positive_class: str | None = None
    decision_threshold: float | None = None
    missing_values: str | None = None
    output_kind: str | None = None
    example: str | None = None
    training_f1: float | None = None

    def spell(self) -> dict[str, str]:
        """Return the entries as they stand in the file."""
        entries = {
            "feature_names": _spell_list(self.feature_names, numbers=False),
            "classes": _spell_list(self.classes, numbers=True),
            "positive_class": None if self.positive_class is None else json.dumps(self.positive_class),
            "decision_threshold": None if self.decision_threshold is None else repr(self.decision_threshold),
            "missing_values": self.missing_values,
            "output": self.output_kind,
            "example": self.example,
            "training_f1": None if self.training_f1 is None else repr(self.training_f1),
        }
        return {key: value for key, value in entries.items() if value is not None}


def _spell_list(text: str | None, *, numbers: bool) -> str | None:
    """Turn `a,b` into a JSON array, of integers where `numbers` allows it and all are; JSON stays as it is."""
    if text is None or text.lstrip().startswith("["):
        return text
    names: list[str] = text.split(",")
    try:
        return json.dumps([int(name) for name in names] if numbers else names, ensure_ascii=False)
    except ValueError:
        return json.dumps(names, ensure_ascii=False)


def pack_model(file: Path, output: Path, packing: Packing, console: Console | None = None) -> int:
    """Write the file with more metadata, once it has been loaded from these bytes; return 0."""
    try:
        content = set_metadata(read_model_file(file), packing.spell())
    except ValueError as error:
        raise StartupError(f"{file}: not a readable ONNX file: {error}") from error
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from error
    model = _load(file, output, content)
    try:
        write_model_file(output, content)
    except OSError as error:
        raise StartupError(f"{output}: cannot be written: {error.strerror}") from error
    _show(output, model, content, console or Console())
    return 0


def inspect_model(file: Path, console: Console | None = None) -> int:
    """Print what the server sees in a file; return 0, or raise StartupError with the line that refuses it."""
    try:
        content = read_model_file(file)
    except StartupError as error:
        raise StartupError(f"{file}: {error}") from error
    _show(file, _load(file, file, content), content, console or Console())
    return 0


def _load(file: Path, place: Path, content: bytes) -> Model:
    """Load the bytes under the name and version that the place in a repository gives them."""
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
        "missing values": "allowed" if signature.missing_allowed else "refused",
        "rows in one run": "one" if signature.takes_one_row else "any number",
        "inputs with a value of their own": ", ".join(list_optional_inputs(content)) or "none",
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
    console.print(spell_request(example), soft_wrap=True, markup=False, highlight=False)


RULES = {"label": "the graph's label", "argmax": "the most likely"}


def _print_table(console: Console, title: str, rows: Mapping[str, str]) -> None:
    table = Table(title=Text(title), show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(Text(name), Text(value))
    console.print(table)


def spell_request(features: Mapping[str, Value]) -> str:
    """Return a command that asks a server on this machine for one prediction."""
    body = json.dumps({"features": features}, ensure_ascii=False)
    return f"curl -X POST http://127.0.0.1:8000/predict -H 'Content-Type: application/json' -d {shlex.quote(body)}"
