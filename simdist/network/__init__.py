"""Seconds: hosts, links, routes and fair sharing. No tensors, no torch; networkx is imported here only."""

from simdist.network.flows import FlowSimulator, Route, Sharing, drain, max_min_rates
from simdist.network.from_file import FromFile
from simdist.network.network import Network
from simdist.network.star import Star
from simdist.network.topology import Topology, topologies
from simdist.network.two_level import TwoLevel

__all__ = [
    "FlowSimulator",
    "FromFile",
    "Network",
    "Route",
    "Sharing",
    "Star",
    "Topology",
    "TwoLevel",
    "drain",
    "max_min_rates",
    "topologies",
]
