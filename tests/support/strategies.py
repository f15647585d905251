"""What hypothesis sends."""

import json

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.support.answers import BY_NAME

moderate = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""The application is opened once for all examples: none of them may change what the next one is answered."""

NUMBERS = (
    st.integers(-(10**400), 10**400)
    | st.integers(-10, 10)
    | st.floats()
    | st.sampled_from([1e39, -1e39, 3.4028235e38, 5e-324, 10**399, 2**63, 2**64, True])
)
TEXTS = st.text(st.characters(), max_size=300) | st.sampled_from([*BY_NAME, "\0", "\ud800", "a/b~c", "."])
SCALARS = st.none() | st.booleans() | NUMBERS | TEXTS

ANY_JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=6) | st.dictionaries(TEXTS, inner, max_size=6), max_leaves=20
)


@st.composite
def spoilt(draw: st.DrawFn, valid: bytes) -> bytes:
    """Replace a piece of a valid body, possibly an empty one, by any bytes, possibly none."""
    start = draw(st.integers(0, len(valid)))
    stop = draw(st.integers(start, min(len(valid), start + 8)))
    piece = draw(st.binary(max_size=8) | st.sampled_from([b"NaN", b"1e400", b"-", b"null", b'"', b"{", b"]", b"\xff"]))
    return valid[:start] + piece + valid[stop:]


def spell(body: object) -> bytes:
    """Write as JSON, infinity as a number that no float holds; NaN stays, which no parser may take."""
    return json.dumps(body).replace("Infinity", "1e400").encode()
