"""Learning rates of the main job: every contestant on a grid, same data, steps and seed.

    simdist sweep analysis/lr_sweep/lr_sweep.py --out runs/lr_sweep
    python analysis/lr_sweep/summarise.py runs/lr_sweep

The stacked engine trains the same numbers as the main job's Ray actors to rounding, in less wall time. The fifth
contestant is Orth-Dion with Dion's memory (card 1's convention "code" with beta_c = 1 - mu = 0.05): it differs from
Dion in one line only, how the right factor is normalised.
"""

from pathlib import Path

from simdist import Sweep
from simdist.execution.settings import EngineSettings
from simdist.optimizers import Rule
from simdist.registry import load_file

MAIN = load_file(Path(__file__).parents[2] / "scenarios" / "bandwidth_vs_convergence.py")
ADAMW_GRID = [1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032]
SPECTRAL_GRID = [0.005, 0.01, 0.02, 0.04, 0.08, 0.16]
# the best of the grid was its last, so it goes on for this one
ORTH_DION_MORE = [0.32, 0.64]


def sweep() -> Sweep:
    contestants: list[Rule] = []
    for adamw, lr in zip(ADAMW_GRID, SPECTRAL_GRID, strict=True):
        contestants += MAIN.optimizers(adamw, lr, lr, lr)
        contestants.append(MAIN.orth_dion_rule(lr, "code", 0.05))
    contestants += [MAIN.orth_dion_rule(lr, "paper", 1.0) for lr in ORTH_DION_MORE]
    base = MAIN.scenario().model_copy(update={"engine": EngineSettings(name="stacked")})
    return Sweep(name="lr-sweep", base=base, over={"optimizer": contestants})
