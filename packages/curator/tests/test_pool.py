import os
import sys
import time

import pytest

from wfm_curator import pool


def work(unit):
    """What the children of these tests do."""
    match unit:
        case ("die", _):
            os._exit(9)
        case ("sleep", seconds):
            time.sleep(seconds)
        case ("once", path):
            if not path.exists():
                path.touch()
                os._exit(1)
        case ("bad", text):
            raise ValueError(text)
        case ("disk", text):
            raise OSError(28, text)
        case ("bug", _):
            raise KeyError("a fault of ours")
    sys.stdout.write("noise that must not get between the answers\n")
    return unit


def run(units, *, workers=2, timeout=20.0):
    outcomes = pool.run(work, units, workers=workers, timeout=timeout, attempts=2)
    return {outcome.unit: outcome for outcome in outcomes}


def test_all_units_are_done_whoever_does_them():
    units = list(range(20))
    for workers in (0, 1, 2):
        assert {u: o.value for u, o in run(units, workers=workers).items()} == dict(
            zip(units, units, strict=True)
        )
    assert run([]) == {}


def test_a_crash_costs_its_unit_and_nothing_else():
    outcomes = run([("die", 0), 1, 2, 3])
    assert outcomes["die", 0].error == "the worker died (exit status 9), 2 times"
    assert not outcomes["die", 0].lasting
    assert [outcomes[u].value for u in (1, 2, 3)] == [1, 2, 3]


def test_a_crash_may_pass(tmp_path):
    unit = ("once", tmp_path / "seen")
    assert run([unit])[unit].value == unit


def test_a_hang_ends_with_the_time_out():
    started = time.monotonic()
    outcomes = run([("sleep", 60), 1], timeout=1.5)
    assert "took longer than 1.5 s" in outcomes["sleep", 60].error
    assert outcomes[1].value == 1
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_are_told_apart(workers):
    outcomes = run([("bad", "two\nlines"), ("disk", "no space"), ("bug", 1)], workers=workers)
    assert outcomes["bad", "two\nlines"].error == "two lines"
    assert outcomes["bad", "two\nlines"].lasting
    assert not outcomes["disk", "no space"].lasting
    assert outcomes["bug", 1].error == "KeyError: 'a fault of ours'"
    assert not outcomes["bug", 1].lasting


def test_leaving_early_leaves_no_children():
    for outcome in pool.run(work, [1, ("sleep", 60)], workers=2, timeout=90.0, attempts=1):
        assert outcome.value == 1
        break
