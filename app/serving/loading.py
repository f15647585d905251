"""Find the model files in MODEL_DIR, `<name>/<version>/model.onnx`, and load them."""

import hashlib
import logging
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from app.errors import ScorekeeperError, StartupError
from app.serving.model import Model
from app.serving.ordering import version_order

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Allowed names of models and versions: safe in a URL, a metric label and a path."""

LAYOUT = "<name>/<version>/model.onnx"

MAX_FILE_BYTES = 2 * 1024**3 - 1
"""The size limit of a protocol buffer, and so of an ONNX file."""

VersionKey = tuple[str, str]
"""Name and version."""

TroubleCode = Literal["model_not_loadable", "model_conflict", "model_replaced", "model_removed", "model_pin"]
"""The problems that a version in MODEL_DIR can have."""


class RefusedVersionError(ScorekeeperError):
    """A file is not served: 422 when it cannot be loaded, 409 when the version was served from another file."""

    def __init__(self, code: TroubleCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = 422 if code == "model_not_loadable" else 409


class Stamp(NamedTuple):
    """What shows, without reading a file, whether it was replaced or written to."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """What the start found in MODEL_DIR: models in ascending order of versions, and why other files were refused."""

    default_model: str
    is_default_asked: bool
    """Whether DEFAULT_MODEL is set. If not, MODEL_DIR had only one model, which is the default."""
    models: list[Model]
    stamps: dict[VersionKey, Stamp]
    refusals: dict[VersionKey, str]


def load_models(directory: Path, default_model: str | None) -> LoadedModels:
    """Load every usable model; raise StartupError when the default model has no usable version."""
    stamps = find_files(directory)
    if not stamps:
        raise StartupError(f"MODEL_DIR is {str(directory)!r}, which has no {LAYOUT}")
    default = _choose_default(sorted({name for name, _ in stamps}), default_model)
    models: list[Model] = []
    refusals: dict[VersionKey, str] = {}
    for name, version in stamps:
        try:
            models.append(_load_file(name, version, locate(directory, name, version)))
        except StartupError as error:
            refusals[name, version] = str(error)
    if not any(model.name == default for model in models):
        reasons = [reason for (name, _), reason in refusals.items() if name == default]
        more = f" (and {len(reasons) - 1} more of this model)" if len(reasons) > 1 else ""
        raise StartupError(reasons[-1] + more)
    for reason in refusals.values():
        logger.error("not served: %s", reason)
    return LoadedModels(default, default_model is not None, models, stamps, refusals)


def _choose_default(names: list[str], asked: str | None) -> str:
    allowed = " or ".join(names)
    if asked is None and len(names) > 1:
        raise StartupError(f"DEFAULT_MODEL is not set and MODEL_DIR has several models: set it to {allowed}")
    if asked is not None and asked not in names:
        raise StartupError(f"DEFAULT_MODEL is {asked!r}, allowed is {allowed}")
    return asked or names[0]


def find_files(directory: Path) -> dict[VersionKey, Stamp]:
    """Find the model files, by name, each name's versions in ascending order; skip names that begin with a dot."""
    stamps: dict[VersionKey, Stamp] = {}
    for file in directory.glob("[!.]*/[!.]*/model.onnx"):
        stamp = read_stamp(file)
        if stamp is not None:
            stamps[file.parent.parent.name, file.parent.name] = stamp
    return dict(sorted(stamps.items(), key=lambda item: (item[0][0], version_order(item[0][1]))))


def locate(directory: Path, name: str, version: str) -> Path:
    """Return the path of a version's file."""
    return directory / name / version / "model.onnx"


def read_stamp(file: Path) -> Stamp | None:
    """Return the stamp of a file, None when the file does not exist. Raises OSError when it cannot be checked."""
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _load_file(name: str, version: str, path: Path) -> Model:
    """Read the file once, load the model and warm it up; raise StartupError with the path. Blocks, possibly long."""
    if not NAME.fullmatch(name) or not NAME.fullmatch(version):
        raise StartupError(
            f"{str(path)!r}: names and versions begin with a letter or digit and have up to 100 letters, digits, "
            "'.', '_', '-'"
        )
    try:
        model = Model(name, version, read_model_file(path))
    except StartupError as error:
        raise StartupError(f"{path}: {error}") from error
    logger.info("loaded model %s version %s (%d classes)", name, version, len(model.signature.classes))
    return model


def read_model_file(path: Path) -> bytes:
    """Return a file's content; raise StartupError, without the path, when it cannot be a model."""
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # reading might never end
            raise StartupError("cannot be read: not a regular file")
        if status.st_size > MAX_FILE_BYTES:
            raise StartupError(f"has {status.st_size:,} bytes, an ONNX file has at most {MAX_FILE_BYTES:,}")
        content = path.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot be read: {error.strerror}") from error
    if not content:
        raise StartupError("is empty")
    return content


def load_found(directory: Path, key: VersionKey, stamp: Stamp) -> Model:
    """Load a version's file; raise RefusedVersionError when that fails, or the file no longer has this stamp."""
    file = locate(directory, *key)
    try:
        model = _load_file(*key, file)
        changed = read_stamp(file) != stamp
    except (StartupError, OSError) as error:
        raise RefusedVersionError("model_not_loadable", shorten(str(error), directory, key)) from error
    if changed:
        raise RefusedVersionError("model_not_loadable", "the file changed while it was read")
    return model


def check_bytes(directory: Path, model: Model) -> None:
    """Raise RefusedVersionError when the file of a served version no longer has the bytes that were loaded."""
    try:
        content = read_model_file(locate(directory, model.name, model.version))
    except StartupError as error:
        raise RefusedVersionError("model_not_loadable", str(error)) from error
    if hashlib.sha256(content).hexdigest() != model.sha256:
        raise RefusedVersionError(
            "model_replaced",
            "the file was replaced by one with other content; the version that was loaded before is still served: "
            "give the new file a new version",
        )


def shorten(reason: str, directory: Path, key: VersionKey) -> str:
    """Return a reason without the path of the version's file, for messages that name the version already."""
    return reason.removeprefix(f"{locate(directory, *key)}: ")
