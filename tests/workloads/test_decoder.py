"""The decoder against plain modules of torch, and what is counted of it against closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from simdist.workloads import Decoder
from simdist.workloads.decoder_blocks import fused, rotated, tables, written_out
from simdist.workloads.flops import SavedTensors, cost_of
from simdist.workloads.presets import presets

CPU, META = torch.device("cpu"), torch.device("meta")
SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 4, "hidden": 24, "vocabulary": 256, "context": 8, "batch": 2}
GPT2 = {"norm": "layer", "positions": "learned", "mlp": "gelu", "biases": True, "tied": True}


def test_grouped_attention_is_torchs() -> None:
    q, k, v = torch.randn(2, 2, 3, 5, 4), torch.randn(2, 2, 5, 4), torch.randn(2, 2, 5, 4)
    mask = tables(5, 4, 10.0, torch.float32, CPU).mask
    mine = written_out(mask)(q, k, v).flatten(1, 2)
    theirs = F.scaled_dot_product_attention(q.flatten(1, 2), k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(mine, theirs)


def test_rotary_products_depend_on_distance_alone() -> None:
    at = tables(9, 6, 100.0, torch.float64, CPU)
    q, k = (rotated(torch.randn(6, dtype=torch.float64).expand(9, 6), at) for _ in range(2))
    products = q @ k.mT
    for distance in range(9):
        along = products.diagonal(distance)
        torch.testing.assert_close(along, along[:1].expand_as(along))


def test_a_gpt2_block_is_torchs_encoder_layer() -> None:
    """Pre-norm, GELU, biases: nn.TransformerEncoderLayer with norm_first and a causal mask."""
    task = Decoder(**SIZES, **GPT2).build(0, torch.float64, CPU)
    params, (tokens,) = task.initial(), task.batch(0, 0)
    params = {name: x + 0.1 * torch.randn(x.shape, dtype=torch.float64) for name, x in params.items()}
    x = F.embedding(tokens[:, :-1], params["embed.weight"]) + params["positions.weight"]
    for i in range(2):
        layer = nn.TransformerEncoderLayer(
            16,
            4,
            24,
            0.0,
            lambda x: F.gelu(x, approximate="tanh"),
            batch_first=True,
            norm_first=True,
            dtype=torch.float64,
        )
        p = {name.removeprefix(f"blocks.{i}."): x for name, x in params.items()}
        qkv = {kind: torch.cat([p[f"attn.{name}.{kind}"] for name in "qkv"]) for kind in ("weight", "bias")}
        theirs = {"self_attn.in_proj_weight": qkv["weight"], "self_attn.in_proj_bias": qkv["bias"]}
        names = {"self_attn.out_proj": "attn.out", "linear1": "mlp.up", "linear2": "mlp.down"}
        names |= {"norm1": "norm1", "norm2": "norm2"}
        theirs |= {f"{a}.{kind}": p[f"{b}.{kind}"] for a, b in names.items() for kind in ("weight", "bias")}
        layer.load_state_dict(theirs)
        x = layer(x, src_mask=nn.Transformer.generate_square_subsequent_mask(8, dtype=torch.float64), is_causal=True)
    logits = F.layer_norm(x, (16,), params["norm.weight"], params["norm.bias"]) @ params["embed.weight"].mT
    expected = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    torch.testing.assert_close(task.loss(params, (tokens,)), expected)


@pytest.mark.parametrize("kind", [{}, GPT2, {"kv_heads": 1}], ids=["llama", "gpt2", "one kv head"])
@pytest.mark.parametrize("attention", ["fused", "written_out"])
def test_flops_are_those_of_the_whole_model(kind: dict[str, Any], attention: Any) -> None:
    task = Decoder(**SIZES, **kind, attention=attention).build(0, torch.float32, CPU)
    params = {name: x.requires_grad_() for name, x in task.initial().items()}
    with FlopCounterMode(display=False) as forward:
        loss = task.loss(params, task.batch(0, 0))
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    assert sum(unit.forward_flops for unit in task.units) == forward.get_total_flops()
    # fused kernels compute scores once more: a fifth product beside the four of the backward pass
    again = 2 * 2 * 8 * 8 * 16 * 2 if attention == "fused" else 0
    assert sum(unit.backward_flops for unit in task.units) == backward.get_total_flops() + again


def test_fused_attention_keeps_no_scores() -> None:
    q, k, v = (
        torch.empty(shape, device=META, requires_grad=True) for shape in [(1, 2, 3, 64, 8)] + [(1, 2, 64, 8)] * 2
    )
    saved = SavedTensors()
    with saved.watching():
        out = fused(q, k, v)
    assert out.shape == q.shape
    # queries, keys, values, outputs, and the logarithm of the sum for each query
    assert saved.numbers[""] == 2 * q.numel() + 2 * k.numel() + 6 * 64


def test_activations_of_linear_layers_by_hand() -> None:
    """``(gelu(x W^T)) V^T`` keeps x (counted apart), the product, and what gelu made of it; no parameters."""

    def mlp(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.gelu(x @ params["w"].mT) @ params["v"].mT

    x = torch.empty(3, 5, device=META, requires_grad=True)
    cost = cost_of(mlp, {"w": (7, 5), "v": (4, 7)}, x)
    assert (cost.activations.numbers, cost.activations.inputs) == (3 * 7 + 3 * 7, 15)
    assert (cost.forward, cost.backward) == (2 * 3 * 5 * 7 + 2 * 3 * 7 * 4, 2 * (2 * 3 * 5 * 7 + 2 * 3 * 7 * 4))
    assert cost.times(2).activations.numbers == 2 * cost.activations.numbers


def test_a_causal_mask_and_constants_are_no_activations() -> None:
    table = torch.ones(5, device=META)
    x = torch.empty(3, 5, device=META, requires_grad=True)
    product = lambda params, x: x * table * params["g"]  # noqa: E731  # as cost_of takes it
    shapes = {"g": (5,)}
    assert (
        cost_of(product, shapes, x).activations.numbers - cost_of(product, shapes, x, [table]).activations.numbers == 5
    )


def test_a_plan_of_the_largest_reads_and_allocates_nothing() -> None:
    task = presets.get("llama3-405b").model.build(0, torch.float32, META)
    assert task.data_hash == "none (plan)"
    # 2 FLOPs a parameter and token, and the scores of attention
    tokens, block = 8192, task.units[1]
    numbers = sum(torch.Size(spec.shape).numel() for spec in block.params if spec.role == "matrix")
    assert block.forward_flops == 2 * numbers * tokens + 4 * tokens**2 * 16384


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"kv_heads": 3}, "divisor of 4"),
        ({"width": 18}, "multiple of 2 * heads"),
        ({"vocabulary": 100}, "at least 256"),
        ({"positions": "learned", "window": 4}, "context of at most 4"),
        ({"window": 4}, "need no table"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Decoder(**{**SIZES, **wrong})
    assert said in str(error.value)
