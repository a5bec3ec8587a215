"""Right and left factors on the real engines: the harness' values and messages, and lossy wires."""

from __future__ import annotations

import pytest
import torch

from simdist.optimizers import Dion, MeshShape, OrthDion
from simdist.optimizers.low_rank import LowRank
from tests.optimizers.harness import Coroutines, first_value, random_gradient, train
from tests.optimizers.test_engines import PARAMETERS, Real, booked

RULES: dict[str, LowRank] = {
    "polar": OrthDion(lr=0.1, rank=2, right_factor="polar"),
    "interp": OrthDion(lr=0.1, rank=5, right_factor="interp", tau=0.5),
    "blocks": OrthDion(lr=0.1, rank=3, right_factor="block_qr", block=2),
    "auto": OrthDion(lr=0.1, rank=2, gram_passes="auto"),
    "by owners": OrthDion(lr=0.1, rank=2, orthonormalization="all_to_all"),
    "polar by owners": OrthDion(lr=0.1, rank=2, right_factor="polar", orthonormalization="all_to_all"),
    "svd": OrthDion(lr=0.1, rank=2, right_factor="exact_svd"),
    "svd by owners": OrthDion(lr=0.1, rank=2, right_factor="exact_svd", orthonormalization="all_to_all"),
    "published dion": Dion(lr=0.1, rank=2, left_factor="rcqr"),
    "cqr, averaged buffers": Dion(lr=0.1, rank=2, left_factor="cqr", cqr_warmup=2, average_buffers_every=2),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(
    ("engine", "mesh"),
    [("inline", MeshShape(2, 2)), ("stacked", MeshShape(2, 2)), ("stacked", MeshShape(4, 1))],
    ids=str,
)
def test_engines_do_what_the_harness_does(mesh: MeshShape, engine: str, name: str) -> None:
    rule, gradient = RULES[name], random_gradient(PARAMETERS)
    expected = train(Coroutines(), mesh, rule, PARAMETERS, gradient, steps=2, measure=True)
    got = train(Real(engine), mesh, rule, PARAMETERS, gradient, steps=2, measure=True)
    for trained in got.results:
        for key, value in expected.results[0].parameters.items():
            torch.testing.assert_close(trained.parameters[key], value, rtol=0, atol=1e-10)
            assert torch.equal(trained.parameters[key], got.results[0].parameters[key])
    assert booked(got) == booked(expected)
    assert got.flops == expected.flops
    for row, other in zip(got.observations, expected.observations, strict=True):
        assert row.pop("matrix") == other.pop("matrix")
        assert row == pytest.approx({k: float(v) for k, v in other.items()}, abs=1e-7)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize(("codec", "width", "tolerance"), [("fp32", 4, 1e-5), ("bf16", 2, 0.1)])
def test_lossy_wires_stay_close_and_replicas_equal(name: str, codec: str, width: int, tolerance: float) -> None:
    rule, mesh, gradient = RULES[name], MeshShape(2, 2), random_gradient(PARAMETERS)
    expected = train(Coroutines(), mesh, rule, PARAMETERS, gradient, steps=3)
    got = train(Real("inline", codec, width), mesh, rule, PARAMETERS, gradient, steps=3)
    for trained in got.results:
        for parameter in PARAMETERS:
            key, value = parameter.name, expected.results[0].parameters[parameter.name]
            moved = float((value - first_value(parameter)).norm())
            assert float((trained.parameters[key] - value).norm()) < tolerance * moved
            assert torch.equal(trained.parameters[key], got.results[0].parameters[key])


@pytest.mark.parametrize("engine", ["inline", "stacked"])
def test_columns_that_owners_left_out_are_told_through_a_lossy_wire(engine: str) -> None:
    """A gradient of rank one: three of four columns say nothing, and keep their place in the basis."""
    matrices = PARAMETERS[:1]
    g = torch.outer(torch.arange(1.0, 11.0), torch.ones(7)).double()
    rule = OrthDion(lr=0.1, rank=4, orthonormalization="all_to_all")
    gram = OrthDion(lr=0.1, rank=4)
    mesh = MeshShape(1, 2)
    for codec, width in (("fp64", 8), ("bf16", 2)):
        one, two = (train(Real(engine, codec, width), mesh, r, matrices, lambda *_: g, steps=1) for r in (rule, gram))
        basis, expected = (torch.as_tensor(outcome.results[0].states[0].basis) for outcome in (one, two))
        torch.testing.assert_close(basis, expected, rtol=0, atol=1e-10 if codec == "fp64" else 0.02)
        assert basis.abs().max() < 1.1
        assert (torch.linalg.vector_norm(basis[..., 0, :, :], dim=-2) > 0.1).all()
