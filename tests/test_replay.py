import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest

from app.replay.sending import is_labelled
from tests.support.processes import WAIT_SECONDS, Server, run_app, start_app, wait_until


async def test_replay_ends_with_equal_f1_values(server: Server) -> None:
    await server.start()

    status, output = await run_app(
        "replay", "--url", server.url, "--rows", "400", "--rate", "400", "--label-delay", "0.2"
    )

    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    table = {row[0]: row[1:] for row in cells}
    assert status == 0, output
    assert table["sent"] == ["400", ""]
    assert table["answered"] == ["400", ""]
    assert table["labelled"] == ["400", ""]
    assert table["server, these rows"] == table["computed from the file"]
    assert table["model_f1_score, window 1h"] == table["computed from the file"]
    assert 0.85 < float(table["computed from the file"][1]) < 0.97
    assert "the two F1 values agree" in output


async def test_replay_with_labels_of_another_truth_ends_with_status_0_and_their_f1(
    server: Server, tmp_path: Path
) -> None:
    await server.start()
    (tmp_path / "labels.csv").write_text("id,repaid\n" + "".join(f"{50000 + row},0\n" for row in range(50)))

    status, output = await run_app(
        "replay",
        *("--url", server.url, "--rows", "50", "--rate", "400", "--label-delay", "0"),
        *("--labels", str(tmp_path / "labels.csv")),
    )

    assert status == 0, output
    assert "0.000000" in output


async def test_replay_without_a_server_says_so() -> None:
    status, output = await run_app("replay", "--url", "http://127.0.0.1:9", "--rows", "1")

    assert status == 1
    assert output.startswith("error: no Scorekeeper answers at http://127.0.0.1:9")
    assert "Traceback" not in output


async def test_replay_with_a_file_that_is_not_there_says_so() -> None:
    status, output = await run_app("replay", "--data", "/nowhere.csv")

    assert status == 1
    assert "error: /nowhere.csv cannot be read" in output


async def test_replay_with_a_wrong_argument_names_what_is_allowed() -> None:
    status, output = await run_app("replay", "--rows", "0")

    assert status == 2
    assert "argument --rows: invalid int (at least 1) value: '0'" in output


async def test_replay_withholds_labels_and_compares_the_others(server: Server) -> None:
    await server.start()

    status, output = await run_app(
        "replay", *("--url", server.url, "--rows", "200", "--rate", "400", "--label-delay", "0", "--label-share", "0.7")
    )

    assert status == 0, output
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines() if "│" in line]
    assert {row[0]: row[1] for row in cells}["labelled"] == "140"
    assert "the two F1 values agree" in output


@pytest.mark.parametrize("share", [0, 0.1, 0.7, 0.9, 1])
def test_labelled_rows_are_the_share_in_every_hundred(share: float) -> None:
    labelled = [is_labelled(number, share) for number in range(1000)]

    assert {round(sum(labelled[start : start + 100]) - 100 * share) for start in range(900)} <= {-1, 0, 1}


async def test_endless_replay_begins_again_and_outlives_a_restart_of_the_server(server: Server) -> None:
    await server.start()
    arguments = ("--loop", "--rows", "50", "--rate", "200", "--label-delay", "0", "--label-share", "0.5")

    async with started_replay("--url", server.url, *arguments) as process:
        before = await wait_until(lambda: count_labels(server, more_than=60))
        await server.kill()
        await server.start()
        after = await wait_until(lambda: count_labels(server, more_than=before["labelled"] + 60))
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(WAIT_SECONDS):
            status = await process.wait()

    assert status == 130
    assert after["labelled"] <= after["predictions"] / 2 + 1


@asynccontextmanager
async def started_replay(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await start_app("replay", *arguments)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def count_labels(server: Server, *, more_than: int) -> dict[str, int] | None:
    """The first window's result when it has so many labels: more than the 25 of one turn."""
    async with httpx2.AsyncClient() as client:
        results = (await client.get(f"{server.url}/quality")).raise_for_status().json()["results"]
    found = [result for result in results[:1] if result["labelled"] > more_than]
    return found[0] if found else None
