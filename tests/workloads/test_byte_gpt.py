"""The decoder: sizes, FLOPs against closed forms, causality, and that it learns."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from simdist.workloads import ByteGPT
from simdist.workloads.byte_gpt import ByteGPTTask, _attend, _block, _rotate, _tables
from simdist.workloads.corpus import load_corpus

CPU = torch.device("cpu")
TINY = ByteGPT(width=32, depth=2, heads=2, context=24, batch=4)


@pytest.fixture(scope="module")
def task() -> ByteGPTTask:
    return TINY.build(0, torch.float64, CPU)


def test_default_model_has_about_a_million_parameters() -> None:
    g = ByteGPT()
    count = sum(math.prod(spec.shape) for spec in g.root_specs())
    count += g.depth * sum(math.prod(spec.shape) for spec in g.block_specs(0))
    assert count == 1_070_464


@pytest.mark.parametrize("settings", [TINY, ByteGPT(width=12, depth=1, heads=3, context=7, batch=2, mlp="relu2")])
def test_flops_equal_the_closed_form(settings: ByteGPT) -> None:
    """2 m n per matrix and token, 4 context width per token for attention scores and values; backward twice that."""
    root, *blocks = settings.build(0, torch.float32, CPU).units
    tokens = settings.batch * settings.context
    matrices = sum(math.prod(spec.shape) for spec in settings.block_specs(0) if spec.role == "matrix")
    for block in blocks:
        assert block.forward_flops == tokens * (2 * matrices + 4 * settings.context * settings.width)
        assert block.backward_flops == 2 * block.forward_flops
    assert root.forward_flops == tokens * 2 * 256 * settings.width
    assert root.backward_flops == 2 * root.forward_flops


def test_units_add_up_to_torchs_own_counter(task: ByteGPTTask) -> None:
    params = {name: value.requires_grad_() for name, value in task.initial().items()}
    with FlopCounterMode(display=False) as counter:
        task.loss(params, task.batch(0, 0)).backward()
    assert counter.get_total_flops() == sum(unit.forward_flops + unit.backward_flops for unit in task.units)


def test_building_does_not_import_torchs_compiler() -> None:
    """It would cost every process of a run more than a second."""
    code = (
        "import sys, torch; from simdist.workloads import ByteGPT\n"
        "ByteGPT(width=8, depth=1, heads=1, context=4).build(0, torch.float32, torch.device('cpu'))\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_first_loss_is_near_that_of_guessing(task: ByteGPTTask) -> None:
    assert task.loss(task.initial(), task.batch(0, 0)).item() == pytest.approx(math.log(256), abs=0.1)


def test_a_block_does_not_see_the_future(task: ByteGPTTask) -> None:
    tables = _tables(TINY, torch.float64, CPU)
    x = torch.randn(1, TINY.context, TINY.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    changed = x.clone()
    changed[0, 12] += 1
    y, z = (_block(TINY, tables, task.initial(), "blocks.1.", value) for value in (x, changed))
    assert torch.equal(y[:, :12], z[:, :12])
    assert (y[:, 12:] != z[:, 12:]).any(-1).all()


def test_attention_is_that_of_torch() -> None:
    q, k, v = torch.randn(3, 2, 2, TINY.context, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mask = _tables(TINY, torch.float64, CPU).mask
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    torch.testing.assert_close(_attend(q, k, v, mask), expected, rtol=1e-9, atol=1e-12)


def test_rotary_scores_depend_on_the_distance_alone() -> None:
    """The same query and key at every place: q_i k_j is a function of i - j."""
    tables = _tables(TINY, torch.float64, CPU)
    q, k = torch.randn(2, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    scores = _rotate(q.expand(TINY.context, -1), tables) @ _rotate(k.expand(TINY.context, -1), tables).mT
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1], rtol=1e-9, atol=1e-12)
    assert scores[0].std() > 0.1


def test_validation_windows_span_the_held_out_part(task: ByteGPTTask) -> None:
    held_out = load_corpus("stdlib").validation.long()
    first, last = task.validation[0][0][0], task.validation[-1][0][-1]
    assert torch.equal(first, held_out[: TINY.context + 1])
    assert torch.equal(last, held_out[-TINY.context - 1 :])


def test_thirty_adamw_steps_lower_the_loss() -> None:
    task = TINY.build(0, torch.float32, CPU)
    params = {name: value.requires_grad_() for name, value in task.initial().items()}
    optimizer = torch.optim.AdamW(list(params.values()), lr=1e-2)

    def validation() -> float:
        with torch.no_grad():
            return float(torch.stack([task.loss(params, batch) for batch in task.validation]).mean())

    before = validation()
    for step in range(30):
        optimizer.zero_grad()
        task.loss(params, task.batch(0, step)).backward()
        optimizer.step()
    assert validation() < before - 1.5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": 3}, "multiple of 2 \\* heads = 6"),
        ({"width": 12, "heads": 4}, "even size"),
        ({"context": 0}, "above zero"),
        ({"mlp": "gelu"}, "swiglu"),
        ({"corpus": "stdlibs"}, "Did you mean 'stdlib'"),
        ({"validation_batches": 0}, "above zero"),
        ({"widht": 12}, "Extra inputs"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ByteGPT.model_validate(changes)
