"""DDP's overlap: gradients are reduced in buckets under the backward passes that follow."""

from __future__ import annotations

from itertools import zip_longest

from simdist.execution.overlap.passes import HOOKS, Pass, PassOverlap
from simdist.execution.overlap.policy import overlaps
from simdist.execution.tasks import GraphBuilder, communicator
from simdist.units import Bytes


@overlaps.register("ddp")
class DDP(PassOverlap):
    """PyTorch DDP's schedule: gradients join buckets in the order of backward, and a full bucket is reduced at once.

    A bucket closes when it has reached its size, and is reduced under the passes that follow, one bucket after the
    other (Li et al. 2020, PyTorch Distributed, section 3.2.3). Here the gradients of one unit are not cut apart, where
    PyTorch closes buckets between parameters. The members of a bucket travel as one collective and keep their own rows
    in the ledger. The optimizer waits for all buckets.

    Attributes:
        bucket: size in bytes of encoded gradients at which a bucket closes (``bucket_cap_mb``).
        first_bucket: size of the first one, small so that the link is busy early (``kDefaultFirstBucketBytes``).
    """

    policy: str = "ddp"
    bucket: Bytes = 25 * 2**20
    first_bucket: Bytes = 2**20

    def problem(self, shards: int, lockstep: bool) -> str | None:
        if shards > 1:
            return (
                f"got 'ddp' with {shards} shards, whose units are gathered and reduced one by one; "
                "expected 'fsdp' (which also covers HSDP), or mesh.shards 1"
            )
        return self.needs_lockstep(lockstep)

    def add_passes(self, builder: GraphBuilder, passes: list[Pass], before: tuple[int, ...]) -> tuple[int, ...]:
        ends = list(before)
        waiting: list[list[int]] = []  # the reductions of each unit in the open bucket
        limit, last = self.first_bucket, before

        def close() -> None:
            tail = last
            for waves in zip_longest(*waiting):
                tail = builder.add([wave for wave in waves if wave is not None], tail, communicator, HOOKS)
            ends.extend(tail)
            waiting.clear()

        for one in passes:
            for wave in (*one.gathers, *(() if one.compute is None else (one.compute,))):
                last = builder.add([wave], last, communicator)
            if one.reductions:
                waiting.append(one.reductions)
                if sum(builder.payload_of(wave) for waves in waiting for wave in waves) >= limit:
                    close()
                    limit = self.bucket
        if waiting:
            close()
        return tuple(dict.fromkeys((*ends, *last)))
