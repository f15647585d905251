"""The models of MODEL_DIR: `<name>/<version>/model.onnx`, looked up by name and version."""

import logging
import re
from pathlib import Path

from app import metrics
from app.errors import NotFoundError, StartupError
from app.serving.files import read_model_file
from app.serving.model import Model

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a model or version may be called: safe in a URL, a metric label and a directory."""

LAYOUT = "<name>/<version>/model.onnx"


class UnknownModelError(NotFoundError):
    """The request names a model or version that is not loaded."""


class ModelRepository:
    """Every loaded model. `models` is {name: {version: model}}, versions in ascending order, the last the default."""

    def __init__(self, models: dict[str, dict[str, Model]], default_model: str) -> None:
        self.models = models
        self.default_model = default_model

    def get(self, name: str | None = None, version: str | None = None) -> Model:
        """Return the model asked for: by default the default model's highest version."""
        versions = self.models.get(self.default_model if name is None else name)
        if versions is None:
            raise UnknownModelError(f"no such model; loaded are {', '.join(self.models)}")
        model = next(reversed(versions.values())) if version is None else versions.get(version)
        if model is None:
            raise UnknownModelError(f"no such version of this model; loaded are {', '.join(versions)}")
        return model

    def all(self) -> list[Model]:
        """Return all models, by name, each name's versions in ascending order."""
        return [model for versions in self.models.values() for model in versions.values()]


def load_repository(directory: Path, default_model: str | None) -> ModelRepository:
    """Load and warm up every model below `directory`; raise StartupError with the file that is at fault."""
    files = sorted(directory.glob("*/*/model.onnx"), key=lambda file: _version_key(file.parent.name))
    if not files:
        raise StartupError(f"MODEL_DIR is {str(directory)!r}, which has no {LAYOUT}")
    models: dict[str, dict[str, Model]] = {name: {} for name in sorted({file.parent.parent.name for file in files})}
    for file in files:
        name, version = file.parent.parent.name, file.parent.name
        models[name][version] = load_model(name, version, file)
    if default_model is None and len(models) > 1:
        raise StartupError(f"DEFAULT_MODEL is not set and MODEL_DIR has several models, allowed is {_or(models)}")
    if default_model is not None and default_model not in models:
        raise StartupError(f"DEFAULT_MODEL is {default_model!r}, allowed is {_or(models)}")
    return ModelRepository(models, default_model or next(iter(models)))


def load_model(name: str, version: str, path: Path) -> Model:
    """Read the file once, load it and warm it up; raise StartupError that names it."""
    if not NAME.fullmatch(name) or not NAME.fullmatch(version):
        raise StartupError(f"{str(path)!r}: names and versions are letters, digits, '.', '_', '-', up to 100")
    try:
        model = Model(name, version, read_model_file(path))
    except StartupError as error:
        raise StartupError(f"{path}: {error}") from error
    metrics.MODEL_INFO.labels(name, version, model.sha256).set(1)
    logger.info("loaded model %s version %s (%d classes)", name, version, len(model.signature.classes))
    return model


def _version_key(version: str) -> list[tuple[bool, int, str]]:
    """Order versions, numbers as numbers: 9 before 10, 1.9 before 1.10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", version)]


def _or(names: dict[str, dict[str, Model]]) -> str:
    return " or ".join(names)
