"""Connect to PostgreSQL: the parameters of the URL as psql takes them, READ COMMITTED, only UTF8."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qsl, quote, urlencode

import asyncpg
from asyncpg.transaction import Transaction

from app.errors import StartupError

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 5.0
"""Limit for one attempt to connect, unless the URL has `connect_timeout`; on one network it takes milliseconds."""

CLOSE_SECONDS = 5.0
"""Limit for the orderly end of a connection that is not used."""

IGNORED = frozenset(
    {
        *("client_encoding", "fallback_application_name", "gssdelegation", "keepalives", "keepalives_count"),
        *("keepalives_idle", "keepalives_interval", "max_protocol_version", "min_protocol_version", "replication"),
        *("sslcertmode", "sslcompression", "sslsni", "tcp_user_timeout"),
    }
)
"""Parameters of libpq that change nothing here: statements have time limits, texts are sent as UTF8."""

CHOICES = {
    "channel_binding": ("disable", "prefer", "require"),
    "gssencmode": ("disable", "prefer"),
    "load_balance_hosts": ("disable", "random"),
}
"""Parameters of libpq that are checked and then ignored. Without GSSAPI, psql refuses `gssencmode=require` too."""

REFUSED = frozenset({"hostaddr", "require_auth", "requirepeer", "scram_client_key", "scram_server_key", "sslcrldir"})
"""Parameters of libpq that must not be ignored, and that asyncpg does not know."""

Isolation = Literal["read_committed", "read_uncommitted", "repeatable_read", "serializable"]

PINNED = "default_transaction_isolation"
"""A setting of the session: labels of concurrent writers need READ COMMITTED, whatever the database's default is."""


@dataclass(frozen=True, slots=True)
class Address:
    """A URL without the parameters that asyncpg would send to the server, and what they ask for."""

    url: str
    timeout: float
    options: Mapping[str, Any]


class EncodingError(asyncpg.InterfaceError):
    """The database's encoding cannot store every text."""


class PinnedConnection(asyncpg.Connection):
    """A connection whose transactions are READ COMMITTED unless told otherwise, also behind a connection pooler."""

    __slots__ = ()

    def transaction(
        self, *, isolation: Isolation | None = None, readonly: bool = False, deferrable: bool = False
    ) -> Transaction:
        """Return a transaction, or a savepoint in the one that is under way."""
        if isolation is None and not self.is_in_transaction():
            isolation = "read_committed"
        return super().transaction(isolation=isolation, readonly=readonly, deferrable=deferrable)


class Connector:
    """Opens connections to one URL. Raises StartupError when the URL has a wrong parameter."""

    def __init__(self, url: str, application: str = "scorekeeper") -> None:
        self.address = read_address(url)
        self._settings = {"application_name": application, PINNED: "read committed"}
        if "application_name=" in url.partition("?")[2]:
            del self._settings["application_name"]

    async def connect(self, **options: Any) -> asyncpg.Connection:
        """Open a connection with these options of asyncpg; raise EncodingError unless the database has UTF8."""
        try:
            connection = await self._connect(options)
        except asyncpg.PostgresError as error:
            if PINNED not in self._settings or PINNED not in str(error):
                raise
            # PgBouncer refuses settings that it does not know; explicit transactions are pinned all the same.
            del self._settings[PINNED]
            connection = await self._connect(options)
        encoding = getattr(connection.get_settings(), "server_encoding", "UTF8")
        if encoding == "UTF8":
            return connection
        await connection.close(timeout=CLOSE_SECONDS)
        raise EncodingError(
            f"the database has the encoding {encoding}, allowed is UTF8: "
            "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        )

    async def _connect(self, options: Mapping[str, Any]) -> asyncpg.Connection:
        wanted = {
            "connection_class": PinnedConnection,
            "timeout": self.address.timeout,
            **options,
            **self.address.options,
        }
        return await asyncpg.connect(self.address.url, server_settings=dict(self._settings), **wanted)


async def connect(url: str, application: str = "scorekeeper") -> asyncpg.Connection:
    """Open one connection."""
    return await Connector(url, application).connect()


def read_address(url: str) -> Address:
    """Take the parameters out of a URL that asyncpg would pass to the server as settings; raise StartupError."""
    head, _, query = url.partition("?")
    given = dict(parse_qsl(query, keep_blank_values=True))
    kept = {name: value for name, value in given.items() if name not in IGNORED | CHOICES.keys()}
    for name in sorted(REFUSED & kept.keys()):
        raise StartupError(f"DATABASE_URL has the parameter {name}, which is not supported")
    for name, allowed in CHOICES.items():
        if given.get(name) and given[name] not in allowed:
            raise _refuse(name, given[name], ", ".join(allowed))
    if given.get("channel_binding") == "require":
        logger.warning("DATABASE_URL has channel_binding=require, which is not supported: use sslmode=verify-full")
    timeout = _read_timeout(kept.pop("connect_timeout", ""))
    options = _read_tls(kept)
    if kept == given:
        return Address(url, timeout, options)
    return Address(head + ("?" + urlencode(kept, quote_via=quote) if kept else ""), timeout, options)


def _read_timeout(text: str) -> float:
    """Return a number of seconds, at least 2 as in libpq; nothing, zero or less is our own limit."""
    try:
        seconds = int(text or "0")
    except ValueError:
        raise _refuse("connect_timeout", text, "a whole number of seconds") from None
    return max(2.0, seconds) if seconds > 0 else CONNECT_TIMEOUT_SECONDS


def _read_tls(kept: dict[str, str]) -> dict[str, Any]:
    """Replace spellings of TLS parameters that asyncpg does not know; return options for asyncpg."""
    if kept.get("ssl") == "true":  # JDBC's
        del kept["ssl"]
        kept.setdefault("sslmode", "require")
    if kept.pop("requiressl", "0") == "1":
        kept.setdefault("sslmode", "require")
    if kept.get("sslrootcert") != "system":
        return {}
    mode = kept.pop("sslmode", "verify-full")
    if mode != "verify-full":
        raise _refuse("sslmode", mode, "verify-full with sslrootcert=system")
    del kept["sslrootcert"]
    return {"ssl": True}


def _refuse(name: str, value: str, allowed: str) -> StartupError:
    return StartupError(f"DATABASE_URL has {name}={value}, allowed is {allowed}")
