import asyncio
import sys
from pathlib import Path

from tests.processes import ROOT, Server


async def run_replay(*arguments: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "app", "replay", *arguments),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def test_replay_ends_with_equal_f1_values(server: Server) -> None:
    await server.start()

    status, output = await run_replay("--url", server.url, "--rows", "400", "--rate", "400", "--label-delay", "0.2")

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

    status, output = await run_replay(
        *("--url", server.url, "--rows", "50", "--rate", "400", "--label-delay", "0"),
        *("--labels", str(tmp_path / "labels.csv")),
    )

    assert status == 0, output
    assert "0.000000" in output


async def test_replay_without_a_server_says_so() -> None:
    status, output = await run_replay("--url", "http://127.0.0.1:9", "--rows", "1")

    assert status == 1
    assert output.startswith("error: no Scorekeeper answers at http://127.0.0.1:9")
    assert "Traceback" not in output


async def test_replay_with_a_file_that_is_not_there_says_so() -> None:
    status, output = await run_replay("--data", "/nowhere.csv")

    assert status == 1
    assert "error: /nowhere.csv cannot be read" in output


async def test_replay_with_a_wrong_argument_names_what_is_allowed() -> None:
    status, output = await run_replay("--rows", "0")

    assert status == 2
    assert "argument --rows: invalid int (at least 1) value: '0'" in output
