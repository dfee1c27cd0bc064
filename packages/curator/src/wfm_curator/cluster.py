"""Run units on a Ray cluster (extra ``[ray]``), with the promises of `pool`.

Ray Data alone retries a task whose process dies without end, and drops rows that fail when told
to go on. Here each Ray actor keeps a child process and a unit runs in that: a crash or a hang
comes back as an outcome, Ray sees none. What Ray itself loses, with a node for instance, is an
outcome too. Inputs and output lie where all nodes can reach them.
"""

import os
import pickle
from collections.abc import Iterable, Iterator
from types import FunctionType
from typing import Any

from .pool import Contained, Outcome

RESTARTS = 2  # of an actor whose node is gone


class Actor:
    """What Ray keeps on a node: one contained child, and what to do with a row."""

    def __init__(self, function: tuple[str, str], limits: dict[str, Any]) -> None:
        module, name = function
        self.child = Contained(f"{module}:{name}", **limits)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        outcome = self.child.attempt(pickle.loads(row["unit"]))
        return {"number": row["number"], "outcome": pickle.dumps(outcome)}


def run(
    function: FunctionType,
    units: Iterable[Any],
    *,
    workers: int,
    timeout: float,
    attempts: int,
    memory: float = 0.0,
) -> Iterator[Outcome]:
    """Yield an outcome for each unit, as `pool.run` does, from ``workers`` actors.

    Joins the cluster of ``RAY_ADDRESS``, or starts one on this machine.

    Raises:
        ImportError: Ray is not installed.
    """
    ray = _ray()
    todo = dict(enumerate(units))
    if not todo:
        return
    actors = max(1, workers)
    if not ray.is_initialized():
        own = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": actors}
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="error", **own)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    rows = [{"number": n, "unit": pickle.dumps(unit)} for n, unit in todo.items()]
    limits = {"timeout": timeout, "attempts": attempts, "memory": memory}
    name = (function.__module__, function.__name__)
    blocks = min(len(rows), 8 * actors)  # so many parts that no actor waits for another at the end
    done = ray.data.from_items(rows, override_num_blocks=blocks).map(
        Actor,
        fn_constructor_args=(name, limits),
        compute=ray.data.ActorPoolStrategy(size=min(actors, len(rows))),
        num_cpus=1,
        max_restarts=RESTARTS,
        max_task_retries=RESTARTS,
    )
    why = "Ray returned nothing for it"
    try:
        for row in done.iter_rows():
            outcome = pickle.loads(row["outcome"])
            outcome = Outcome(todo.pop(row["number"]), **_without_unit(outcome))
            yield outcome
    except ray.exceptions.RayError as e:
        why = f"lost by Ray ({type(e).__name__})"
    for unit in todo.values():
        yield Outcome(unit, error=why, kind="crash")


def _without_unit(outcome: Outcome) -> dict[str, Any]:
    return {k: v for k, v in vars(outcome).items() if k != "unit"}


def _ray() -> Any:
    try:
        import ray  # ty: ignore[import-not-found]
        import ray.data  # ty: ignore[import-not-found]
    except ImportError:
        pip = 'pip install "wfm-curator[ray]"'
        raise ImportError(f"the executor ray needs: {pip}") from None
    return ray
