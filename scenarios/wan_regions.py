"""Three regions over slow links, FSDP inside each (HSDP): which optimizer crosses an ocean best?

    simdist sweep scenarios/wan_regions.py --out runs/wan-regions
    simdist retime runs/wan-regions --over network.bandwidth=500kbit/s,2Mbit/s,10Mbit/s,50Mbit/s
    simdist retime runs/wan-regions --over network.collectives=ring,direct,auto
    simdist report runs/wan-regions

Each region shards the model over its four workers, on fast links; the three replicas meet once a step over links that
are far away: one-way latencies of about half the round trips between US East, Western Europe and Tokyo. Communication
runs under the backward passes as FSDP2 does it, so what counts is what cannot be hidden: bytes where links are slow,
and everywhere the number of times that an update has to cross the oceans, of which low rank needs more.
"""

from simdist import Scenario, Sweep
from simdist.devices import ComputeSettings
from simdist.execution.overlap import FSDP
from simdist.execution.settings import EngineSettings
from simdist.network import Wan
from simdist.optimizers import AdamW, Muon, OrthDion, Rule
from simdist.scenario import EvaluationSettings, MeshSettings, WireSettings
from simdist.schedules import LearningRate
from simdist.workloads import ByteGPT

WIDTH = 64
AUXILIARY = AdamW(lr=3e-3)
OPTIMIZERS: list[Rule] = [
    AdamW(lr=8e-3, weight_decay=0.1),
    Muon(lr=0.08, weight_decay=0.1, scale="spectral", auxiliary=AUXILIARY),
    OrthDion(
        lr=0.16,
        weight_decay=0.1,
        scale="spectral",
        rank=WIDTH // 4,
        error_feedback="paper",
        beta=1.0,
        auxiliary=AUXILIARY,
    ),
]


def scenario() -> Scenario:
    return Scenario(
        name="wan-regions",
        steps=60,
        workload=ByteGPT(width=WIDTH, depth=3, heads=4, context=64, batch=4),
        # one replica in each region, sharded over its four workers
        mesh=MeshSettings(replicas=3, shards=4),
        optimizer=OPTIMIZERS[0],
        lr_schedule=LearningRate(warmup=10, shape="cosine", final=0.1),
        wire=WireSettings(params="bf16", grads="bf16", factors="bf16", statistics="fp32"),
        network=Wan(
            regions={"us-east": 4, "eu-west": 4, "tokyo": 4},
            bandwidth="2Mbit/s",
            latencies=((None, "38ms", "80ms"), ("38ms", None, "115ms"), ("80ms", "115ms", None)),
            local_bandwidth="25Gbit/s",
            local_latency="20us",
            # a ring would cross an ocean four times per all-reduce
            collectives="auto",
        ),
        overlap=FSDP(prefetch=1),
        # two seconds of computing a step, and slow links: a hundred times larger a model on workers and links a hundred
        # times faster has the same balance; latencies do not scale, and are real
        compute=ComputeSettings(device="custom", peak_flops=150e6, mfu=1.0),
        engine=EngineSettings(name="stacked"),
        evaluation=EvaluationSettings(every=20),
    )


def sweep() -> Sweep:
    return Sweep(name="wan-regions", base=scenario(), over={"optimizer": list(OPTIMIZERS)})
