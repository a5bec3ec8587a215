"""Encoded messages among the members of an axis: what algorithms that compress for themselves send each other."""

from simdist.exchange.channel import Channel, Route, over_replicas
from simdist.exchange.messages import (
    average,
    cut,
    dealt,
    encoded_axis,
    gathered,
    means_back,
    sums_back,
    total,
    uncut,
)
from simdist.exchange.noise import common_noise, receiver_noise, sender_noise

__all__ = [
    "Channel",
    "Route",
    "average",
    "common_noise",
    "cut",
    "dealt",
    "encoded_axis",
    "gathered",
    "means_back",
    "over_replicas",
    "receiver_noise",
    "sender_noise",
    "sums_back",
    "total",
    "uncut",
]
