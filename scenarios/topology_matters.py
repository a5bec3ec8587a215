"""The same training on other networks: train once, then price the run on every topology and under every plan.

    simdist run scenarios/topology_matters.py --out runs/topology-matters
    simdist retime runs/topology-matters --over network.topology=star,full-mesh,fat-tree,tree,ring,line
    simdist retime runs/topology-matters --over network.collectives=ring,halving_doubling,double_binary_tree,direct,auto
    simdist retime runs/topology-matters --over network.placement=packed,spread --set network.topology=tree
    simdist retime runs/topology-matters --over overlap.policy=none,fsdp

Every host has the same links; what differs is how they are wired, who sits where, and which plan carries out a
collective. A simulator that prints one number for all of these has forgotten the network (astra-sim#207).
"""

from simdist import Scenario
from simdist.devices import ComputeSettings
from simdist.execution.settings import EngineSettings
from simdist.network import Star
from simdist.optimizers import OrthDion
from simdist.scenario import MeshSettings, WireSettings
from simdist.workloads import ByteGPT


def scenario() -> Scenario:
    return Scenario(
        name="topology-matters",
        steps=40,
        workload=ByteGPT(width=64, depth=4, heads=4, context=64, batch=4),
        # HSDP: four replicas of four shards, so that both near and far neighbours talk
        mesh=MeshSettings(replicas=4, shards=4),
        optimizer=OrthDion(lr=0.02, rank=16),
        wire=WireSettings(params="bf16", grads="bf16", factors="bf16", statistics="fp32"),
        network=Star(bandwidth="1Gbit/s", latency="50us"),
        compute=ComputeSettings(device="cpu-core", mfu=0.4),
        engine=EngineSettings(name="stacked"),
    )
