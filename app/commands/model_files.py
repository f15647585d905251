"""Find the ONNX file that an operator means by a path: a file, or a directory as MLflow and exporters write it."""

import re
from collections.abc import Sequence
from pathlib import Path

from app.errors import StartupError
from app.serving.formats import EXPORT_FIRST
from app.serving.loading import LAYOUT

MLFLOW_FILE = "MLmodel"
FOREIGN_SUFFIXES = frozenset(
    {".pkl", ".pickle", ".joblib", ".pt", ".pth", ".keras", ".h5", ".cbm", ".ubj", ".safetensors"}
)
"""Endings of files in which other libraries keep models."""


def find_model_file(path: Path) -> Path:
    """Return the path itself, or the ONNX file in a directory; raise StartupError with what the directory has."""
    if not path.is_dir():
        return path
    found = sorted(file for file in path.iterdir() if file.suffix == ".onnx")
    if (mlflow := path / MLFLOW_FILE).is_file():
        return _find_mlflow_file(path, mlflow.read_text(encoding="utf-8", errors="replace"))
    if len(found) == 1:
        return found[0]
    if found:
        raise StartupError(f"{path}: a directory with several ONNX files: name one of {_list_names(found)}")
    raise StartupError(f"{path}: {_describe_directory(path)}")


def _find_mlflow_file(path: Path, description: str) -> Path:
    """Return the ONNX file of a directory that MLflow has saved."""
    flavors = re.search(r"^flavors:\n((?:[ \t].*\n?)*)", description, re.MULTILINE)
    names = re.findall(r"^  (\w+):", flavors[1], re.MULTILINE) if flavors else []
    onnx = re.search(r"^  onnx:\n((?:    .*\n?)*)", flavors[1], re.MULTILINE) if flavors else None
    data = re.search(r"^    data: (.+?)\s*$", onnx[1], re.MULTILINE) if onnx else None
    if data is None:
        raise StartupError(
            f"{path}: a model that MLflow saved as {', '.join(names) or 'another kind'}, not as onnx: convert it to "
            "ONNX and save that with mlflow.onnx.save_model"
        )
    return path / data[1].strip("'\"")


def _describe_directory(path: Path) -> str:
    versions = sorted(path.glob("[!.]*/[!.]*/model.onnx"))
    if versions:
        return f"a model repository ({LAYOUT}): name one of its files, such as {versions[0].relative_to(path)}"
    foreign = sorted(file for file in path.iterdir() if file.suffix in FOREIGN_SUFFIXES)
    if foreign:
        return f"a directory without an ONNX file; it has {_list_names(foreign)}: {EXPORT_FIRST}"
    return "a directory without an ONNX file: name the file that your library exported"


def _list_names(files: Sequence[Path]) -> str:
    names = [file.name for file in files[:5]]
    return ", ".join(names) + (f" and {len(files) - 5} more" if len(files) > 5 else "")
