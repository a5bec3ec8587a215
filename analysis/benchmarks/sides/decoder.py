"""The scenario of simdist's sides: the decoder that all sides train, on a mesh and engine of choice (--set)."""

from simdist import Scenario
from simdist.network import Star
from simdist.optimizers import AdamW
from simdist.scenario import MeshSettings
from simdist.workloads import ByteGPT


def scenario() -> Scenario:
    return Scenario(
        name="benchmark",
        steps=9,
        workload=ByteGPT(width=128, depth=5, heads=4, context=64, batch=8, validation_batches=1),
        mesh=MeshSettings(replicas=1, shards=16),
        optimizer=AdamW(lr=1e-3),
        network=Star(bandwidth="1Gbit/s", latency="100us"),
    )
