"""The smallest real study: a byte-level language model on 4 emulated FSDP workers under Orth-Dion.

simdist run scenarios/quickstart.py                     # one coroutine per worker, in this process
simdist run scenarios/quickstart.py --engine ray        # the same bits from Ray actors
simdist retime runs/quickstart --over network.bandwidth=10Mbit/s,1Gbit/s
"""

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.network import Star
from simdist.optimizers import OrthDion
from simdist.scenario import MeshSettings, WireSettings
from simdist.workloads import ByteGPT


def scenario() -> Scenario:
    return Scenario(
        name="quickstart",
        steps=60,
        # what is trained: a small decoder on the Python standard library's own sources
        workload=ByteGPT(width=64, depth=2, heads=4, context=64, batch=8),
        # FSDP: one replica, four shards
        mesh=MeshSettings(replicas=1, shards=4),
        optimizer=OrthDion(lr=0.02, rank=16),
        # what travels: parameters and low-rank factors in bfloat16, gradients in float32
        wire=WireSettings(params="bf16", grads="fp32", factors="bf16"),
        # between whom, and how fast
        network=Star(bandwidth="100Mbit/s", latency="1ms"),
        compute=ComputeSettings(device="rtx4090"),
    )
