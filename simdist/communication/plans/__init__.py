"""Plans and profiles by name; importing this package registers them all. A new one: a file, and a line here."""

from inspect import isabstract

from pydantic import ValidationError

from simdist.communication.plans.auto import Auto
from simdist.communication.plans.bidirectional_ring import BidirectionalRing
from simdist.communication.plans.binomial_tree import BinomialTree
from simdist.communication.plans.bruck import Bruck
from simdist.communication.plans.direct import Direct
from simdist.communication.plans.double_binary_tree import DoubleBinaryTree
from simdist.communication.plans.gloo import Gloo
from simdist.communication.plans.halving_doubling import HalvingDoubling
from simdist.communication.plans.moves import Round, Rounds, chunk_sizes
from simdist.communication.plans.mpi import Mpi
from simdist.communication.plans.nccl import Nccl
from simdist.communication.plans.pairwise import Pairwise
from simdist.communication.plans.parameter_server import ParameterServer
from simdist.communication.plans.plan import OPS, Collectives, GroupShape, Plan, collectives
from simdist.communication.plans.recursive_doubling import RecursiveDoubling
from simdist.communication.plans.ring import Ring
from simdist.communication.plans.scatter_all_gather import ScatterAllGather
from simdist.communication.plans.two_level import TwoLevel
from simdist.errors import InputError
from simdist.registry import called
from simdist.settings import first_problem

__all__ = [
    "OPS",
    "Auto",
    "BidirectionalRing",
    "BinomialTree",
    "Bruck",
    "Collectives",
    "Direct",
    "DoubleBinaryTree",
    "Gloo",
    "GroupShape",
    "HalvingDoubling",
    "Mpi",
    "Nccl",
    "Pairwise",
    "ParameterServer",
    "Plan",
    "RecursiveDoubling",
    "Ring",
    "Round",
    "Rounds",
    "ScatterAllGather",
    "TwoLevel",
    "chunk_sizes",
    "collectives",
    "collectives_named",
]


def collectives_named(text: str) -> Collectives:
    """Return the plan or profile that ``network.collectives`` names, with settings in parentheses if need be.

    ``ring``, ``gloo``, ``double_binary_tree(chunk=1MiB)``, ``path/to/file.py:MyPlan``.

    Raises:
        InputError: for an unknown name or setting, or a path to something that is neither plan nor profile.
    """
    name, settings = called("collectives", text)
    found = collectives.get(name)
    if not (isinstance(found, type) and issubclass(found, Collectives)) or isabstract(found):
        raise InputError(
            f"got collectives {text!r}, which is {found!r}; expected a subclass of "
            f"simdist.communication.plans.Plan or Collectives with all that they ask for"
        )
    try:
        return found(**settings)
    except ValidationError as error:
        raise InputError(f"got collectives {text!r}: {first_problem(error, found)}") from None
