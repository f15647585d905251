"""The baseline: an ASGI application that reads the body and answers fixed JSON, and does nothing else."""

from collections.abc import Awaitable, Callable
from typing import Any

ANSWER = (
    b'{"prediction":0,"score":0.32852786779403687,"probabilities":{"0":0.6714721322059631,"1":0.32852786779403687}}'
)


async def main(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """Answer any request."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
        return
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(ANSWER)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})
