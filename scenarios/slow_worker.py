"""What does one slow worker cost? An asynchronous parameter server, where nobody waits for the slowest.

    simdist run scenarios/slow_worker.py
    simdist run scenarios/slow_worker.py --set schedule.name=every_step     # the same, synchronous
    simdist run scenarios/slow_worker.py --set schedule.staleness_weight=inverse_sqrt

Worker 0 is the server, workers 1 to 4 train; worker 4 computes at a quarter of the others' speed. Its gradients arrive
stale: diagnostics.parquet counts by how many versions.
"""

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.network import Star
from simdist.optimizers import AdamW
from simdist.scenario import MeshSettings
from simdist.schedules import AsyncServer
from simdist.workloads import ByteGPT


def scenario() -> Scenario:
    return Scenario(
        name="slow-worker",
        # one step is one update on the server
        steps=120,
        workload=ByteGPT(width=64, depth=2, heads=4, context=64, batch=8),
        mesh=MeshSettings(replicas=5, shards=1),
        optimizer=AdamW(lr=2e-3),
        schedule=AsyncServer(),
        network=Star(bandwidth="1Gbit/s", latency="1ms"),
        # a laptop-like speed, so that computing takes about as long as the network
        compute=ComputeSettings(device="custom", peak_flops=50e9, mfu=1.0, speeds={4: 0.25}),
    )
