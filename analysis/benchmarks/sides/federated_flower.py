"""The federated task in Flower's simulation engine, for the environment that :mod:`analysis.benchmarks.flower` makes.

Two client slots of one CPU each, so both cores train; Flower's default of two CPUs a client would leave one idle. The
clients' data are mapped into memory once per actor. Nothing is evaluated while the clock runs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

# no telemetry, and no look at the network for it
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from analysis.benchmarks.sides.report import peak_rss_bytes, report, since_start

# no dependency of ours: it lives in an environment of its own
app: Any = import_module("flwr.app")
clientapp: Any = import_module("flwr.clientapp")
serverapp: Any = import_module("flwr.serverapp")
strategies: Any = import_module("flwr.serverapp.strategy")
simulation: Any = import_module("flwr.simulation")

# of analysis.benchmarks.sides.federated_data, which the actors of another environment cannot import
CLASSES, PER_ROUND, BATCH, LR = 10, 10, 10, 0.03


def client_app(folder: str) -> Any:
    """Return what runs in Ray's actors: one epoch of SGD on the client's images."""
    client: Any = clientapp.ClientApp()
    cache: dict[str, Any] = {}

    @client.train()  # type: ignore[untyped-decorator]  # Flower is not here when types are checked
    def train(message: Any, context: Any) -> Any:
        torch.set_num_threads(1)
        if not cache:
            for name in ("images", "labels"):
                cache[name] = np.load(f"{folder}/{name}.npy", mmap_mode="r")
        place = int(context.node_config["partition-id"])
        images, labels = (torch.from_numpy(np.array(cache[name][place])) for name in ("images", "labels"))
        state = message.content["arrays"].to_torch_state_dict()
        weight, bias = (state[name].clone().requires_grad_() for name in ("weight", "bias"))
        optimizer = torch.optim.SGD((weight, bias), lr=LR)
        total = 0.0
        for x, y in zip(images.split(BATCH), labels.split(BATCH), strict=True):
            loss = cross_entropy(x @ weight.mT + bias, y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            total += loss.item() * len(y) / len(labels)
        content = {
            "arrays": app.ArrayRecord({"weight": weight.detach(), "bias": bias.detach()}),
            "metrics": app.MetricRecord({"train_loss": total, "num-examples": len(labels)}),
        }
        return app.Message(content=app.RecordDict(content), reply_to=message)

    return client


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="where images.npy and labels.npy are")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--clients", type=int, default=1000)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    ends: list[float] = []

    class Timed(strategies.FedAvg):  # type: ignore[misc]  # Flower is not here when types are checked
        """FedAvg that notes when each round ended."""

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            result = super().aggregate_train(server_round, replies)
            ends.append(time.perf_counter())
            return result

    server: Any = serverapp.ServerApp()

    @server.main()  # type: ignore[untyped-decorator]  # the same
    def train_all(grid: Any, context: Any) -> None:
        first = app.ArrayRecord({"weight": torch.zeros(CLASSES, 28 * 28), "bias": torch.zeros(CLASSES)})
        strategy = Timed(
            fraction_train=PER_ROUND / given.clients,
            fraction_evaluate=0.0,
            min_train_nodes=PER_ROUND,
            min_available_nodes=given.clients,
        )
        found["start"] = since_start()
        ends.append(time.perf_counter())
        found["result"] = strategy.start(grid, first, num_rounds=given.rounds)

    simulation.run_simulation(
        server,
        client_app(str(given.folder)),
        num_supernodes=given.clients,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}},
    )
    metrics = found["result"].train_metrics_clientapp
    losses = [float(metrics[number]["train_loss"]) for number in sorted(metrics)]
    if len(losses) != given.rounds:
        sys.exit(f"{len(losses)} of {given.rounds} rounds brought a result")
    state = found["result"].arrays.to_torch_state_dict()
    images, labels = (torch.from_numpy(np.load(given.folder / f"{name}.npy")) for name in ("images", "labels"))
    scores = images.flatten(0, 1) @ state["weight"].mT + state["bias"]
    report(
        start_seconds=found["start"],
        step_seconds=[after - before for before, after in pairwise(ends)],
        losses=losses,
        final_loss=cross_entropy(scores, labels.flatten()).item(),
        driver_peak_rss_bytes=peak_rss_bytes(),
    )


if __name__ == "__main__":
    main()
