"""The federated task as a plain loop: one process, one client after the other, a mean.

With ``--write DIR`` it only writes the clients' data there.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from analysis.benchmarks.sides import federated_data as data
from analysis.benchmarks.sides.report import peak_rss_bytes, report, since_start


def trained(weight: Tensor, bias: Tensor, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return one client's parameters after its epoch of SGD, and its mean loss on the way."""
    weight, bias = weight.clone().requires_grad_(), bias.clone().requires_grad_()
    optimizer = torch.optim.SGD((weight, bias), lr=data.LR)
    losses = []
    for x, y in zip(images.split(data.BATCH), labels.split(data.BATCH), strict=True):
        loss = cross_entropy(x @ weight.mT + bias, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return weight.detach(), bias.detach(), torch.stack(losses).mean().item()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--write", type=Path)
    given = parser.parse_args()
    if given.write is not None:
        data.write(given.write)
        return
    torch.set_num_threads(1)
    images, labels = (torch.from_numpy(x) for x in data.clients())
    weight, bias = torch.zeros(data.CLASSES, data.PIXELS), torch.zeros(data.CLASSES)
    start, rounds, losses = since_start(), [], []
    for number in range(1, given.rounds + 1):
        began = time.perf_counter()
        found = [trained(weight, bias, images[client], labels[client]) for client in data.players(number).tolist()]
        weight = torch.stack([w for w, _, _ in found]).mean(0)
        bias = torch.stack([b for _, b, _ in found]).mean(0)
        losses.append(sum(loss for *_, loss in found) / len(found))
        rounds.append(time.perf_counter() - began)
    final = cross_entropy(images.flatten(0, 1) @ weight.mT + bias, labels.flatten()).item()
    report(
        start_seconds=start,
        step_seconds=rounds,
        losses=losses,
        final_loss=final,
        peak_rss_bytes=peak_rss_bytes(),
    )


if __name__ == "__main__":
    main()
