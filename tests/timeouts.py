"""What `timeout` in pyproject.toml, or `@pytest.mark.timeout`, does to a test that takes longer.

pytest-timeout raises an exception in the main thread, from a handler of SIGALRM. The fixtures of a plain test are then
torn down as after any other failure. In a Trio test that exception may be raised within Trio's own loop, which stays
broken: every later Trio test would fail too. So such a test is cancelled instead, by Trio's means.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from types import FrameType
from typing import Any

import pytest
import trio

_SCOPE: pytest.StashKey[trio.CancelScope] = pytest.StashKey()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give an async test a scope in which it can be cancelled."""
    if not isinstance(item, pytest.Function):
        return
    inner = getattr(item.obj, "hypothesis", None)
    if inner is not None and iscoroutinefunction(inner.inner_test):
        inner.inner_test = _cancellable(item, inner.inner_test)
    elif iscoroutinefunction(item.obj):
        item.obj = _cancellable(item, item.obj)


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Start the timer; a hook of pytest-timeout, which stops it by `cancel_timeout`."""

    def on_alarm(_signal: int, _frame: FrameType | None) -> None:
        text = f"took longer than {settings.timeout:g} s"
        if trio.lowlevel.in_trio_run() and trio.lowlevel.currently_ki_protected() and _SCOPE in item.stash:
            # We interrupt Trio itself, which waits for something: the test is not at work.
            trio.lowlevel.current_trio_token().run_sync_soon(item.stash[_SCOPE].cancel)
        else:
            pytest.fail(text)

    def cancel() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel  # type: ignore[attr-defined]
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout)
    return True


def _cancellable(item: pytest.Item, test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    @functools.wraps(test)
    async def run(*args: Any, **kwargs: Any) -> None:
        with trio.CancelScope() as item.stash[_SCOPE]:
            await test(*args, **kwargs)
        if item.stash[_SCOPE].cancelled_caught:
            pytest.fail("took longer than its timeout")

    return run
