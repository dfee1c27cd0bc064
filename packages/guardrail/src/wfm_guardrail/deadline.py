"""Call something that may hang."""

from collections.abc import Callable
from threading import Thread
from typing import TypeVar

T = TypeVar("T")


def within(seconds: float, call: Callable[[], T]) -> T:
    """Return ``call()``, or raise what it raised.

    Raises:
        RuntimeError: it tried to end the program (SystemExit and the like).
        TimeoutError: it took longer. Its thread cannot be stopped and is left behind; it does
            not keep the program from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as e:
            errors.append(e)

    thread = Thread(target=work, daemon=True, name="wfm-guardrail check")
    thread.start()
    thread.join(seconds)
    if errors and not isinstance(errors[0], Exception):
        raise RuntimeError(f"{type(errors[0]).__name__} in a check") from errors[0]
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no answer within {seconds:g} s")
    return results[0]
