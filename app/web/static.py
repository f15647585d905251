"""Files that change rarely: a client asks each time, and is answered 304 if it has the content already."""

import gzip
import hashlib
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response


@dataclass(frozen=True, slots=True)
class File:
    """Content, plain and compressed, with its ETag."""

    content: bytes
    compressed: bytes
    media_type: str
    tag: str

    @classmethod
    def make(cls, content: bytes, media_type: str) -> "File":
        """Make a file of some content: compress it and compute its tag."""
        return cls(
            content, gzip.compress(content, mtime=0), media_type, f'W/"{hashlib.sha256(content).hexdigest()[:32]}"'
        )


def answer_file(request: Request, file: File, headers: dict[str, str] | None = None) -> Response:
    """Answer 200 with the file, or 304 when the client has it."""
    headers = {"ETag": file.tag, "Cache-Control": "no-cache", "Vary": "Accept-Encoding", **(headers or {})}
    if file.tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    if "gzip" not in request.headers.get("accept-encoding", ""):
        return Response(file.content, headers=headers, media_type=file.media_type)
    return Response(file.compressed, headers={**headers, "Content-Encoding": "gzip"}, media_type=file.media_type)
