"""Memory of 1,024 workers with states of their own: HSDP with error feedback, over the closed form of the state."""

from __future__ import annotations

import math
from collections import Counter

from analysis.benchmarks.case import Case, Question, Size, more_memory
from analysis.benchmarks.decoder_sides import emulated, low_rank, plain
from simdist.workloads import ByteGPT

FLOAT = 4
#: at least two: in the first, memories of zeros are pages that nobody has touched (simdist's side does one more)
STEPS = 2
ALLOWED = 1.5e9
#: of the plain loop: the quickest may be large, and then takes memory that would be credited to the others
MICRO = 32


def shapes(size: Size) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the shapes of the decoder's hidden matrices, and of everything else."""
    model = ByteGPT(width=size.width, depth=size.depth, heads=2, context=size.context)
    specs = [spec for index in range(size.depth) for spec in model.block_specs(index)] + list(model.root_specs())
    hidden = [spec.shape for spec in specs if spec.role == "matrix"]
    return hidden, [spec.shape for spec in specs if spec.role != "matrix"]


def orth_dion_state(size: Size, replicas: int, shards: int) -> int:
    """Bytes that all workers' states differ in, and one copy of what replicas share.

    Parameters once; AdamW's two moments of all but hidden matrices, once; of hidden matrices a basis (m x r) once and
    an error-feedback buffer (m x n) per replica. Stacks of equal shape are padded to a multiple of the shards.
    """
    hidden, others = shapes(size)
    padded = {shape: -(-count // shards) * shards for shape, count in Counter(hidden).items()}
    matrices = sum(count * math.prod(shape) for shape, count in padded.items())
    bases = sum(count * shape[0] * low_rank(size) for shape, count in padded.items())
    rest = sum(map(math.prod, others))
    return FLOAT * (matrices + 3 * rest + bases + replicas * matrices)


def top_k_state(size: Size, replicas: int) -> int:
    """Bytes of parameters and AdamW's moments, once, and of every worker's error memory of its shard's gradient."""
    numbers = sum(math.prod(shape) for part in shapes(size) for shape in part)
    return FLOAT * numbers * (3 + replicas)


def case(size: Size) -> Case:
    workers = size.many[-1]
    shards = 2 if size.quick else 8
    replicas = workers // shards
    mesh = {"mesh.replicas": replicas, "mesh.shards": shards}
    orth_dion = {"optimizer.name": "orth_dion", "optimizer.lr": "1e-3", "optimizer.rank": low_rank(size)}
    top_k = {"compression.replicas.name": "error_feedback", "compression.replicas.codec": "topk"}
    base = "plain loop, AdamW"
    sides = (
        plain(size, base, workers, 1, STEPS, micro=MICRO),
        emulated(size, "HSDP, Orth-Dion", "stacked", workers, 1, STEPS, mesh | orth_dion),
        emulated(size, "HSDP, top-k with error feedback", "stacked", workers, 1, STEPS, mesh | top_k),
    )
    states = {
        "HSDP, Orth-Dion": orth_dion_state(size, replicas, shards),
        "HSDP, top-k with error feedback": top_k_state(size, replicas),
    }
    return Case(
        name="error_feedback",
        says=f"HSDP of {replicas} x {shards} workers, batch 1: replicas whose states differ",
        sides=sides,
        questions=tuple(
            Question(
                f"{workers} workers, {name}: peak RSS over plain loop's and the state's {state / 1e6:,.0f} MB",
                more_memory(name, base, besides=state),
                "B",
                ALLOWED,
            )
            for name, state in states.items()
        ),
        rounds=size.peer_rounds,
        details={"state_bytes": states},
    )
