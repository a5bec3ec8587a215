"""Laws that every workload keeps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from simdist.workloads import ByteGPT, Decoder, Digits, ModuleWorkload, Task, Teacher, Workload

CPU = torch.device("cpu")
USER = str(Path(__file__).with_name("user_model.py"))

WORKLOADS: dict[str, Workload] = {
    "byte_gpt swiglu": ByteGPT(width=16, depth=2, heads=2, context=12, batch=3, validation_batches=2),
    "byte_gpt relu2": ByteGPT(width=8, depth=1, heads=1, context=5, batch=2, mlp="relu2", hidden=7),
    "decoder as llama": Decoder(
        width=16, depth=2, heads=4, kv_heads=2, hidden=9, vocabulary=256, context=6, batch=2, validation_batches=2
    ),
    "decoder as gpt2": Decoder(
        width=9,
        depth=1,
        heads=3,
        hidden=8,
        vocabulary=260,
        context=5,
        batch=2,
        norm="layer",
        positions="learned",
        window=7,
        mlp="gelu",
        biases=True,
        tied=True,
        attention="written_out",
        validation_batches=2,
    ),
    "digits": Digits(hidden=9, depth=1, batch=4),
    "teacher": Teacher(rows=7, columns=5, matrices=3, batch=2, heterogeneity=0.3),
    "teacher without bias": Teacher(rows=4, columns=6, bias=False, spectrum=(2.0, 0.5)),
    "module": ModuleWorkload(
        model=f"{USER}:make_net", loss=f"{USER}:cross_entropy", dataset=f"{USER}:make_data", batch=4
    ),
}


@pytest.fixture(params=WORKLOADS, scope="module")
def workload(request: pytest.FixtureRequest) -> Workload:
    return WORKLOADS[request.param]


@pytest.fixture(scope="module")
def task(workload: Workload) -> Task:
    return workload.build(0, torch.float64, CPU)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_every_parameter_is_in_exactly_one_unit_with_its_shape(task: Task) -> None:
    specs = [spec for unit in task.units for spec in unit.params]
    assert len({spec.name for spec in specs}) == len(specs)
    assert {spec.name: spec.shape for spec in specs} == {k: tuple(v.shape) for k, v in task.initial().items()}
    assert all(spec.role == "vector" for spec in specs if len(spec.shape) == 1)
    assert all(unit.params for unit in task.units)
    assert [unit.root for unit in task.units[1:]] == [False] * (len(task.units) - 1)


def test_units_with_matrices_have_flops(task: Task) -> None:
    for unit in task.units:
        if any(spec.role in ("matrix", "head") for spec in unit.params):
            assert unit.forward_flops > 0
            assert unit.backward_flops > 0


def test_initial_parameters_repeat_and_are_not_shared(workload: Workload, task: Task) -> None:
    first = task.initial()
    again = workload.build(0, torch.float64, CPU).initial()
    assert all(torch.equal(first[name], again[name]) for name in first)
    first[next(iter(first))].add_(1)
    assert all(torch.equal(value, again[name]) for name, value in task.initial().items())


def test_initial_parameters_depend_on_the_seed(workload: Workload, task: Task) -> None:
    other = workload.build(1, torch.float64, CPU).initial()
    assert any(not torch.equal(value, other[name]) for name, value in task.initial().items())


def test_float32_and_float64_start_from_the_same_numbers(workload: Workload, task: Task) -> None:
    single = workload.build(0, torch.float32, CPU)
    for name, value in single.initial().items():
        assert value.dtype == torch.float32
        assert torch.equal(value.double(), task.initial()[name])
    loss = single.loss(single.initial(), single.batch(0, 0))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), task.loss(task.initial(), task.batch(0, 0)), rtol=1e-4, atol=1e-5)


def test_batches_are_keyed_by_seed_worker_and_step(workload: Workload, task: Task) -> None:
    batch = task.batch(1, 2)
    assert same(batch, task.batch(1, 2))
    assert same(batch, workload.build(0, torch.float64, CPU).batch(1, 2))
    others = (task.batch(2, 2), task.batch(1, 3), workload.build(1, torch.float64, CPU).batch(1, 2))
    assert not any(same(batch, other) for other in others)


def test_batches_have_equal_shapes_on_all_workers(task: Task) -> None:
    shapes = {tuple(x.shape for x in task.batch(worker, step)) for worker in range(5) for step in range(2)}
    assert len(shapes) == 1


def test_validation_batches_are_fixed_and_of_equal_size(workload: Workload, task: Task) -> None:
    assert len(task.validation) > 0
    other = workload.build(7, torch.float64, CPU)
    assert all(same(a, b) for a, b in zip(task.validation, other.validation, strict=True))
    assert len({tuple(x.shape for x in batch) for batch in task.validation}) == 1
    assert torch.isfinite(task.loss(task.initial(), task.validation[0]))


def test_loss_of_joined_batches_is_the_mean_of_their_losses(task: Task) -> None:
    params = task.initial()
    batches = [task.batch(worker, 0) for worker in range(3)]
    joined = tuple(torch.cat(parts) for parts in zip(*batches, strict=True))
    mean = torch.stack([task.loss(params, batch) for batch in batches]).mean()
    assert torch.isfinite(mean)
    close(task.loss(params, joined), mean)


def test_gradient_is_the_slope_of_the_loss(task: Task) -> None:
    params, batch = task.initial(), task.batch(0, 0)
    grads = torch.func.grad(task.loss)(params, batch)
    draws = torch.Generator().manual_seed(3)
    for name, value in params.items():
        direction = torch.randn(value.shape, generator=draws, dtype=torch.float64)
        h = 1e-6
        up, down = ({**params, name: value + s * h * direction} for s in (1, -1))
        slope = (task.loss(up, batch) - task.loss(down, batch)) / (2 * h)
        torch.testing.assert_close((grads[name] * direction).sum(), slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("own_params", [False, True])
def test_vmap_of_the_gradient_is_the_loop(task: Task, own_params: bool) -> None:
    params = task.initial()
    batches = [task.batch(worker, 0) for worker in range(3)]
    stacked = tuple(torch.stack(parts) for parts in zip(*batches, strict=True))
    workers = [{k: v * (1 + 0.1 * w * own_params) for k, v in params.items()} for w in range(3)]
    grad = torch.func.grad_and_value(task.loss)
    if own_params:
        stack = {k: torch.stack([worker[k] for worker in workers]) for k in params}
        grads, losses = torch.func.vmap(grad)(stack, stacked)
    else:
        grads, losses = torch.func.vmap(grad, in_dims=(None, 0))(params, stacked)
    for w in range(3):
        expected, loss = grad(workers[w], batches[w])
        close(losses[w], loss)
        for name in params:
            close(grads[name][w], expected[name])


def test_settings_survive_plain_data(workload: Workload) -> None:
    assert type(workload).model_validate(workload.model_dump(mode="json")) == workload
