"""On a GPU: 8 workers of a 124 M decoder in bfloat16 on one device, and two Ray actors that share it."""

from __future__ import annotations

from analysis.benchmarks.case import HERE, Case, Question, Side, Size, one_time, side_command, step_ratio

SCENARIO = HERE / "sides" / "autocast.py"
WORKERS = 8


def no_gpu() -> str | None:
    """Return why there is no GPU to measure on; None where there is one."""
    import torch

    return None if torch.cuda.is_available() else "needs a GPU: torch finds no CUDA device here"


def case(size: Size, device: str = "cuda") -> Case:
    shape, batch, hidden = ((16, 1, 8, 2), 1, 32) if size.quick else ((768, 12, 512, 12), 8, 3456)
    workload = dict(zip(("width", "depth", "context", "heads"), shape, strict=True), batch=batch, hidden=hidden)
    sets = [f"workload.{key}={value}" for key, value in workload.items()]
    sets += [f"engine.device={device}", f"steps={size.steps + 1}"]
    ray = ["engine.name=ray", "engine.actors=2", "engine.block=stacked"]

    def emulated(name: str, changes: list[str], says: str) -> Side:
        words = [word for change in changes for word in ("--set", change)]
        return Side(name, side_command("emulated", SCENARIO, "{scratch}", *words), says)

    model = ("--model", ",".join(map(str, shape)), "--hidden", hidden, "--workers", WORKERS, "--batch", batch)
    plain = ("--steps", size.steps, "--micro", 2 * batch, "--autocast", "--device", device)
    base, stacked, actors = "plain loop", "stacked", "ray, 2 actors"
    return Case(
        name="gpu",
        says=f"124 M decoder in bfloat16, {WORKERS} workers with {batch} sequences of {shape[2]} bytes each, one GPU",
        sides=(
            Side(base, side_command("plain_loop", *model, *plain), "one process, AdamW, two workers' batches a pass"),
            emulated(stacked, sets, "simdist run, engine stacked, two workers' batches a pass"),
            emulated(actors, sets + ray, "simdist run, two Ray actors on the one GPU"),
        ),
        questions=(
            # at least 0.8 of the plain loop's tokens per second
            Question("124 M, stacked on a GPU: step over plain loop", step_ratio(stacked, base), "x", 1.25),
            Question("124 M, two Ray actors on a GPU: step over plain loop", step_ratio(actors, base), "x"),
            *one_time(base, stacked, actors),
        ),
        rounds=size.rounds,
        agree=((base, stacked, actors),),
        tolerance=2e-2,
        missing=no_gpu() if device == "cuda" else None,
    )
