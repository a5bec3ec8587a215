"""All registered gradient compressions, with variants of their settings, and what holds for each.

A new one joins by a line. The laws of ``test_laws.py`` run over this list; a compression that is registered but not
here fails by name.
"""

from __future__ import annotations

from dataclasses import dataclass

from simdist.compression import EF21, Compression, DeMo, ErrorFeedback, MajorityVote, PowerSGD


@dataclass(frozen=True)
class Stated:
    """What a method's docstring promises.

    Attributes:
        telescopes: nothing is lost: what was sent and what is remembered add up to the gradients.
        shows_nan: a NaN in one worker's gradient is seen in the mean.
        zero_from_zero: zero gradients have a zero mean.
        scales: gradients that are 2^k times larger have means that are, up to rounding.
        tolerance: rounding of the number format that travels, relative to the gradients.
    """

    method: Compression
    telescopes: bool = True
    shows_nan: bool = True
    zero_from_zero: bool = True
    scales: bool = True
    tolerance: float = 1e-12


CATALOGUE: dict[str, Stated] = {
    "error_feedback topk": Stated(ErrorFeedback(codec="topk(k=4, values=fp64)")),
    "error_feedback topk default": Stated(ErrorFeedback()),
    "error_feedback topk momentum": Stated(
        ErrorFeedback(codec="topk(k=4, values=fp64)", momentum=0.9, decay=0.9), telescopes=False
    ),
    "error_feedback sign": Stated(ErrorFeedback(codec="sign")),
    "error_feedback sign exact": Stated(ErrorFeedback(codec="sign", way_back="exact")),
    "error_feedback int8": Stated(ErrorFeedback(codec="int8")),
    "error_feedback int4": Stated(ErrorFeedback(codec="int4(bucket=5, rounding=nearest)")),
    "error_feedback qsdp": Stated(ErrorFeedback(codec="qsdp(bucket=8)")),
    "error_feedback natural": Stated(ErrorFeedback(codec="natural")),
    "error_feedback fp8": Stated(ErrorFeedback(codec="fp8_e4m3")),
    "error_feedback sparseloco": Stated(ErrorFeedback(codec="sparseloco(k=3, chunk=16)")),
    "error_feedback randk": Stated(ErrorFeedback(codec="randk(k=4, values=fp64)")),
    # the rounding of a sum on its way back is lost
    "error_feedback randk bf16": Stated(ErrorFeedback(codec="randk(k=4, values=bf16)"), tolerance=2**-7),
    "error_feedback bf16": Stated(ErrorFeedback(codec="bf16"), tolerance=2**-7),
    "error_feedback bf16 wire": Stated(ErrorFeedback(codec="bf16(accumulate=wire)"), tolerance=2**-6),
    "ef21 topk": Stated(EF21(codec="topk(k=4)")),
    "ef21 topk dense": Stated(EF21(codec="topk(k=4)", start="dense", eta=0.3)),
    "ef21 sign": Stated(EF21(codec="sign", eta=0.5)),
    "ef21 qsdp": Stated(EF21(codec="qsdp(bucket=8)")),
    "ef21 randk": Stated(EF21(codec="randk(k=4, values=bf16)")),
    "ef21 bf16": Stated(EF21(codec="bf16(accumulate=wire)")),
    "powersgd": Stated(PowerSGD(rank=2, min_rate=0.9)),
    "powersgd alternate": Stated(PowerSGD(rank=2, min_rate=0.9, alternate=True)),
    "powersgd late": Stated(PowerSGD(rank=1, start=2)),
    "powersgd cold": Stated(PowerSGD(rank=1, warm_start=False)),
    "powersgd memoryless": Stated(PowerSGD(rank=1, error_feedback=False), telescopes=False),
    "demo": Stated(DeMo(k=4, chunk=4, values="fp64"), telescopes=False),
    "demo packed": Stated(
        DeMo(k=4, chunk=4, values="bf16", index="packed", merge="all", weight="one", decay=1.0), tolerance=1e-12
    ),
    # one bit has no zero, no NaN and no size
    "majority_vote": Stated(MajorityVote(), telescopes=False, shows_nan=False, zero_from_zero=False, scales=False),
}
