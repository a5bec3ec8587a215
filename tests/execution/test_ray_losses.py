"""What Ray says of a lost actor, in a sentence with the cause and what helps."""

from __future__ import annotations

import pytest
from ray import exceptions

from simdist.execution import ray_losses
from simdist.execution.memory import is_out_of_memory, wanted, what_helps
from simdist.execution.ray_losses import is_loss, lost_touch, oldest, quoted_error, refusal, what_happened

# texts of Ray 2.60, cut short

KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: BlockActor
\tpid: 8064
\tip: 10.0.0.7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker
unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was killed
by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed"""

MONITOR = """1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.7, ID: 0)
was 7.11GB used / 23.54GB limit (0.301886)
OOM kill reason: Memory usage 7603367936B exceeded threshold of 7582950912B"""

NODE = """The actor died unexpectedly before finishing this task.
\tclass_name: BlockActor
\tip: 10.0.0.7
The actor died because its node has died. Node Id: 138b6e51 the actor's node was terminated unexpectedly"""

CREATION = """The actor died because of an error raised in its creation task, ray::B.__init__() (pid=1, ip=10.0.0.7)
RuntimeError: The actor with name BlockActor failed to import on the worker.
  File "function_manager.py", line 1, in f
ModuleNotFoundError: No module named 'torch'
(see above)"""


def died(text: str, creation: bool = False) -> exceptions.ActorDiedError:
    error = exceptions.ActorDiedError()
    error.error_msg = text
    error._actor_init_failed = creation
    return error


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (died(KILLED), "died (process 8064 on 10.0.0.7): it was killed, or crashed (dmesg there says"),
        (died(NODE), "died with its node on 10.0.0.7, which is gone"),
        (died("The actor is dead because it was killed by `ray.kill`."), "died: somebody ended it through Ray"),
        (
            exceptions.OutOfMemoryError(MONITOR),
            "was killed by Ray's memory monitor: its node on 10.0.0.7 ran out of memory (7.11GB of 23.54GB used); HELP",
        ),
        # a later call of the same actor
        (died(f"The actor died because\n{MONITOR}"), "was killed by Ray's memory monitor: its node on 10.0.0.7"),
        (exceptions.ActorUnavailableError("Socket closed", None), "cannot be reached any more"),
        (exceptions.LocalRayletDiedError(), "is lost with the Ray node that this process was connected to"),
        (exceptions.NodeDiedError("its node\nis gone"), "is lost (its node)"),
    ],
)
def test_each_loss_is_told_in_one_line(error: Exception, words: str) -> None:
    said = what_happened(error, "HELP")
    assert said.startswith(words)
    assert "\n" not in said
    assert is_loss(error)
    assert lost_touch(error)


def test_mistakes_of_a_program_are_no_losses() -> None:
    for error in (ValueError("gloo"), RuntimeError("shapes differ"), MemoryError(), None):
        assert not is_loss(error)
        assert not lost_touch(error)
    closed = RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    assert lost_touch(closed)
    assert not is_loss(closed)


def test_an_actor_that_cannot_be_made_is_no_loss_but_says_what_its_node_lacks() -> None:
    assert refusal(died(CREATION, creation=True)) == "ModuleNotFoundError: No module named 'torch'"
    assert refusal(died(KILLED)) is None


def test_a_node_that_cannot_take_over_the_package_says_why() -> None:
    text = "Failed to set up\nTraceback\n  File 'a.py', line 1\nOSError: Failed to download gcs://_ray_pkg_1.zip\nby\n"
    error = exceptions.RuntimeEnvSetupError(text)
    assert quoted_error(error) == "OSError: Failed to download gcs://_ray_pkg_1.zip"
    assert not is_loss(error)
    assert quoted_error(ValueError("just this")) == "just this"


def test_the_one_that_died_explains_those_that_cannot_be_reached() -> None:
    away = exceptions.ActorUnavailableError("Socket closed", None)
    assert oldest({0: away, 1: away, 2: died(KILLED)}) == 2
    assert oldest({1: away, 0: away}) == 0


def test_a_node_that_is_gone_is_the_cause_whatever_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_losses, "gone_node", {"a": "10.0.0.7", "b": None}.get)
    away = exceptions.ActorUnavailableError("Socket closed", None)
    assert what_happened(away, "", "a") == "died with its node 10.0.0.7, which does not answer any more"
    assert what_happened(away, "", "b").startswith("cannot be reached")
    assert "memory monitor" in what_happened(exceptions.OutOfMemoryError(MONITOR), "", "a")


# -- memory ----------------------------------------------------------------------------------------------------------


def test_what_ran_out_of_memory_is_known_by_its_error() -> None:
    import numpy as np
    import torch

    for ask in (lambda: torch.empty(10**15), lambda: np.empty(10**15)):
        with pytest.raises((RuntimeError, MemoryError)) as caught:
            ask()
        assert is_out_of_memory(caught.value)
        assert "allocate" in wanted(caught.value)
        assert "enforce fail" not in wanted(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(28, "No space left on device"))
    assert not is_out_of_memory(RuntimeError("shapes differ"))


def test_advice_speaks_of_keys_that_can_be_set() -> None:
    assert "engine.chunk below 64" in what_helps(True, 64, 1)
    assert "a small engine.chunk" in what_helps(True, None, 1)
    assert "engine.chunk" not in what_helps(True, 1, 1)
    assert "engine.block 'stacked'" in what_helps(False, None, 4)
    assert "fewer engine.actors on a machine (here 4 in all" in what_helps(False, None, 4)
    assert "engine.actors" not in what_helps(False, None, 1)
