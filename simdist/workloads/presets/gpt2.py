"""GPT-2 (Radford et al. 2019, table 2): learned positions, LayerNorm, GELU, biases, tied head, 1,024 tokens.

Sizes are those of the released weights (openai/gpt-2, ``hparams.json``; Hugging Face ``gpt2``, ``gpt2-medium``,
``gpt2-large``, ``gpt2-xl``), which have more parameters than the paper's table says: 124 M, not 117 M, and so on.
"""

from __future__ import annotations

from simdist.workloads.decoder import Decoder
from simdist.workloads.presets.preset import Preset, presets


def _gpt2(width: int, depth: int, heads: int) -> Decoder:
    return Decoder(
        width=width,
        depth=depth,
        heads=heads,
        hidden=4 * width,
        vocabulary=50257,
        context=1024,
        norm="layer",
        positions="learned",
        window=1024,
        mlp="gelu",
        biases=True,
        tied=True,
    )


for _name, _sizes, _parameters in (
    ("gpt2-124m", (768, 12, 12), 124_439_808),
    ("gpt2-355m", (1024, 24, 16), 354_823_168),
    ("gpt2-774m", (1280, 36, 20), 774_030_080),
    ("gpt2-1.5b", (1600, 48, 25), 1_557_611_200),
):
    presets.register(_name)(Preset(_gpt2(*_sizes), _parameters, "GPT-2's released weights (Radford et al. 2019)"))
