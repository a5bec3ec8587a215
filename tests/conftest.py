"""Set-up of every test: one thread per process, and repeatable draws in CI."""

from __future__ import annotations

import os
from collections.abc import Iterator

# before torch and numpy are imported, which read these once (hence E402); 2 test processes share 2 cores
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)

# a shared machine may stall for seconds, which says nothing about the code
settings.register_profile("simdist", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("simdist")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One embedded Ray, with room for four actors, for all tests of a file that ask for it."""
    import ray

    from simdist.execution.ray_cluster import kept_alive

    assert not ray.is_initialized()
    with kept_alive(None, 4):
        yield
