"""The parts of a decoder-only transformer as functions of parameters: norms, attention, MLPs.

Shapes: the residual stream is ``[batch, context, width]``; queries ``[batch, kv, group, context, size]`` with ``kv``
heads of keys and values, each shared by ``group`` heads of queries (arXiv 2305.13245); keys and values
``[batch, kv, context, size]``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Params = dict[str, Tensor]
#: (queries, keys, values) to outputs, shaped as the queries
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]

EPS = 1e-5


class Tables(NamedTuple):
    """Constants of position: rotary cos and sin [context, size / 2], causal mask [context, context], true above."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


def tables(context: int, size: int, base: float, dtype: torch.dtype, device: torch.device) -> Tables:
    """Return angles as in Su et al., arXiv 2104.09864, for heads of ``size`` numbers, and the mask."""
    frequencies = base ** (-torch.arange(0, size, 2, dtype=torch.float64, device=device) / size)
    angles = torch.outer(torch.arange(context, dtype=torch.float64, device=device), frequencies)
    mask = torch.ones(context, context, dtype=torch.bool, device=device).triu(1)
    return Tables(angles.cos().to(dtype), angles.sin().to(dtype), mask)


def rotated(x: Tensor, at: Tables) -> Tensor:
    """Turn pairs of numbers (x_i, x_(i + size/2)) of ``[..., context, size]`` by their position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * at.cos - b * at.sin, a * at.sin + b * at.cos), dim=-1)


def normed(x: Tensor, params: Params, name: str) -> Tensor:
    """RMSNorm, or LayerNorm where the parameter ``name.bias`` is there."""
    gain, bias = params[f"{name}.weight"], params.get(f"{name}.bias")
    if bias is None:
        return F.rms_norm(x, gain.shape, gain, EPS)
    return F.layer_norm(x, gain.shape, gain, bias, EPS)


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    """Return ``x W^T``, and the bias where there is one."""
    return F.linear(x, params[f"{name}.weight"], params.get(f"{name}.bias"))


def written_out(mask: Tensor) -> Attention:
    """Return causal attention as products and a softmax.

    Fused CPU kernels have no batching rule for ``torch.func.vmap``, and give other bits where they have.
    """

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = k.unsqueeze(-3), v.unsqueeze(-3)
        scores = (q / math.sqrt(q.shape[-1])) @ k.mT
        return scores.masked_fill(mask, -math.inf).softmax(-1) @ v

    return attend


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention as flash kernels do it: scores are not kept but computed again backwards (arXiv 2307.08691).

    To be counted, on the meta device. The queries that share a head of keys stand one after the other, as in kernels
    for grouped queries. The half of the scores that a causal mask leaves out is counted, as is usual.
    """
    assert q.is_meta
    out = torch.ops.aten._scaled_dot_product_flash_attention(q.flatten(-3, -2), k, v)[0]
    attended: Tensor = out.unflatten(-2, q.shape[-3:-1])
    return attended


def block(params: Params, x: Tensor, heads: int, kv: int, at: Tables | None, attend: Attention) -> Tensor:
    """Run one pre-norm block on the residual stream.

    Args:
        params: ``norm1``, ``attn.{q,k,v,out}``, ``norm2``, ``mlp.{gate,up,down}`` (no gate: GELU) with ``.weight``, and
            ``.bias`` where there are biases.
        at: rotary tables; None: positions are not a matter of the block.
    """
    h = normed(x, params, "norm1")
    q, k, v = (linear(h, params, f"attn.{name}") for name in ("q", "k", "v"))
    # [batch, context, heads size] -> [batch, kv, group, context, size] and [batch, kv, context, size]
    q = q.unflatten(-1, (kv, heads // kv, -1)).permute(0, 2, 3, 1, 4)
    k, v = (y.unflatten(-1, (kv, -1)).transpose(1, 2) for y in (k, v))
    if at is not None:
        q, k = rotated(q, at), rotated(k, at)
    y = attend(q, k, v).permute(0, 3, 1, 2, 4).flatten(2)
    x = x + linear(y, params, "attn.out")

    h = normed(x, params, "norm2")
    up = linear(h, params, "mlp.up")
    if "mlp.gate.weight" in params:
        inner = F.silu(linear(h, params, "mlp.gate")) * up
    else:
        inner = F.gelu(up, approximate="tanh")
    return x + linear(inner, params, "mlp.down")
