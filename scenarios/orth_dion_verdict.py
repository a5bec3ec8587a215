"""Does orthonormalising Dion's right factor pay? One training run of the study on Orth-Dion (arXiv 2605.16341).

    simdist run scenarios/orth_dion_verdict.py
    simdist run scenarios/orth_dion_verdict.py --set optimizer.right_factor=colnorm --set optimizer.lr=0.08 --set seed=1
    simdist run scenarios/orth_dion_verdict.py --set optimizer.error_feedback=code --set optimizer.beta=0.05
    python -m analysis.orth_dion_verdict.run                   # the whole study; each number names its command

Mesh, engine and wire change no value here (a law of the tests), so one worker in one thread trains; bytes per mesh
follow from shapes alone (analysis/byte_crossovers.py). What all contestants share: data, tokens, schedule, weight
decay 0.1, update scale sqrt(m/n), and AdamW at 0.003 for embedding, head and norms.
"""

from simdist import Scenario
from simdist.execution.settings import EngineSettings
from simdist.optimizers import AdamW, OrthDion
from simdist.scenario import DiagnosticsSettings, EvaluationSettings
from simdist.schedules import LearningRate
from simdist.workloads import ByteGPT


def scenario() -> Scenario:
    return Scenario(
        name="orth-dion-verdict",
        steps=200,
        # the small model: ranks 8, 16 and 32 are d/8, d/4 and d/2
        workload=ByteGPT(width=64, depth=2, heads=4, context=64, batch=16, validation_batches=8),
        # the paper's rule; `error_feedback=code` with beta 0.05 has the memory of Dion with momentum 0.95
        optimizer=OrthDion(
            lr=0.16,
            weight_decay=0.1,
            scale="spectral",
            rank_fraction=0.25,
            right_factor="qr_pos",
            error_feedback="paper",
            beta=1.0,
            auxiliary=AdamW(lr=3e-3),
        ),
        lr_schedule=LearningRate(warmup=20, shape="cosine", final=0.0),
        # one thread: sums keep their order, so that a run repeats itself to the bit beside others
        engine=EngineSettings(threads=1),
        evaluation=EvaluationSettings(every=10),
        diagnostics=DiagnosticsSettings(every=10),
    )
