"""Placement: which worker sits on which host."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator

from simdist.errors import InputError, suggest
from simdist.settings import PositiveInt, Settings

_WAYS = ("packed", "spread")


def _is_a_host(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _placement(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value and all(map(_is_a_host, value)):
        return tuple(value)
    if isinstance(value, str) and value in _WAYS:
        return value
    hint = suggest(value, _WAYS) if isinstance(value, str) else ""
    raise ValueError(
        f"got {value!r}; expected 'packed', 'spread', or the index of every worker's host, such as [0, 0, 1, 1].{hint}"
    )


class PlacementSettings(Settings):
    """How many hosts there are, and which workers each of them holds.

    Attributes:
        host_count: number of hosts; null: as many as the workers need.
        workers_per_host: how many workers a host has room for.
        placement: ``packed`` fills one host after the other; ``spread`` deals the workers out, one to each cluster of
            nearby hosts in turn (islands, regions, pods), within a cluster one to each host in turn; a list gives the
            index of every worker's host, however many share one.
    """

    host_count: PositiveInt | None = None
    workers_per_host: PositiveInt = 1
    placement: Annotated[Literal["packed", "spread"] | tuple[int, ...], BeforeValidator(_placement)] = "packed"

    def hosts_needed(self, workers: int) -> int:
        """Return the number of hosts in the network of so many workers, whether all of them are used or not.

        Raises:
            InputError: when the hosts have no room for the workers, or the list of hosts is not one for them.
        """
        if isinstance(self.placement, tuple):
            if len(self.placement) != workers:
                raise InputError(
                    f"network.placement: got {len(self.placement)} hosts for {workers} workers; expected one index "
                    "for each worker"
                )
            last = max(self.placement)
            if self.host_count is not None and last >= self.host_count:
                raise InputError(
                    f"network.placement: got host {last} of {self.host_count} hosts; expected indices from 0 to "
                    f"{self.host_count - 1}, or network.host_count={last + 1}"
                )
            return self.host_count or last + 1
        needed = -(-workers // self.workers_per_host)
        if self.host_count is not None and needed > self.host_count:
            raise InputError(
                f"network.host_count: got {self.host_count} hosts with room for {self.workers_per_host} each, for "
                f"{workers} workers; expected at most {self.host_count * self.workers_per_host} workers, "
                f"network.host_count={needed}, or "
                f"network.workers_per_host={-(-workers // self.host_count)}"
            )
        return self.host_count or needed

    def place(self, workers: int, clusters: Sequence[int]) -> tuple[int, ...]:
        """Return the index of each worker's host.

        Args:
            workers: how many there are.
            clusters: for each host the index of its cluster.

        Raises:
            InputError: as :meth:`hosts_needed`; the number of hosts must be the one it returns.
        """
        assert len(clusters) == self.hosts_needed(workers)
        if isinstance(self.placement, tuple):
            return self.placement
        if self.placement == "packed":
            return tuple(worker // self.workers_per_host for worker in range(workers))
        dealt = self._dealt(clusters)
        return tuple(next(dealt) for _ in range(workers))

    def _dealt(self, clusters: Sequence[int]) -> Iterator[int]:
        """Yield hosts in the order in which ``spread`` deals, each as often as it has room."""
        of_cluster: dict[int, list[int]] = {}
        for host, cluster in enumerate(clusters):
            of_cluster.setdefault(cluster, []).append(host)
        rooms = [hosts * self.workers_per_host for hosts in of_cluster.values()]
        return (host for turn in zip_longest(*rooms) for host in turn if host is not None)
