"""Encoded messages among the members of an axis: what algorithms that compress for themselves send each other."""

from simdist.exchange.channel import Channel, over_replicas
from simdist.exchange.messages import average, cut, dealt, gathered, means_back, summed, sums_back, total, uncut
from simdist.exchange.noise import common_noise

__all__ = [
    "Channel",
    "average",
    "common_noise",
    "cut",
    "dealt",
    "gathered",
    "means_back",
    "over_replicas",
    "summed",
    "sums_back",
    "total",
    "uncut",
]
