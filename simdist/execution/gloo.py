"""Exchange between blocks in different processes: torch.distributed's gloo, point to point, without a coordinator."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simdist.execution.exchange import Exchange, Like

#: how long a block waits for another: paced transfers can be slow, but a block that never comes must not hang for ever
TIMEOUT = datetime.timedelta(hours=1)


def loopback_interface() -> str:
    """Return the name of this machine's loopback interface (``lo`` on Linux, ``lo0`` on macOS)."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


class GlooExchange(Exchange):
    """One flat message per pair of blocks and wave; sizes are known on both sides, so there are no headers."""

    def __init__(self, blocks: Sequence[range], me: int, store: Any, loopback: bool) -> None:
        self.blocks = blocks
        self.me = me
        if loopback:
            os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()
        dist.init_process_group("gloo", store=store, rank=me, world_size=len(blocks), timeout=TIMEOUT)

    def swap(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Like]]
    ) -> dict[int, list[Tensor]]:
        waiting = []
        buffers = {}
        for block, likes in incoming.items():
            buffers[block] = torch.empty(sum(like.nbytes for like in likes), dtype=torch.uint8)
            waiting.append(dist.irecv(buffers[block], src=block))
        sent = []
        for block, tensors in outgoing.items():
            message = torch.cat([_as_bytes(x) for x in tensors])
            sent.append(message)
            waiting.append(dist.isend(message, dst=block))
        for work in waiting:
            if work is not None:
                work.wait()
        return {block: _unpack(buffers[block], likes) for block, likes in incoming.items()}

    def close(self) -> None:
        dist.destroy_process_group()


def _as_bytes(x: Tensor) -> Tensor:
    # clone() gives a fresh dense layout; views with odd strides or offsets cannot be reinterpreted as bytes
    return x.detach().to("cpu").clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _unpack(buffer: Tensor, likes: Sequence[Like]) -> list[Tensor]:
    result, at = [], 0
    for like in likes:
        # clone: a slice at an odd offset is not aligned for wider numbers
        arrived = buffer[at : at + like.nbytes].clone().view(like.dtype).reshape(like.shape)
        result.append(arrived.to(like.device))
        at += like.nbytes
    return result
