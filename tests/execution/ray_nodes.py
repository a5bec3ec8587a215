"""A Ray cluster of several nodes on this machine, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

#: a small store: a node takes it from /dev/shm
STORE = 100 * 2**20


@contextmanager
def cluster_of(*cpus: int) -> Iterator[Any]:
    """Yield a ``ray.cluster_utils.Cluster`` on loopback: a head without CPUs, and a node for each number of CPUs."""
    from ray.cluster_utils import Cluster

    assert not ray.is_initialized()
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback only, as simdist's embedded Ray
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for count in cpus:
            cluster.add_node(num_cpus=count, object_store_memory=STORE)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
