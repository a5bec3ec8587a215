"""Exchange between blocks in different processes: torch.distributed's gloo, point to point, without a coordinator."""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from simdist.execution.agreement import SIZE, Topic
from simdist.execution.exchange import Exchange, Like

#: how long a block waits for another: paced transfers can be slow, but a block that never comes must not hang for ever
TIMEOUT = datetime.timedelta(hours=1)


def loopback_interface() -> str:
    """Return the name of this machine's loopback interface (``lo`` on Linux, ``lo0`` on macOS)."""
    return next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), "lo")


def interface_of(address: str) -> str | None:
    """Return the name of the interface that has an IPv4 address; None where the system does not tell."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            try:
                # SIOCGIFADDR of Linux; the address is in bytes 20 to 24 of its answer
                answer = fcntl.ioctl(asking.fileno(), 0x8915, name.encode()[:15].ljust(256, b"\0"))
            except OSError:  # an interface without an IPv4 address, or another system
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


class GlooExchange(Exchange):
    """One flat message per pair of blocks and wave, whose size is known on both sides, after its topic.

    Args:
        loopback: whether all blocks are on this machine.
        address: this machine's, by which the others reach it.
    """

    def __init__(self, blocks: Sequence[range], me: int, store: Any, loopback: bool, address: str = "") -> None:
        self.blocks = blocks
        self.me = me
        if loopback:
            os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()
        elif (name := interface_of(address)) is not None:
            # gloo would look up the host's name, often a loopback address; a user's choice comes first
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        dist.init_process_group("gloo", store=store, rank=me, world_size=len(blocks), timeout=TIMEOUT)

    def swap(
        self, outgoing: Mapping[int, Sequence[Tensor]], incoming: Mapping[int, Sequence[Like]], topic: Topic
    ) -> dict[int, list[Tensor]]:
        heard = _Heard(incoming)
        waiting = []
        buffers = {}
        for block, likes in incoming.items():
            buffers[block] = torch.empty(sum(like.nbytes for like in likes), dtype=torch.uint8)
            waiting.append(dist.irecv(buffers[block], src=block))
        sent = [_of_topic(topic)]
        for block, tensors in outgoing.items():
            message = torch.cat([_as_bytes(x) for x in tensors])
            sent.append(message)
            waiting.append(dist.isend(sent[0], dst=block))
            waiting.append(dist.isend(message, dst=block))
        # first: what does not fit together must not be waited for
        heard.compare(topic, self.blocks, self.me)
        _wait(waiting)
        return {block: _unpack(buffers[block], likes) for block, likes in incoming.items()}

    def meet(self, topic: Topic) -> None:
        others = [block for block in range(len(self.blocks)) if block != self.me]
        heard = _Heard(others)
        mine = _of_topic(topic)
        waiting = [dist.isend(mine, dst=block) for block in others]
        heard.compare(topic, self.blocks, self.me)
        _wait(waiting)

    def close(self) -> None:
        dist.destroy_process_group()


class _Heard:
    """The topics that other blocks send, on their way."""

    def __init__(self, senders: Iterable[int]) -> None:
        self._topics = {block: torch.empty(SIZE, dtype=torch.uint8) for block in senders}
        self._waiting = [dist.irecv(topic, src=block) for block, topic in self._topics.items()]

    def compare(self, topic: Topic, blocks: Sequence[range], me: int) -> None:
        _wait(self._waiting)
        for block, theirs in self._topics.items():
            topic.compare(bytes(theirs.tolist()), blocks[me], blocks[block])


def _of_topic(topic: Topic) -> Tensor:
    return torch.frombuffer(bytearray(topic.encoded()), dtype=torch.uint8)


def _wait(waiting: Iterable[Any]) -> None:
    for work in waiting:
        if work is not None:
            work.wait()


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
