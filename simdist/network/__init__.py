"""Seconds: hosts, links, routes and fair sharing. No tensors, no torch; networkx is imported here only."""

from simdist.network.dragonfly import Dragonfly
from simdist.network.fat_tree import FatTree
from simdist.network.flows import FlowSimulator, Route, drain
from simdist.network.from_file import FromFile
from simdist.network.full_mesh import FullMesh
from simdist.network.line import Line
from simdist.network.links import LinkSettings
from simdist.network.network import Network
from simdist.network.rail_optimised import RailOptimised
from simdist.network.random_geometric import RandomGeometric
from simdist.network.ring import Ring
from simdist.network.sharing import Sharing, max_min_rates
from simdist.network.star import Star
from simdist.network.topology import Topology, topologies
from simdist.network.torus import Torus
from simdist.network.tree import Tree
from simdist.network.two_level import TwoLevel
from simdist.network.wan import Wan

__all__ = [
    "Dragonfly",
    "FatTree",
    "FlowSimulator",
    "FromFile",
    "FullMesh",
    "Line",
    "LinkSettings",
    "Network",
    "RailOptimised",
    "RandomGeometric",
    "Ring",
    "Route",
    "Sharing",
    "Star",
    "Topology",
    "Torus",
    "Tree",
    "TwoLevel",
    "Wan",
    "drain",
    "max_min_rates",
    "topologies",
]
