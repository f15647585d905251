"""Deadlines and limits of a connection, told the time: nothing here waits for a clock."""

import pytest

from app.server.deadlines import (
    ANSWERING,
    BODY,
    CLOSING,
    DISCARDING,
    HEAD,
    IDLE,
    Deadlines,
    Limits,
    RefusedError,
)

LIMITS = Limits(
    head_seconds=10,
    body_seconds=100,
    progress_seconds=20,
    progress_bytes=1000,
    keep_alive_seconds=75,
    write_seconds=60,
    linger_seconds=2,
    target_bytes=50,
    header_bytes=500,
    header_count=3,
    pipelined=2,
)

HEADERS = [(b"host", b"x")]


def connect() -> Deadlines:
    return Deadlines(LIMITS, now=0)


def check(deadlines: Deadlines, now: float, *, is_reading: bool = True) -> str | None:
    """Return how the connection ends at `now`: a verdict, or the words of a refusal."""
    verdict = deadlines.check(now, is_reading=is_reading)
    return f"{verdict.status} {verdict}" if isinstance(verdict, RefusedError) else verdict


def receive_head(deadlines: Deadlines) -> None:
    deadlines.feed(100)
    deadlines.begin_head(0)
    deadlines.begin_body(b"/predict", HEADERS)


def test_a_connection_that_says_nothing_is_closed_when_the_time_for_a_head_is_over() -> None:
    deadlines = connect()

    assert check(deadlines, 9.9) is None
    assert check(deadlines, 10) == "close"
    assert deadlines.phase is CLOSING
    assert check(deadlines, 11.9) is None
    assert check(deadlines, 12) == "abort"


def test_half_a_head_is_refused_ten_seconds_after_the_connection_was_made() -> None:
    deadlines = connect()
    deadlines.feed(30)
    deadlines.begin_head(0)
    deadlines.end_feed(30, 8, b"/pre", [])

    assert deadlines.phase is HEAD
    assert check(deadlines, 9.9) is None
    assert check(deadlines, 10) == "408 the head took longer than 10 s"


def test_half_a_second_head_is_refused_ten_seconds_after_its_first_byte() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_request()
    deadlines.begin_idle(20)
    deadlines.feed(30)
    deadlines.begin_head(0)
    deadlines.end_feed(30, 50, b"/pre", [])

    assert check(deadlines, 59.9) is None
    assert check(deadlines, 60) == "408 the head took longer than 10 s"


def test_a_request_under_way_has_no_deadline() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.take_body()
    deadlines.end_request()

    assert deadlines.phase is ANSWERING
    assert check(deadlines, 1e9) is None


def test_a_body_without_progress_is_refused() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_feed(100, 5, b"/predict", [])
    deadlines.feed(999)
    deadlines.take_body()
    deadlines.end_feed(999, 6, b"/predict", [])

    assert deadlines.phase is BODY
    assert check(deadlines, 24.9) is None
    assert check(deadlines, 25) == "408 the body came slower than 1000 bytes in 20 s"


def test_a_body_with_progress_is_refused_when_the_time_for_all_of_it_is_over() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_feed(100, 0, b"/predict", [])
    for now in range(10, 100, 10):
        deadlines.feed(1000)
        deadlines.take_body()
        deadlines.end_feed(1000, now, b"/predict", [])
        assert check(deadlines, now) is None

    assert check(deadlines, 99.9) is None
    assert check(deadlines, 100) == "408 the body took longer than 100 s"


def test_a_client_owes_nothing_while_we_do_not_read() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_feed(100, 0, b"/predict", [])

    assert check(deadlines, 20, is_reading=False) is None
    assert check(deadlines, 39.9) is None
    assert check(deadlines, 40) == "408 the body came slower than 1000 bytes in 20 s"


def test_an_idle_connection_is_closed_without_an_answer() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_request()
    deadlines.begin_idle(100)

    assert deadlines.phase is IDLE
    assert check(deadlines, 174.9) is None
    assert check(deadlines, 175) == "close"


def test_a_client_that_does_not_take_its_answer_is_cut_off() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.end_request()
    deadlines.pause_writing(100)

    assert check(deadlines, 159.9) is None
    assert check(deadlines, 160) == "abort"
    deadlines.resume_writing()
    assert check(deadlines, 1e9) is None


def test_a_body_that_goes_on_behind_its_answer_is_cut_off() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.discard(100)
    deadlines.feed(10_000)
    deadlines.end_feed(10_000, 101, b"/predict", [])

    assert deadlines.phase is DISCARDING
    assert check(deadlines, 101.9) is None
    assert check(deadlines, 102) == "abort"


def test_a_refused_client_has_some_time_to_read_why() -> None:
    deadlines = connect()
    deadlines.close(50)

    assert check(deadlines, 51.9) is None
    assert check(deadlines, 52) == "abort"


@pytest.mark.parametrize(
    ("target", "headers", "fed", "status", "words"),
    [
        (b"/" + b"x" * 50, HEADERS, 80, 414, "more than the 50 bytes allowed"),
        (b"/", HEADERS * 4, 80, 431, "more than the 3 headers allowed"),
        (b"/", [(b"a", b"x" * 500)], 520, 431, "more than the 500 bytes allowed"),
    ],
)
def test_a_head_beyond_a_limit_is_refused(
    target: bytes, headers: list[tuple[bytes, bytes]], fed: int, status: int, words: str
) -> None:
    deadlines = connect()
    deadlines.feed(fed)
    deadlines.begin_head(0)

    with pytest.raises(RefusedError, match=words) as caught:
        deadlines.begin_body(target, headers)
    assert caught.value.status == status


def test_a_head_at_the_limits_is_taken() -> None:
    deadlines = connect()
    deadlines.feed(5000)  # a long body has come with it
    deadlines.begin_head(0)
    deadlines.begin_body(b"/" * 50, [(b"a", b"x" * 160)] * 3)

    assert deadlines.phase is BODY


def test_an_endless_head_is_refused_before_it_ends() -> None:
    deadlines = connect()
    deadlines.feed(501)
    deadlines.begin_head(0)

    with pytest.raises(RefusedError, match="the headers have more than the 500 bytes allowed"):
        deadlines.end_feed(501, 1, b"/", [])


def test_a_body_of_framing_is_refused() -> None:
    deadlines = connect()
    receive_head(deadlines)
    deadlines.feed(501)

    with pytest.raises(RefusedError, match="too much framing without content"):
        deadlines.end_feed(501, 1, b"/", [])


def test_requests_that_wait_are_bounded() -> None:
    deadlines = connect()
    deadlines.begin_head(1)

    with pytest.raises(RefusedError, match="more than 2 requests wait"):
        deadlines.begin_head(2)
