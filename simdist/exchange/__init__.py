"""Encoded messages among the members of an axis: what algorithms that compress for themselves send each other."""

from simdist.exchange.channel import Channel, Route, over_replicas
from simdist.exchange.messages import (
    as_it_is,
    average,
    clean_slice,
    cut,
    dealt,
    encoded,
    exact_mean,
    gathered,
    returned,
    summed,
    total,
    two_shot,
    uncut,
)
from simdist.exchange.noise import common_noise, receiver_noise, sender_noise

__all__ = [
    "Channel",
    "Route",
    "as_it_is",
    "average",
    "clean_slice",
    "common_noise",
    "cut",
    "dealt",
    "encoded",
    "exact_mean",
    "gathered",
    "over_replicas",
    "receiver_noise",
    "returned",
    "sender_noise",
    "summed",
    "total",
    "two_shot",
    "uncut",
]
