"""FLUTE's CPU row (logistic regression, 1,000 clients, 10 a round, 100 rounds): simdist, Flower, and a plain loop."""

from __future__ import annotations

from analysis.benchmarks.case import HERE, Case, Question, Side, Size, side_command, step_ratio

SCENARIO = HERE / "sides" / "federated.py"


def case(size: Size) -> Case:
    rounds = 5 if size.quick else 100
    clients = "10 clients a round, an epoch of SGD each, one thread"
    sides = (
        Side("plain loop", side_command("federated_plain", "--rounds", rounds), f"one process; {clients}", threads=1),
        Side(
            "simdist inline",
            side_command("emulated", SCENARIO, "{scratch}", "--set", f"steps={rounds + 1}"),
            f"simdist run with a program of its own; {clients}; pricing, ledger and tables included",
            threads=1,
        ),
        Side(
            "Flower",
            side_command("federated_flower", "{scratch}", "--rounds", rounds),
            "run_simulation with 1,000 nodes on two Ray actors of a CPU each; an epoch of SGD on each of 10 a round",
            python=size.flower_python,
            before=side_command("federated_plain", "--write", "{scratch}"),
            threads=1,
        ),
    )
    return Case(
        name="federated",
        says=f"logistic regression, 784 inputs, 1,000 clients of 60 images, 10 a round, {rounds} rounds",
        sides=sides,
        questions=(
            Question("simdist: round over plain loop", step_ratio("simdist inline", "plain loop"), "x"),
            Question("Flower: round over plain loop", step_ratio("Flower", "plain loop"), "x"),
            Question("Flower: round over simdist", step_ratio("Flower", "simdist inline"), "x"),
            *(whole(side.name) for side in sides),
            Question(
                "Flower: final loss over plain loop (other clients are drawn)",
                lambda found: found["Flower"]["final_loss"] / found["plain loop"]["final_loss"],
                "x",
            ),
        ),
        rounds=size.peer_rounds,
        agree=(("plain loop", "simdist inline"),),
        missing=None if size.flower_python.exists() else f"no {size.flower_python}: --make-flower makes it",
    )


def whole(name: str) -> Question:
    """Ask for a side's wall seconds, start and end of its processes included."""
    return Question(f"{name}: whole command", lambda found: float(found[name]["wall_seconds"]), "s")
