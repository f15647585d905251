"""SQL of `model_version`: the versions that some server has loaded."""

from collections.abc import Mapping, Sequence

import msgspec

from app.database.queries import Connection
from app.serving.ordering import version_order

REGISTER_VERSION = """
INSERT INTO model_version AS known (name, version, sha256, classes, positive_class, inputs)
VALUES ($1::text, $2::text, $3::text, $4::jsonb, $5::text, $6::jsonb)
ON CONFLICT (name, version) DO UPDATE
    SET sha256 = excluded.sha256, positive_class = excluded.positive_class, inputs = excluded.inputs, loaded_at = now()
    WHERE known.classes = excluded.classes
RETURNING name
"""


async def register_version(
    connection: Connection,
    name: str,
    version: str,
    sha256: str,
    classes: Sequence[int | str],
    positive_class: str | None,
    inputs: Sequence[Mapping[str, str]],
) -> bool:
    """Record a loaded version; return False when it is already recorded with other classes.

    `inputs` are the features in the model's order, each with `name` and `type`.
    """
    row = await connection.fetchrow(
        REGISTER_VERSION,
        name,
        version,
        sha256,
        msgspec.json.encode(classes).decode(),
        positive_class,
        msgspec.json.encode(inputs).decode(),
    )
    return row is not None


KNOWN_VERSIONS = "SELECT name, version, classes, positive_class FROM model_version"


async def fetch_versions(connection: Connection) -> list[tuple[str, str, tuple[str, ...], str | None]]:
    """Fetch every version in order: its name, its version, its classes as text and its positive class."""
    return [
        (name, version, tuple(str(label) for label in msgspec.json.decode(classes)), positive_class)
        for name, version, classes, positive_class in sorted(
            await connection.fetch(KNOWN_VERSIONS), key=lambda row: (row["name"], version_order(row["version"]))
        )
    ]
