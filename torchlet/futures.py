"""torchlet.futures: values that are there later. What `torchlet.jit.fork` starts has run when it returns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["Future", "collect_all", "wait_all"]


class Future:
    """A value, or an exception, that somebody sets once."""

    def __init__(self, *, devices: Any = None):
        self._done = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[Future], Any]] = []

    def done(self) -> bool:
        """True once it is set."""
        return self._done.is_set()

    def wait(self) -> Any:
        """The value, waited for. Raises the exception that was set."""
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._value

    value = wait

    def _finish(self) -> None:
        self._done.set()
        for callback in self._callbacks:
            callback(self)

    def set_result(self, result: Any) -> None:
        """Give the value. Raises RuntimeError the second time."""
        if self.done():
            raise RuntimeError("Future can only be set once")
        self._value = result
        self._finish()

    def set_exception(self, result: BaseException) -> None:
        """Give an exception instead."""
        if not isinstance(result, BaseException):
            raise AssertionError(f"{result} is of type {type(result)}, not an Exception.")
        self._error = result
        self._finish()

    def add_done_callback(self, callback: Callable[[Future], Any]) -> None:
        """Call it when the value is there, at once if it is."""
        if self.done():
            callback(self)
        else:
            self._callbacks.append(callback)

    def then(self, callback: Callable[[Future], Any]) -> Future:
        """What the callback makes of this one, as a future."""
        out = Future()

        def run(done: Future) -> None:
            try:
                out.set_result(callback(done))
            except Exception as error:
                out.set_exception(error)

        self.add_done_callback(run)
        return out


def collect_all(futures: Sequence[Future]) -> Future:
    """A future of the list, done when all are."""
    out, left = Future(), len(futures)
    lock = threading.Lock()

    def one(_: Future) -> None:
        nonlocal left
        with lock:
            left -= 1
            last = left == 0
        if last:
            out.set_result(list(futures))

    if not futures:
        out.set_result([])
    for future in futures:
        future.add_done_callback(one)
    return out


def wait_all(futures: Sequence[Future]) -> list[Any]:
    """The values of all, waited for."""
    return [future.wait() for future in futures]
