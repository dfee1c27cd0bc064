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

    ``kind`` is the class of the error: ``damaged``, ``missing`` and ``memory`` are the unit's
    own fault and last; ``system``, ``fault``, ``crash`` and ``time-out`` may pass.
    """

    unit: Any
    value: Any = None
    error: str = ""
    kind: str = ""
    attempts: int = 1

    @property
    def lasting(self) -> bool:
        return self.kind in ("damaged", "missing", "memory")


def run(
    function: FunctionType,
    units: Iterable[Any],
    *,
    workers: int,
    timeout: float,
    attempts: int,
    memory: float = 0.0,
) -> Iterator[Outcome]:
    """Yield an outcome for each unit, in the order in which they end.

    ``function`` must be importable by its module and name; ``ValueError`` and ``OSError`` that
    it raises are outcomes. With ``workers=0`` it runs in this process, without a time-out.
    ``memory`` limits the address space of a child, in gigabytes, where the system can (Linux).
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
    name = f"{function.__module__}:{function.__name__}"
    limits: dict[str, Any] = {"timeout": timeout, "attempts": attempts, "memory": memory}
    children = [Contained(name, **limits) for _ in range(min(workers, total))]
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
    except (ValueError, OSError) as e:
        kinds = (FileNotFoundError, "missing"), (OSError, "system"), (ValueError, "damaged")
        kind = next(k for c, k in kinds if isinstance(e, c))
        return Outcome(unit, error=" ".join(f"{e}".split()) or type(e).__name__, kind=kind)
    except MemoryError as e:
        return Outcome(unit, error=f"more memory than a worker may have ({e})", kind="memory")
    except Exception as e:  # a fault of ours or of a library: one unit's trouble, not the run's
        logger.exception("%s", unit)
        return Outcome(unit, error=f"{type(e).__name__}: {e}", kind="fault")


class Contained:
    """One child process, started anew after each death, and the thread's loop over units."""

    def __init__(self, function: str, *, timeout: float, attempts: int, memory: float) -> None:
        self.task = (function, memory)
        self.timeout, self.attempts = timeout, attempts
        self.process: subprocess.Popen | None = None
        self.stopped = False

    def work(self, todo: queue.SimpleQueue, done: queue.SimpleQueue) -> None:
        try:
            while not self.stopped:
                unit = todo.get_nowait()
                done.put(self.attempt(unit))
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

    def attempt(self, unit: Any) -> Outcome:
        """Do one unit in the child, again after a crash or time-out if that is allowed."""
        error = kind = ""
        for attempt in range(1, self.attempts + 1):
            if self.stopped:
                break
            answer, error, kind = self._ask(unit)
            if answer is not None:
                return Outcome(unit, *answer, attempts=attempt)
        error = f"{error}, {self.attempts} times"
        return Outcome(unit, error=error, kind=kind, attempts=self.attempts)

    def _ask(self, unit: Any) -> tuple[tuple | None, str, str]:
        """Return the child's answer, or None, what became of the child, and the kind of that."""
        try:
            if self.process is None:
                self._start()
            return self._exchange(unit, self.timeout), "", ""
        except TimeoutError as e:
            return None, str(e), "time-out"
        except (EOFError, OSError):
            process, self.process = self.process, None
            if process is None:
                return None, "the worker was stopped", "crash"
            self._end(process)
            return None, f"the worker died (exit status {process.returncode})", "crash"

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
        one = {"OMP_NUM_THREADS": "1"}  # a core for each child; more is the user's to say
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot, path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=one | os.environ,
        )
        self._exchange(self.task, START_SECONDS)


def serve() -> None:
    """Answer the parent's requests until it closes the pipe; the body of a child process."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints goes to stderr, not between the answers
    requests = sys.stdin.buffer
    try:
        function, memory = _receive(requests)
        module, _, name = function.partition(":")
        __import__(module)
        _limit_memory(memory)
        function = getattr(sys.modules[module], name)
        _send(answers, "ready")
        while True:
            outcome = _attempt(function, _receive(requests))
            _send(answers, (outcome.value, outcome.error, outcome.kind))
    except (EOFError, BrokenPipeError, KeyboardInterrupt):
        pass


def _limit_memory(gigabytes: float) -> None:
    if gigabytes and sys.platform == "linux":
        import resource

        limit = int(gigabytes * 2**30)
        _, most = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (limit, most))


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
