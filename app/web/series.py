"""The series of requests that exist from the start: an alert must see the first failure of a route, too."""

from collections.abc import Iterable

from starlette.routing import Route

from app import metrics
from app.web.operation import find_operation

STATUSES_OF_ANY = (400, 500, 503)
"""What any handler may answer: its client has gone in the middle of the body, a bug, the server cannot serve it now."""

STATUSES_WITHOUT_ROUTE = {"OTHER": (400, 408, 414, 431, 503), "GET": (404,), "POST": (404,)}
"""By method, what is answered before a route is known: by the connection, which counts OTHER, and for no such path."""


def begin_series_of_routes(routes: Iterable[Route]) -> None:
    """Let the series of every route begin at 0 for each status that its operation declares."""
    for route in routes:
        operation = find_operation(route.endpoint)
        for method in (route.methods or set()) - {"HEAD"}:
            statuses = {*operation.answers, *operation.problems, *STATUSES_OF_ANY}
            metrics.begin_request_series(method, route.path, statuses)
    for method, statuses_without in STATUSES_WITHOUT_ROUTE.items():
        metrics.begin_request_series(method, "unmatched", statuses_without)
