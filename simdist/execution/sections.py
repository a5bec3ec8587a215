"""A step cut where everything that follows waits for everything before: its sections are priced one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np

from simdist.execution.course import TOGETHER
from simdist.execution.evaluation import TaskTimes
from simdist.execution.tasks import StepGraph
from simdist.network.sharing import Floats


def sections(graph: StepGraph) -> Iterator[tuple[slice, StepGraph]]:
    """Yield the sections of a graph: which tasks, and a graph of them alone.

    On each worker every task of a section comes after all tasks of the sections before it.
    """
    tasks = graph.tasks
    before: list[int] = []  # of each task, those that it comes after, as bits
    last: dict[str, int] = {}
    for number, task in enumerate(tasks):
        found = 0
        for earlier in (*task.after, *([last[task.stream]] if task.stream in last else ())):
            found |= before[earlier] | 1 << earlier
        before.append(found)
        last[task.stream] = number
    # each comes after all tasks below a number; a cut is where that holds for all that follow
    below = [(~found & (found + 1)).bit_length() - 1 for found in before]
    least = list(accumulate(reversed(below), min))[::-1]
    cuts = [number for number, one in enumerate(least) if one >= number]
    for start, stop in pairwise([*cuts, len(tasks)]):
        own = tuple(
            replace(task, after=tuple(earlier - start for earlier in task.after if earlier >= start))
            for task in tasks[start:stop]
        )
        yield slice(start, stop), StepGraph(graph.step, own)


def one_by_one(
    parts: tuple[tuple[slice, StepGraph], ...],
    seconds: Floats,
    lag: Floats,
    run: Callable[[StepGraph, Floats, Floats], TaskTimes],
) -> TaskTimes | None:
    """Run sections one after the other, or return None where some worker is done with one before another.

    Where all are done with a section together, nothing of it is on the network any more when the next one begins.

    Args:
        seconds: of local work; shape [tasks, workers].
        lag: when each worker begins; shape [workers].
        run: prices one of them from its graph, seconds and lag.
    """
    begin, end, finish = np.zeros_like(seconds), np.zeros_like(seconds), lag
    for number, (tasks, graph) in enumerate(parts):
        if number and finish.max() - finish.min() > TOGETHER * finish.max():
            return None
        found = run(graph, seconds[tasks], finish)
        begin[tasks], end[tasks], finish = found.begin, found.end, found.finish
    return TaskTimes(begin, end, finish)
