"""Run a function on many units in child processes that may crash or hang.

A child that dies or takes too long costs its unit one attempt, and nothing else. Children are
plain interpreters that talk over pipes: no ``if __name__ == "__main__"`` is needed, and they
end by themselves when the parent is gone.
"""

import contextlib
import json
import logging
import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import IO, Any

START_SECONDS = 120.0  # for a child to import what it needs

logger = logging.getLogger(__name__)

BOOT = "import json,sys; sys.path[:]=json.loads(sys.argv[1]); from {} import serve; serve()"


@dataclass(frozen=True)
class Outcome:
    """``value`` is what the function returned; ``error`` says in a line why it did not.

    ``lasting`` errors are the unit's own fault; others (a crash, a time-out) may pass.
    """

    unit: Any
    value: Any = None
    error: str = ""
    lasting: bool = True


def run(
    function: FunctionType,
    units: Iterable[Any],
    *,
    workers: int,
    timeout: float,
    attempts: int,
) -> Iterator[Outcome]:
    """Yield an outcome for each unit, in the order in which they end.

    ``function`` must be importable by its module and name; ``ValueError`` and ``OSError`` that
    it raises are outcomes. With ``workers=0`` it runs in this process, without a time-out.
    """
    todo: queue.SimpleQueue = queue.SimpleQueue()
    total = 0
    for unit in units:
        todo.put(unit)
        total += 1
    if workers == 0 or total == 0:
        yield from (_attempt(function, todo.get()) for _ in range(total))
        return
    done: queue.SimpleQueue = queue.SimpleQueue()
    children = [_Child(function, timeout, attempts) for _ in range(min(workers, total))]
    threads = [threading.Thread(target=c.work, args=(todo, done), daemon=True) for c in children]
    for thread in threads:
        thread.start()
    try:
        for _ in range(total):
            outcome = done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        for child in children:
            child.stop()
        for thread in threads:
            thread.join()


def _attempt(function: Callable[[Any], Any], unit: Any) -> Outcome:
    try:
        return Outcome(unit, function(unit))
    except (ValueError, MemoryError, OSError) as e:
        lasting = not isinstance(e, OSError) or isinstance(e, FileNotFoundError)
        return Outcome(unit, error=" ".join(f"{e}".split()) or type(e).__name__, lasting=lasting)
    except Exception as e:  # a fault of ours or of a library: one unit's trouble, not the run's
        logger.exception("%s", unit)
        return Outcome(unit, error=f"{type(e).__name__}: {e}", lasting=False)


class _Child:
    """One child process, started anew after each death, and the thread's loop over units."""

    def __init__(self, function: FunctionType, timeout: float, attempts: int) -> None:
        self.function = f"{function.__module__}:{function.__name__}"
        self.timeout, self.attempts = timeout, attempts
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def work(self, todo: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        try:
            while not self.stopped:
                unit = todo.get_nowait()
                done.put(self._try(unit))
        except queue.Empty:
            pass
        except BaseException as e:
            done.put(e)
        self.stop()

    def stop(self) -> None:
        self.stopped = True
        if self.process is not None:
            self._end(self.process)

    @staticmethod
    def _end(process: subprocess.Popen) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # bytes that the dead child will not read
                    pipe.close()

    def _try(self, unit: Any) -> Outcome:
        error = ""
        for _ in range(self.attempts):
            if self.stopped:
                break
            answer, error = self._ask(unit)
            if answer is not None:
                return Outcome(unit, *answer)
        return Outcome(unit, error=f"{error}, {self.attempts} times", lasting=False)

    def _ask(self, unit: Any) -> tuple[tuple | None, str]:
        """Return the child's answer, or None and what became of the child."""
        try:
            if self.process is None:
                self._start()
            return self._exchange(unit, self.timeout), ""
        except TimeoutError as e:
            return None, str(e)
        except (EOFError, OSError):
            process, self.process = self.process, None
            if process is None:
                return None, "the worker was stopped"
            self._end(process)
            return None, f"the worker died (exit status {process.returncode})"

    def _exchange(self, message: Any, timeout: float) -> Any:
        """Send a message and return the answer; end the child if there is none in time."""
        process = self.process
        if process is None or self.stopped:
            raise EOFError
        late = threading.Event()
        timer = threading.Timer(timeout, lambda: (late.set(), process.kill()))
        timer.start()
        try:
            _send(process.stdin, message)
            return _receive(process.stdout)
        except (EOFError, OSError):
            if not late.is_set():
                raise
            self.process = None
            self._end(process)
            raise TimeoutError(f"took longer than {timeout:g} s") from None
        finally:
            timer.cancel()

    def _start(self) -> None:
        boot = BOOT.format(__name__)
        path = json.dumps([p or os.getcwd() for p in sys.path])  # noqa: PTH109
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._exchange(self.function, START_SECONDS)


def serve() -> None:
    """Answer the parent's requests until it closes the pipe; the body of a child process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the answers
    requests = sys.stdin.buffer
    try:
        module, _, name = _receive(requests).partition(":")
        __import__(module)
        function = getattr(sys.modules[module], name)
        _send(answers, "ready")
        while True:
            outcome = _attempt(function, _receive(requests))
            _send(answers, (outcome.value, outcome.error, outcome.lasting))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


def _send(pipe: IO[bytes] | None, value: Any) -> None:
    assert pipe is not None
    data = pickle.dumps(value)
    pipe.write(len(data).to_bytes(8, "little") + data)
    pipe.flush()


def _receive(pipe: IO[bytes] | None) -> Any:
    assert pipe is not None
    size = pipe.read(8)
    if len(size) < 8:
        raise EOFError
    data = pipe.read(int.from_bytes(size, "little"))
    return pickle.loads(data)
