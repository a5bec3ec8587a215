"""At which bandwidth does which optimizer win, and what does it cost in convergence? The main job.

    simdist sweep scenarios/bandwidth_vs_convergence.py --out runs/bandwidth_vs_convergence
    simdist retime runs/bandwidth_vs_convergence --over network.bandwidth=10Mbit/s,100Mbit/s,1Gbit/s,10Gbit/s
    simdist report runs/bandwidth_vs_convergence

Two islands of four workers train one language model: parameters are sharded inside an island (fast links) and
replicated across the two (one slow link, whose bandwidth is the question). Every optimizer trains once; each run is
then priced at ten bandwidths of the slow link. The learning rates come from analysis/lr_sweep.
"""

from typing import Literal

from simdist import Scenario, Sweep
from simdist.devices import ComputeSettings
from simdist.execution.settings import EngineSettings
from simdist.network import TwoLevel
from simdist.optimizers import AdamW, Dion, Muon, OrthDion, Rule
from simdist.scenario import DiagnosticsSettings, EvaluationSettings, MeshSettings, WireSettings
from simdist.schedules import LearningRate
from simdist.workloads import ByteGPT

WIDTH = 96
RANK = WIDTH // 4
# embeddings, head and norms go to AdamW under every method
AUXILIARY = AdamW(lr=3e-3)


def optimizers(adamw: float, muon: float, dion: float, orth_dion: float) -> list[Rule]:
    """The four contestants at given learning rates, with equal weight decay and update scale.

    Orth-Dion with the paper's error feedback (card 1, EF-P with beta_p = 1), Dion with its own momentum 0.95.
    """
    return [
        AdamW(lr=adamw, weight_decay=0.1),
        Muon(lr=muon, weight_decay=0.1, scale="spectral", auxiliary=AUXILIARY),
        Dion(lr=dion, weight_decay=0.1, scale="spectral", rank=RANK, mu=0.95, auxiliary=AUXILIARY),
        orth_dion_rule(orth_dion, error_feedback="paper", beta=1.0),
    ]


def orth_dion_rule(lr: float, error_feedback: Literal["paper", "code"], beta: float) -> OrthDion:
    """Orth-Dion with a choice of memory; ``code`` with beta 0.05 has Dion's, so that only the right factor differs."""
    return OrthDion(
        lr=lr,
        weight_decay=0.1,
        scale="spectral",
        rank=RANK,
        error_feedback=error_feedback,
        beta=beta,
        auxiliary=AUXILIARY,
    )


# chosen by analysis/lr_sweep
BEST = optimizers(adamw=8e-3, muon=0.08, dion=0.04, orth_dion=0.16)


def scenario() -> Scenario:
    return Scenario(
        name="bandwidth-vs-convergence",
        steps=160,
        workload=ByteGPT(width=WIDTH, depth=4, heads=4, context=128, batch=4),
        mesh=MeshSettings(replicas=2, shards=4),
        optimizer=BEST[0],
        lr_schedule=LearningRate(warmup=20, shape="cosine", final=0.1),
        wire=WireSettings(params="bf16", grads="bf16", factors="bf16", statistics="fp32"),
        network=TwoLevel(
            bandwidth="100Mbit/s", latency="200us", island_size=4, island_bandwidth="100Gbit/s", island_latency="5us"
        ),
        # a small model on slow workers has about the balance of compute and traffic of a large one on fast ones
        compute=ComputeSettings(device="cpu-core", mfu=0.4),
        engine=EngineSettings(name="ray"),
        evaluation=EvaluationSettings(every=10),
        diagnostics=DiagnosticsSettings(every=10),
    )


def sweep() -> Sweep:
    return Sweep(name="bandwidth-vs-convergence", base=scenario(), over={"optimizer": list(BEST)})
