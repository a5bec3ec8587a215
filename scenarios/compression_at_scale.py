"""What is compression worth for 8 billion parameters on 64 to 4,096 GPUs? Planned from shapes: nothing is trained.

    simdist plan scenarios/compression_at_scale.py --out runs/compression_at_scale/optimizers \\
      --over "optimizer=adamw,muon,{name: dion, rank_fraction: 0.0625}" --over mesh.replicas=8,64,512
    simdist plan scenarios/compression_at_scale.py --out runs/compression_at_scale/compressions \\
      --over "compression.replicas={name: powersgd, rank: 64},{name: error_feedback, codec: topk}" \\
      --over mesh.replicas=8,64,512

Servers of 8 GPUs: parameters are sharded inside a server over NVLink (HSDP), and replicas meet over the servers'
network cards, whose bandwidth is the question. analysis/compression_at_scale has the prices at 11 bandwidths, the
figure, and the commands in full.
"""

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.execution.overlap import FSDP
from simdist.network import RailOptimised
from simdist.optimizers import AdamW
from simdist.scenario import MeshSettings, WireSettings
from simdist.workloads import Decoder


def scenario() -> Scenario:
    return Scenario(
        name="compression-at-scale",
        steps=1,
        # Llama 3 8B (`simdist list models`), one sequence of 4,096 tokens per GPU and step
        workload=Decoder(
            width=4096,
            depth=32,
            heads=32,
            kv_heads=8,
            hidden=14336,
            vocabulary=128256,
            context=4096,
            rotary_base=500_000.0,
        ),
        mesh=MeshSettings(replicas=8, shards=8),
        optimizer=AdamW(lr=3e-4),
        wire=WireSettings(params="bf16", grads="bf16", factors="bf16", statistics="fp32"),
        # a card of 400 Gbit/s and 450 GB/s of NVLink per GPU
        network=RailOptimised(bandwidth="400Gbit/s", latency="5us", collectives="nccl"),
        compute=ComputeSettings(device="h100", mfu=0.4),
        overlap=FSDP(),
    )
