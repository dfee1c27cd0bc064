"""The frame of a command-line program: exit codes, one-line errors, progress. No torch here."""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")

DONE, FAILED, USAGE, REFUSED, INTERRUPTED = 0, 1, 2, 3, 130


def run(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> int:
    """Parse, call the subcommand's ``run(args) -> int``, and turn errors into exit codes.

    0 done, 1 the work failed in the middle, 2 the user can mend it (one line on stderr, no
    traceback), 130 interrupted. What cannot be explained in a line keeps its traceback and
    exits with 1.
    """
    args = parser.parse_args(argv)
    level = logging.WARNING if getattr(args, "quiet", False) else logging.INFO
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stderr)
    name = f"{parser.prog} {args.command}"
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError) as e:
        return _complain(name, str(e), USAGE)
    except (PermissionError, FileExistsError, ImportError) as e:
        return _complain(name, str(e), USAGE)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except OSError as e:
        return _complain(name, f"{e.filename or 'output'}: {e.strerror or e}", FAILED)
    except KeyboardInterrupt:
        return _complain(name, "interrupted; nothing half-written was left", INTERRUPTED)


def _complain(name: str, message: str, code: int) -> int:
    sys.stderr.write(f"{name}: error: {' '.join(message.split())}\n")
    return code


def add_common(parser: argparse.ArgumentParser, run: Callable[[argparse.Namespace], int]) -> None:
    """Give a subcommand its function and the flags that every one has."""
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print results as JSON Lines")
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress, warnings only")


def progress(items: Iterable[T], what: str, *, quiet: bool = False) -> Iterator[T]:
    """Pass the items on, with a bar on stderr when that is a terminal."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty() or "NO_PROGRESS" in os.environ
    yield from tqdm(items, desc=what, disable=hidden, file=sys.stderr)


@contextmanager
def frames_bar(
    what: str, *, quiet: bool = False
) -> Generator[Callable[[int, int], None], None, None]:
    """Give ``report(more, total)``: it moves a bar of frames on stderr when that is a terminal."""
    from tqdm import tqdm

    hidden = quiet or not sys.stderr.isatty() or "NO_PROGRESS" in os.environ
    with tqdm(desc=what, unit="frame", disable=hidden, file=sys.stderr) as bar:

        def report(more: int, total: int) -> None:
            bar.total = total or None
            bar.update(more)

        yield report


def choose_device(name: str) -> str:
    """Return ``name``, or for ``auto`` the best device there is: cuda, mps, cpu.

    Raises:
        ValueError: the device is not there.
    """
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {name}: no CUDA device is usable here; leave --device out")
    return name
