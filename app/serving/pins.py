"""Pinned versions, kept in a small file under DATA_DIR so that they survive a restart."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from app.errors import StartupError
from app.files import write_file

PINS_DECODER = msgspec.json.Decoder(dict[str, str])


def read_pins(file: Path) -> dict[str, str]:
    """Return {model: version}; raise StartupError when the file cannot be read: the wrong version might be served."""
    try:
        return PINS_DECODER.decode(file.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, msgspec.DecodeError) as error:
        raise StartupError(f"{file}: the pins cannot be read, repair or remove the file: {error}") from error


def write_pins(file: Path, pins: Mapping[str, str]) -> None:
    """Replace the file as a whole, also when the power fails. Blocks; raises OSError."""
    write_file(file, msgspec.json.encode(pins))
