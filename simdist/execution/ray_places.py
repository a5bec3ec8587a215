"""Places for actors on a Ray cluster: one for each block of workers, spread over the nodes, all of them or none."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from simdist.errors import InputError
from simdist.execution.ray_cluster import cores

#: Seconds to wait for places that others hold, or for nodes that an autoscaler brings, and after how many to say so.
PLACE_SECONDS = 180
GROW_SECONDS = 900
PATIENCE_SECONDS = 5

#: CPUs are reserved in Ray's own smallest unit
_UNIT = 1e-4


class Places:
    """A placement group with one bundle per actor (strategy SPREAD).

    Attributes:
        nodes: id of each actor's node, once the places are reserved.

    Args:
        actors: how many places.
        threads: cores that each actor uses.
        device: ``cpu`` or ``cuda``; actors on GPUs share them evenly.
        embedded: whether Ray runs on this machine for this run alone: then actors may share cores.
        squeeze: share what CPUs there are rather than refuse: for a run that goes on after the loss of a node.
    """

    def __init__(self, actors: int, threads: int, device: str, embedded: bool, squeeze: bool = False) -> None:
        self._actors = actors
        self._threads = threads
        self._device = device
        self._embedded = embedded
        self._squeeze = squeeze
        self._group: Any = None
        self._asked: Mapping[str, float] = {}
        self.nodes: list[str] = []

    def reserve(self) -> list[dict[str, Any]]:
        """Reserve all places; return each actor's options, such that neighbours in the list share a node.

        Raises:
            InputError: when the cluster is too small and cannot grow, or there are no places for longer than
                PLACE_SECONDS (GROW_SECONDS with an autoscaler).
        """
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        need = self._need()
        # new nodes of a cloud take minutes to come up
        patience = GROW_SECONDS if can_grow_to() else PLACE_SECONDS
        deadline, told = time.monotonic() + patience, False
        while not self._found(need):
            if time.monotonic() > deadline:
                raise InputError(
                    f"engine.actors: got {self._wanted()}, which the Ray cluster had no places for within "
                    f"{patience} s: {_there_is()}; expected fewer engine.actors, or the other jobs to end first"
                )
            if not told:
                print(
                    f"simdist: waiting for places on the Ray cluster for {self._wanted()}: {_there_is()}",
                    file=sys.stderr,
                )
                told = True
            # nodes may have come or gone meanwhile: Ray needs some seconds to notice
            need = self._need()
        order = self._by_node()
        return [
            {
                **need,
                "scheduling_strategy": PlacementGroupSchedulingStrategy(
                    self._group, placement_group_bundle_index=index
                ),
            }
            for index in order
        ]

    def _found(self, need: Mapping[str, float]) -> bool:
        """Ask for the places; whether they are there within PATIENCE_SECONDS. What has been asked for stays asked."""
        from ray.util.placement_group import placement_group

        if need != self._asked:
            self.release()
            bundle = {"CPU": need["num_cpus"], **({"GPU": need["num_gpus"]} if "num_gpus" in need else {})}
            self._group, self._asked = placement_group([bundle] * self._actors, strategy="SPREAD"), dict(need)
        ready: bool = self._group.wait(PATIENCE_SECONDS)
        return ready

    def release(self) -> None:
        """Give the places back; whoever still has one is killed."""
        if self._group is None:
            return
        from ray.util.placement_group import remove_placement_group

        remove_placement_group(self._group)
        self._group, self._asked = None, {}

    def _need(self) -> dict[str, float]:
        import ray

        have = ray.cluster_resources()
        need: dict[str, float] = {"num_cpus": 1 if self._embedded else self._threads}
        if self._device == "cuda":
            gpus = have.get("GPU", 0)
            if not gpus:
                raise InputError("engine.device: got 'cuda', but the Ray cluster has no GPU; expected 'cpu'")
            need["num_gpus"] = gpu_share(self._actors, int(gpus))
        places = sum(int(node.get("CPU", 0) // need["num_cpus"]) for node in _nodes())
        if places >= self._actors or can_grow_to() >= need["num_cpus"] * self._actors:
            return need
        if self._squeeze and have.get("CPU", 0) >= _UNIT * self._actors:
            need["num_cpus"] = largest_share([node.get("CPU", 0) for node in _nodes()], self._actors)
            return need
        raise InputError(
            f"engine.actors: got {self._wanted()}, but the Ray cluster has {have.get('CPU', 0):g} CPUs on "
            f"{len(_nodes())} nodes; expected at most {places} actors: write engine.actors={max(places, 1)}, or add "
            f"nodes to the cluster"
        )

    def _wanted(self) -> str:
        each = "" if self._threads == 1 or self._embedded else f" of {self._threads} CPUs each (engine.threads)"
        return f"{self._actors} actors{each}"

    def _by_node(self) -> list[int]:
        """Return the bundles' indices node by node, so that neighbouring blocks talk within a machine."""
        from ray.util.placement_group import placement_group_table

        node_of: dict[int, str] = placement_group_table(self._group)["bundles_to_node_id"]
        nodes = list(dict.fromkeys(node_of[index] for index in range(self._actors)))
        order = sorted(range(self._actors), key=lambda index: (nodes.index(node_of[index]), index))
        self.nodes = [node_of[index] for index in order]
        return order


def gpu_share(actors: int, gpus: int) -> float:
    """Return which part of a GPU each actor takes where all share them evenly; an actor never spans two.

    >>> gpu_share(2, 4), gpu_share(3, 2), gpu_share(7, 1)
    (1.0, 0.5, 0.1428)
    """
    on_each = -(-actors // gpus)
    return round(1 / _UNIT) // on_each * _UNIT if on_each > 1 else 1.0


def largest_share(cpus: Sequence[float], actors: int) -> float:
    """Return how many CPUs each actor can have where nodes with that many CPUs have to take all of them.

    >>> largest_share([2, 0], 4), largest_share([2, 1], 2)
    (0.5, 1.0)
    """
    # whole numbers of Ray's unit: of fractions the last one might not fit
    units = [round(node / _UNIT) for node in cpus]
    shares = sorted({node // count for node in units for count in range(1, actors + 1)} - {0}, reverse=True)
    return next(share for share in shares if sum(node // share for node in units) >= actors) * _UNIT


def warn_if_crowded(actors: int, threads: int) -> None:
    """Say on stderr when actors on this machine have more threads than it has cores, and what to write."""
    have = cores()
    if actors * threads <= have:
        return
    with_threads = f" of {threads} threads" if threads > 1 else ""
    fits = max(1, have // threads)
    better = f"engine.actors={fits}" if fits * threads <= have else f"engine.actors=1 and engine.threads={have}"
    print(
        f"simdist: warning: engine.actors: got {actors} actors{with_threads} on {have} cores: they take turns, and "
        f"each is a process with its own copy of data and model; expected {better}, which gives the same values faster",
        file=sys.stderr,
    )


def can_grow_to() -> float:
    """Return how many CPUs the cluster's autoscaler may bring it to; 0 without one."""
    from ray._private.state import state  # no public function tells

    try:
        most = state.get_max_resources_from_cluster_config()
    except AttributeError:  # another version of Ray
        return 0
    return float((most or {}).get("CPU", 0))


def _nodes() -> list[dict[str, float]]:
    """Return the resources of every node that is alive."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _there_is() -> str:
    import ray

    free = ray.available_resources()
    parts = [
        f"{free.get(kind, 0):g} of {total:g} {kind}s are free"
        for kind, total in sorted(ray.cluster_resources().items())
        if kind in ("CPU", "GPU")
    ]
    return f"{' and '.join(parts) or 'no CPU is there'} on {len(_nodes())} nodes"
