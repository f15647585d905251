"""Model files: which lie in MODEL_DIR, `<name>/<version>/model.onnx`, and how one becomes a model."""

import hashlib
import logging
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from app.errors import ScorekeeperError, StartupError
from app.serving.model import Model

logger = logging.getLogger(__name__)

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""What a model or version may be called: safe in a URL, a metric label and a directory."""

LAYOUT = "<name>/<version>/model.onnx"

MAX_FILE_BYTES = 2 * 1024**3 - 1
"""What a protocol buffer, and so an ONNX file, can have."""

VersionKey = tuple[str, str]
"""Name and version."""


TroubleCode = Literal["model_not_loadable", "model_conflict", "model_replaced", "model_removed", "model_pin"]
"""What may be wrong with a version in MODEL_DIR."""


class RefusedVersionError(ScorekeeperError):
    """A file is not served as it is: 422 when it cannot be, 409 when something else of this version is in the way."""

    def __init__(self, code: TroubleCode, detail: str) -> None:
        super().__init__(detail)
        self.code = code
        self.status = 422 if code == "model_not_loadable" else 409


class Stamp(NamedTuple):
    """What tells, without reading a file, that it is another one or has been written to."""

    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


@dataclass(frozen=True, slots=True)
class LoadedModels:
    """What the start found in MODEL_DIR: models in ascending order of versions, and why the others are not usable."""

    default_model: str
    is_default_asked: bool
    """DEFAULT_MODEL is set; else the default is the only model that there was."""
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
            models.append(load_file(name, version, locate(directory, name, version)))
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
        raise StartupError(f"DEFAULT_MODEL is not set and MODEL_DIR has several models, allowed is {allowed}")
    if asked is not None and asked not in names:
        raise StartupError(f"DEFAULT_MODEL is {asked!r}, allowed is {allowed}")
    return asked or names[0]


def find_files(directory: Path) -> dict[VersionKey, Stamp]:
    """Find the model files, by name, each name's versions in ascending order; what begins with a dot is passed over."""
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
    """Return the stamp of a file, None when there is no such file. Raises OSError when that cannot be told."""
    try:
        status = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Stamp(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def load_file(name: str, version: str, path: Path) -> Model:
    """Read the file once, load it and warm it up; raise StartupError that names it. Blocks, for a large one long."""
    if not NAME.fullmatch(name) or not NAME.fullmatch(version):
        raise StartupError(f"{str(path)!r}: names and versions are letters, digits, '.', '_', '-', up to 100")
    try:
        model = Model(name, version, read_model_file(path))
    except StartupError as error:
        raise StartupError(f"{path}: {error}") from error
    logger.info("loaded model %s version %s (%d classes)", name, version, len(model.signature.classes))
    return model


def read_model_file(path: Path) -> bytes:
    """Return all of a file; raise StartupError for what cannot be a model, with a line that does not name it."""
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode) or stat.S_ISCHR(status.st_mode):  # reading would not end
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
    """Load a version's file as it was found; raise RefusedVersionError when it cannot be, or is another by now."""
    file = locate(directory, *key)
    try:
        model = load_file(*key, file)
        changed = read_stamp(file) != stamp
    except (StartupError, OSError) as error:
        raise RefusedVersionError("model_not_loadable", shorten(str(error), directory, key)) from error
    if changed:
        raise RefusedVersionError("model_not_loadable", "the file has changed while it was read")
    return model


def check_bytes(directory: Path, model: Model) -> None:
    """Raise RefusedVersionError when the file of a served version has other bytes than the model was loaded from."""
    try:
        content = locate(directory, model.name, model.version).read_bytes()
    except OSError as error:
        raise RefusedVersionError("model_not_loadable", f"cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != model.sha256:
        raise RefusedVersionError(
            "model_replaced",
            "the file has other bytes than what is served under this version, which goes on: "
            "give the new file a new version",
        )


def shorten(reason: str, directory: Path, key: VersionKey) -> str:
    """Return a reason without the path of the version's file, for where the version is named anyway."""
    return reason.removeprefix(f"{locate(directory, *key)}: ")


def version_order(version: str) -> list[tuple[bool, int, str]]:
    """Order versions, numbers as numbers: 9 before 10, 1.9 before 1.10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in re.split(r"([0-9]+)", version)]
