"""Right factors of matrices that say little: zero, rank-deficient, graded, huge, and not a number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from simdist.optimizers import MeshShape, OrthDion
from simdist.program.random import normal
from tests.optimizers.harness import DRIVERS, Cohort, Driver, Parameter, first_value, random_gradient, train
from tests.optimizers.test_low_rank import poor_gradient

A2A: dict[str, Any] = {"orthonormalization": "all_to_all"}
FAMILY: dict[str, dict[str, Any]] = {
    "polar": {"right_factor": "polar"},
    "interp": {"right_factor": "interp", "tau": 0.5},
    "block": {"right_factor": "block_qr", "block": 2},
    "block raw": {"right_factor": "block_qr", "block": 3, "signs": "raw"},
    "svd": {"right_factor": "exact_svd"},
    "svd by owners": {"right_factor": "exact_svd", **A2A},
    "auto": {"gram_passes": "auto"},
    "by owners": A2A,
    "polar by owners": {"right_factor": "polar", **A2A},
}
ORTHONORMAL = [name for name in FAMILY if name not in ("interp", "block", "block raw")]
POOR = ["rank one", "rank two of four", "one entry", "one row", "tiny", "huge", "graded"]
PARAMETERS = [Parameter("a", (12, 9)), Parameter("b", (12, 9))]


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [*((kind, torch.float32) for kind in POOR), ("rank one", torch.float64), ("graded", torch.float64)],
    ids=str,
)
@pytest.mark.parametrize("name", FAMILY)
def test_poor_gradients_give_finite_bounded_updates(name: str, kind: str, dtype: torch.dtype) -> None:
    rule, mesh = OrthDion(lr=0.1, rank=4, **FAMILY[name]), MeshShape(1, 4)
    poor, good = poor_gradient(kind, (12, 9)), normal((12, 9), 6, "good")

    def gradient(name: str, step: int, worker: int) -> Tensor:
        return poor if name == "a" else good

    outcome = train(Cohort(), mesh, rule, PARAMETERS, gradient, steps=3, dtype=dtype, measure=True)
    trained = outcome.results[0]
    most = 1.001 if name in ORTHONORMAL else 2.001
    # squares of 1e20 overflow single precision: a Gram matrix says nothing then, W itself would
    overflows = kind == "huge" and dtype == torch.float32 and name in ("polar", "interp", "block")
    assert all(float(row["nu"]) <= most for row in outcome.observations)
    for row in outcome.observations:
        assert all(math.isfinite(float(value)) for key, value in row.items() if key != "matrix")
    moved = trained.parameters["a"].double() - first_value(PARAMETERS[0])
    size = float(torch.linalg.matrix_norm(moved, 2))
    assert size < 1e-6 if overflows else 0.05 < size < 3 * 0.1 * most + 1e-3
    for leaf in (trained.states[0].buffer, trained.states[0].basis, trained.parameters["b"]):
        assert leaf.isfinite().all()
    alone = train(Cohort(), mesh, rule, PARAMETERS[1:], gradient, steps=3, dtype=dtype).results[0]
    torch.testing.assert_close(trained.parameters["b"], alone.parameters["b"])


@pytest.mark.parametrize("kind", POOR[:4])
@pytest.mark.parametrize("name", [name for name in FAMILY if "raw" not in name])
def test_rank_deficient_gradients_move_along_themselves_only(name: str, kind: str) -> None:
    """No direction without a gradient is moved, and all meshes move the same: rounding is not blown up."""
    value = poor_gradient(kind, (12, 9))
    left, right = (m @ torch.linalg.pinv(m, rcond=1e-10) for m in (value, value.T))
    moves = []
    for mesh in (MeshShape(1, 1), MeshShape(1, 4), MeshShape(2, 2)):
        rule = OrthDion(lr=0.1, rank=4, **FAMILY[name])
        trained = train(Cohort(), mesh, rule, PARAMETERS[:1], lambda *_: value, steps=3).results[0]
        moves.append(trained.parameters["a"] - first_value(PARAMETERS[0]))
    for move in moves:
        torch.testing.assert_close(left @ move @ right, move, rtol=0, atol=1e-9)
        torch.testing.assert_close(move, moves[0], rtol=0, atol=1e-9)
        assert move.norm() > 0.05


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda d: d.name)
@pytest.mark.parametrize("mesh", [MeshShape(1, 1), MeshShape(2, 4)], ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_zero_gradients_leave_parameters_to_weight_decay(driver: Driver, mesh: MeshShape, name: str) -> None:
    rule = OrthDion(lr=0.1, rank=2, weight_decay=0.5, **FAMILY[name])
    zero = random_gradient(PARAMETERS, scale=0.0)
    trained = train(driver, mesh, rule, PARAMETERS, zero, steps=2, measure=True).results[0]
    started = train(driver, mesh, rule, PARAMETERS, zero, steps=0).results[0]
    for parameter in PARAMETERS:
        torch.testing.assert_close(trained.parameters[parameter.name], first_value(parameter) * 0.95**2)
    assert torch.equal(trained.states[0].basis, started.states[0].basis.expand_as(trained.states[0].basis))


@pytest.mark.parametrize("name", FAMILY)
def test_a_gradient_that_is_not_a_number_shows_in_the_parameters(name: str) -> None:
    def gradient(name: str, step: int, worker: int) -> Tensor:
        return torch.full((12, 9), torch.nan if name == "a" else 1.0, dtype=torch.float64)

    rule = OrthDion(lr=0.1, rank=2, **FAMILY[name])
    outcome = train(Cohort(), MeshShape(1, 4), rule, PARAMETERS, gradient, steps=2, measure=True)
    assert outcome.results[0].parameters["a"].isnan().any()
    assert outcome.results[0].parameters["b"].isfinite().all()


@pytest.mark.parametrize("name", ["qr_pos", "colnorm", "qr_raw", *(n for n in FAMILY if "svd" not in n)])
def test_zero_columns_at_the_end_of_a_basis_pad_a_smaller_rank(name: str) -> None:
    """What rules with a rank per matrix build on: a padded basis steps as its own columns do, and stays padded."""
    choice, first = FAMILY.get(name, {"right_factor": name}), torch.linalg.qr(normal((12, 4), 0, "V"))[0]

    class Started(OrthDion):
        def start(self, gaussian: Tensor) -> Tensor:
            return torch.nn.functional.pad(first, (0, gaussian.shape[1] - 4))

    for mesh in (MeshShape(1, 1), MeshShape(1, 4)):
        wide, narrow = (
            train(Cohort(), mesh, Started(lr=0.1, rank=rank, **choice), PARAMETERS[:1], random_gradient(PARAMETERS))
            for rank in (6, 4)
        )
        got, expected = wide.results[0], narrow.results[0]
        torch.testing.assert_close(got.parameters["a"], expected.parameters["a"], rtol=0, atol=1e-10)
        assert not got.states[0].basis[..., 4:].any()
        torch.testing.assert_close(got.states[0].basis[..., :4], expected.states[0].basis, rtol=0, atol=1e-9)
