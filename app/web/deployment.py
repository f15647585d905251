"""What /openapi.json depends on in this process: the loaded models and a few settings."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from app.serving.features import FeatureKind, ModelInput, Scalar
from app.serving.model import Model
from app.serving.repository import ModelRepository
from app.serving.signature import ClassName, Signature


class FeatureShape(NamedTuple):
    """The values that a feature may have; `low` and `high` bound numbers."""

    name: str
    kind: FeatureKind
    missing_allowed: bool
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Versions of a model that take the same features. `is_default_model`: requests need not name it."""

    name: str
    versions: tuple[str, ...]
    features: tuple[FeatureShape, ...]
    inputs: tuple[ModelInput, ...]
    example: tuple[Scalar | tuple[Scalar, ...], ...]
    classes: tuple[ClassName, ...]
    max_rows: int
    is_default_model: bool
    has_default_version: bool


@dataclass(frozen=True, slots=True)
class Deployment:
    """The loaded models, the default first, and settings. Equal while nothing changes; keeps no model in memory."""

    models: tuple[ModelShape, ...]
    max_rows: int
    windows: tuple[str, ...]

    def examples(self) -> Mapping[str, object]:
        """Return an example for each parameter by name; this process has an answer for it."""
        first = self.models[0]
        return {
            "model": first.name,
            "version": first.versions[-1],
            "class": str(first.classes[0]),
            "window": self.windows[0],
        }


def describe_models(repository: ModelRepository) -> tuple[ModelShape, ...]:
    """Describe the loaded models, the default first."""
    groups: dict[tuple[str, tuple[FeatureShape, ...], tuple[ModelInput, ...]], list[Model]] = {}
    for model in (served.model for served in repository.all()):
        group = (model.name, _describe_features(model.signature), model.signature.inputs)
        groups.setdefault(group, []).append(model)
    shapes = [
        ModelShape(
            name=name,
            versions=tuple(model.version for model in models),
            features=features,
            inputs=inputs,
            example=tuple(tuple(value) if isinstance(value, list) else value for value in models[-1].example),
            classes=models[-1].signature.classes,
            max_rows=min(model.signature.max_rows for model in models),
            is_default_model=name == repository.default_model,
            has_default_version=repository.get(name).model in models,
        )
        for (name, features, inputs), models in groups.items()
    ]
    return tuple(sorted(shapes, key=lambda one: (not one.is_default_model, not one.has_default_version)))


def _describe_features(signature: Signature) -> tuple[FeatureShape, ...]:
    """Return the values that each feature of a row may have."""
    return tuple(
        FeatureShape(one.name, one.kind, one.missing_allowed, one.type.low, one.type.high) for one in signature.features
    )
