"""The figure: how far simulated steps are from measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt

from analysis.fidelity.training.predict import Prediction

NAMES = {"ddp": "DDP + AdamW", "powersgd": "DDP + PowerSGD hook", "fsdp": "FSDP2 + AdamW"}
LOOKS = {"ddp": ("o", "0.0"), "powersgd": ("s", "0.6"), "fsdp": ("^", "0.35")}


def draw(predictions: Sequence[Prediction], file: Path) -> None:
    """Draw the signed error of every case over the links' rate, a panel for each number of hosts."""
    counts = sorted({p.case.members for p in predictions})
    figure, panels = plt.subplots(1, len(counts), figsize=(8, 3.2), sharey=True, layout="constrained", squeeze=False)
    for panel, members in zip(panels[0], counts, strict=True):
        panel.axhspan(-3, 3, color="0.93", lw=0)
        panel.axhline(0, color="0.5", lw=0.8)
        for method, (marker, colour) in LOOKS.items():
            found = [p for p in predictions if (p.case.members, p.case.method) == (members, method)]
            rates = [p.case.rate / 1e6 for p in found]
            errors = [100 * p.error for p in found]
            panel.plot(rates, errors, marker=marker, color=colour, label=NAMES[method], lw=1, ms=6)
        panel.set_xscale("log")
        ticks = sorted({p.case.rate / 1e6 for p in predictions})
        panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        panel.minorticks_off()
        panel.set_title(f"{members} hosts")
        panel.set_xlabel("link rate, Mbit/s")
    panels[0][0].set_ylabel("simulated step against\nmeasured step, %")
    panels[0][0].legend(frameon=False, fontsize="small")
    figure.savefig(file, dpi=150)
    plt.close(figure)
