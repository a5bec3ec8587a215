"""Profile ``mpi``: the plan that MPICH takes, by operation, size and members.

Switch points: Thakur, Rabenseifner & Gropp 2005, and the defaults in MPICH 5.1.0a1 (commit 6a79bf6),
src/mpi/coll/cvars.txt and maint/tuning/coll/mpir/generic.json. Groups are taken as flat: MPICH's shared-memory
variants (``_smp``), which it uses for empty messages and when asked to, are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from simdist.communication.plans.binomial_tree import BinomialTree
from simdist.communication.plans.bruck import Bruck
from simdist.communication.plans.direct import Direct
from simdist.communication.plans.halving_doubling import HalvingDoubling
from simdist.communication.plans.pairwise import Pairwise
from simdist.communication.plans.plan import Collectives, GroupShape, Plan, check_op, collectives
from simdist.communication.plans.recursive_doubling import RecursiveDoubling
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.scatter_all_gather import ScatterAllGather

#: MPIR_CVAR_ALLREDUCE_SHORT_MSG_SIZE; generic.json has 8 here, which no other source confirms
_ALL_REDUCE_SHORT = 2048
#: MPIR_CVAR_ALLGATHER_SHORT_MSG_SIZE, MPIR_CVAR_ALLGATHER_LONG_MSG_SIZE: of the gathered whole
_ALL_GATHER_SHORT, _ALL_GATHER_LONG = 81_920, 524_288
#: MPIR_CVAR_IREDUCE_SCATTER_COMMUTATIVE_LONG_MSG_SIZE, and the same number in generic.json
_REDUCE_SCATTER_LONG = 524_288
#: MPIR_CVAR_ALLTOALL_SHORT_MSG_SIZE, MPIR_CVAR_ALLTOALL_MEDIUM_MSG_SIZE: of the part for one member
_ALL_TO_ALL_SHORT, _ALL_TO_ALL_MEDIUM = 256, 32_768
#: MPIR_CVAR_BCAST_SHORT_MSG_SIZE, MPIR_CVAR_BCAST_LONG_MSG_SIZE; below so many members always the tree
_BROADCAST_SHORT, _BROADCAST_LONG, _BROADCAST_FEW = 12_288, 524_288, 8
#: bytes of the numbers that are summed: MPICH does not cut fewer numbers than members
_NUMBER = 4


@collectives.register("mpi")
class Mpi(Collectives):
    """MPICH's choices for payload S and n members; m is the largest power of two up to n.

    ============== =======================================================================================
    all_reduce     S <= 2 KiB or fewer than m numbers: ``recursive_doubling``; else ``halving_doubling``
    all_gather     n a power of two and S < 512 KiB: ``recursive_doubling``; other n and S < 80 KiB: ``bruck``;
                   else ``ring``
    reduce_scatter S < 512 KiB: ``halving_doubling`` (recursive halving); else ``pairwise``
    all_to_all     parts of up to 256 B for 8 members or more: ``bruck``; up to 32 KiB: ``direct`` (at most 32
                   messages under way in MPICH, all of them here); else ``pairwise`` (in MPICH i with i xor k if
                   n is a power of two, i with i + k here)
    broadcast      S <= 12 KiB or fewer than 8 members: ``binomial_tree``; n a power of two and S <= 512 KiB:
                   ``halving_doubling`` (scatter and doubling all-gather); else ``scatter_all_gather``
    ============== =======================================================================================
    """

    name: ClassVar[str] = "mpi"

    def choose(
        self, op: str, payload_bytes: int, group: GroupShape, root: int, seconds: Callable[[Plan], float]
    ) -> Plan:
        check_op(op)
        return _CHOICES[op](payload_bytes, group.members)


def _power_of_two(members: int) -> bool:
    return members & (members - 1) == 0


def _all_reduce(payload_bytes: int, members: int) -> Plan:
    core = 1 << (members.bit_length() - 1)
    short = payload_bytes <= _ALL_REDUCE_SHORT or payload_bytes < core * _NUMBER
    return RecursiveDoubling() if short else HalvingDoubling()


def _all_gather(payload_bytes: int, members: int) -> Plan:
    if _power_of_two(members):
        return RecursiveDoubling() if payload_bytes < _ALL_GATHER_LONG else Ring()
    return Bruck() if payload_bytes < _ALL_GATHER_SHORT else Ring()


def _reduce_scatter(payload_bytes: int, members: int) -> Plan:
    return HalvingDoubling() if payload_bytes < _REDUCE_SCATTER_LONG else Pairwise()


def _all_to_all(payload_bytes: int, members: int) -> Plan:
    part = payload_bytes / members
    if part <= _ALL_TO_ALL_SHORT and members >= 8:
        return Bruck()
    return Direct() if part <= _ALL_TO_ALL_MEDIUM else Pairwise()


def _broadcast(payload_bytes: int, members: int) -> Plan:
    if payload_bytes <= _BROADCAST_SHORT or members < _BROADCAST_FEW:
        return BinomialTree()
    if _power_of_two(members) and payload_bytes <= _BROADCAST_LONG:
        return HalvingDoubling()
    return ScatterAllGather()


_CHOICES: dict[str, Callable[[int, int], Plan]] = {
    "all_reduce": _all_reduce,
    "all_gather": _all_gather,
    "reduce_scatter": _reduce_scatter,
    "all_to_all": _all_to_all,
    "broadcast": _broadcast,
}
