"""Llama 3 (arXiv 2407.21783, table 3): rotary positions of base 500,000, RMSNorm, SwiGLU, no biases, untied head.

8B, 70B and 405B: the paper's table and Meta's ``params.json`` (8 heads of keys and values, vocabulary 128,256, MLPs of
14,336, 28,672 and 53,248). They were trained on 8,192 tokens at a time.

320M and 17.1B are models of the paper on Orth-Dion (arXiv 2605.16341) that only share the architecture. The first is
the authors' own configuration (ansschh/structdion, ``ortho_matrix/common/model_configs.py``: 18 blocks of width 768, 12
heads, all with keys and values of their own, MLPs of 2,048). **The sizes of the second are not published**: assumed
are Llama 3's proportions (heads of 128, 8 of them with keys and values, MLPs of 3.5 widths, 32 blocks as in 8B) at the
one multiple of 1,024 as width that gives 17.1 billion parameters.
"""

from __future__ import annotations

from simdist.workloads.decoder import Decoder
from simdist.workloads.presets.preset import Preset, presets

_PAPER = "Llama 3 (arXiv 2407.21783, table 3)"
_AUTHORS = "of the Orth-Dion paper (2605.16341)"


def _llama3(width: int, depth: int, heads: int, kv_heads: int, hidden: int, context: int) -> Decoder:
    return Decoder(
        width=width,
        depth=depth,
        heads=heads,
        kv_heads=kv_heads,
        hidden=hidden,
        vocabulary=128256,
        context=context,
        rotary_base=500_000.0,
    )


for _name, _sizes, _parameters, _source in (
    ("llama3-320m", (768, 18, 12, 12, 2048, 2048), 324_431_616, f"{_AUTHORS}, from its code; context assumed"),
    ("llama3-8b", (4096, 32, 32, 8, 14336, 8192), 8_030_261_248, _PAPER),
    ("llama3-17.1b", (6144, 32, 48, 8, 21504, 2048), 17_078_556_672, f"{_AUTHORS}; all sizes but the total assumed"),
    ("llama3-70b", (8192, 80, 64, 8, 28672, 8192), 70_553_706_496, _PAPER),
    ("llama3-405b", (16384, 126, 128, 8, 53248, 8192), 405_853_388_800, _PAPER),
):
    presets.register(_name)(Preset(_llama3(*_sizes), _parameters, _source))
