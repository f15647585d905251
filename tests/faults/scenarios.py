"""All scenarios: those of a normal run, and the longer ones before a release."""

from dataclasses import replace

from tests.faults import disk_faults, load_faults, long_faults, postgres_faults, process_faults
from tests.faults.scenario import Scenario, nothing

OS = {"DURABILITY": "os"}
DATABASE = {"DURABILITY": "database"}
SMALL_SPOOL = {"SPOOL_MAX_BYTES": str(64 * 1024**2)}


def list_scenarios(kills: int = 4) -> list[Scenario]:
    """List the scenarios of a normal run; `kills` is how often processes are killed in each."""
    return [
        Scenario("no fault", nothing, seconds=1),
        *list_process_scenarios(kills),
        *list_postgres_scenarios(),
        *list_disk_scenarios(),
        *list_load_scenarios(),
    ]


def list_process_scenarios(kills: int) -> list[Scenario]:
    """List faults of the server's process."""
    killed = process_faults.killed(kills)
    starting = process_faults.killed_while_starting(kills)
    return [
        Scenario("killed, fsync", killed, may_break=True),
        Scenario("killed, os", killed, settings=OS, may_break=True),
        Scenario("killed, database", killed, settings=DATABASE, may_break=True),
        Scenario("killed while starting", starting, may_break=True),
        Scenario("SIGTERM in an outage", process_faults.stopped_in_an_outage, may_break=True),
        Scenario("two processes on a spool", process_faults.second_process),
    ]


def list_postgres_scenarios() -> list[Scenario]:
    """List faults of PostgreSQL and of the network."""
    faults = postgres_faults
    reset = faults.reset_after_commit(5)
    refusing = Scenario("", nothing, settings=DATABASE, may_refuse=True)
    return [
        Scenario("PostgreSQL killed", faults.postgres_killed, seconds=3),
        Scenario("PostgreSQL killed again and again", faults.postgres_killed_again_and_again),
        replace(refusing, name="PostgreSQL killed, database", fault=faults.postgres_killed, seconds=3),
        Scenario("PostgreSQL's last commits lost", faults.last_commits_lost, starts=False, may_break=True),
        Scenario("PostgreSQL absent at start", faults.absent_at_start, starts=False, may_break=True),
        Scenario("PostgreSQL absent, then empty", faults.empty_and_absent_at_start, starts=False, may_break=True),
        Scenario("PostgreSQL frozen", faults.postgres_frozen, seconds=8),
        Scenario("network blackhole", faults.blackhole, seconds=8, by_proxy=True),
        replace(refusing, name="network blackhole, database", fault=faults.blackhole, seconds=8, by_proxy=True),
        Scenario("network slow", faults.slow_network, seconds=3, by_proxy=True),
        Scenario("RST after COMMIT", reset, seconds=3, by_proxy=True),
        replace(refusing, name="RST after COMMIT, database", fault=reset, seconds=3, by_proxy=True, may_refuse=False),
        Scenario("schema renamed", faults.schema_renamed, seconds=4),
        Scenario("PostgreSQL read-only", faults.postgres_read_only, seconds=3),
        Scenario("PostgreSQL's disk full", faults.postgres_full, seconds=4),
    ]


def list_disk_scenarios() -> list[Scenario]:
    """List faults of the spool's disk."""
    faults = disk_faults
    failing = Scenario("", nothing, seconds=3, kernel_aio=False, may_refuse=True)
    once, always = faults.failing_call("fdatasync", "error=EIO:when=1"), faults.failing_call("fdatasync", "error=EIO")
    no_sync = faults.failing_call("fdatasync,fsync", "error=EIO")
    no_space = faults.failing_call("write", "error=ENOSPC")
    return [
        Scenario("disk full", faults.disk_full, starts=False, may_refuse=True, may_break=True),
        Scenario("disk read-only", faults.disk_read_only, starts=False, may_refuse=True, may_break=True),
        Scenario("file too large", faults.file_too_large, seconds=2, may_refuse=True),
        replace(failing, name="fdatasync EIO once", fault=once),
        replace(failing, name="fdatasync EIO always", fault=always),
        replace(failing, name="fdatasync and fsync EIO", fault=no_sync),
        replace(failing, name="write ENOSPC", fault=no_space),
        replace(failing, name="fdatasync slow", fault=faults.slow_flush, seconds=0, may_refuse=False),
        Scenario("segment damaged", faults.bytes_damaged, may_break=True, corrupt=len(faults.REGIONS)),
        Scenario("segment torn", faults.tail_torn, may_break=True),
        Scenario("poison in the spool", faults.poison_in_spool, may_break=True, dead=2),
        Scenario("frame unreadable", faults.frame_unreadable, may_break=True, dead=1),
    ]


def list_load_scenarios() -> list[Scenario]:
    """List kinds of too much."""
    return [
        Scenario(
            "spool full",
            load_faults.spool_full,
            settings=SMALL_SPOOL,
            clients=8,
            batch=1000,
            may_refuse=True,
            alive_seconds=40,
        ),
        Scenario(
            "overload",
            load_faults.overloaded,
            settings=DATABASE,
            by_proxy=True,
            clients=48,
            batch=2000,
            may_refuse=True,
            alive_seconds=45,  # one row and 48 clients try for the two places a second that become free: 5 to 26 s
        ),
    ]


def list_long_scenarios() -> list[Scenario]:
    """List what runs before a release only."""
    return [
        Scenario("lock held 60 s", postgres_faults.table_locked, seconds=60),
        Scenario("clock jumps", long_faults.clock_jumps, starts=False, may_break=True),
        Scenario("PgBouncer", long_faults.behind_pgbouncer, starts=False, may_break=True),
        Scenario("failover", long_faults.failed_over, starts=False, may_break=True),
    ]
