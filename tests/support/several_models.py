"""Several models, and several versions of one."""

from pathlib import Path

from tests.support.family_models import FAMILIES, make_mixture
from tests.support.onnx_models import build_echo, build_imputing, write_model

ROW = [0.2, 0.3, 0.5]
"""Features that the default model takes."""


def write_several(directory: Path) -> dict[str, str]:
    """Write a model of two versions that take different features, and three others; return the settings."""
    write_model(directory / "models", build_echo(3, feature_names='["a", "b", "c"]'), "first", "1")
    write_model(directory / "models", build_imputing(missing_values="allowed"), "first", "2")
    write_model(directory / "models", build_echo(2), "second", "main")
    write_model(directory / "models", make_mixture().content, "mixture", "1")
    write_model(directory / "models", FAMILIES["integers"]().content, "integers", "1")
    return {"MODEL_DIR": str(directory / "models"), "DEFAULT_MODEL": "first"}
