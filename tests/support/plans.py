"""What PostgreSQL reads for a statement."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import asyncpg


async def find_partitions_read(
    connection: asyncpg.Connection, plan_mode: str, statement: str, types: str, values: str
) -> list[str]:
    """Run a statement; return the names of the partitions of which any part was read."""
    await connection.execute(f"SET LOCAL plan_cache_mode = {plan_mode}")
    await connection.execute(f"PREPARE asked ({types}) AS {statement}")
    text = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE asked ({values})")
    read = {node.get("Relation Name", "") for node in walk(json.loads(text)[0]["Plan"]) if node["Actual Loops"]}
    return sorted(name for name in read if name[-8:].isdigit())


def walk(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from walk(below)
