"""The limit of a test, where pytest-timeout alone would let it hang."""

import signal
from collections.abc import Generator
from typing import Any

import pytest

REPEAT_SECONDS = 15.0
"""Between two signals: pytest must have noted by then that the first one has ended the test."""

SETTINGS = pytest.StashKey[Any]()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, object, object]:
    """Send the signal that ends a test again and again until it is over.

    One that comes while the event loop calls a callback ends nothing: the loop logs what its handler raises.
    """
    is_set = yield
    item.stash[SETTINGS] = settings
    if callable(signal.getsignal(signal.SIGALRM)):
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, REPEAT_SECONDS)
    return is_set


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node: pytest.Item | pytest.Collector) -> None:
    """Limit what fixtures do after a test that has failed: pytest-timeout stops there, for the sake of a debugger."""
    if SETTINGS in node.stash and not node.config.getoption("usepdb"):
        node.config.pluginmanager.hook.pytest_timeout_set_timer(item=node, settings=node.stash[SETTINGS])
