"""Which torch optimizers act on each number by itself, so that they run on shards without traffic.

A class that is not in the table runs on gathered tensors, which is right for every class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.optim import Optimizer

#: class -> arguments that must have this value for the class to act number by number. The sources of torch 2.13 and
#: pytorch_optimizer 4.1 were read for it, and tests/optimizers/test_torch_optimizer_table.py holds every line to it.
ELEMENTWISE: dict[str, dict[str, Any]] = {
    "torch.optim:ASGD": {},
    "torch.optim:Adadelta": {},
    "torch.optim:Adagrad": {},
    "torch.optim:Adam": {},
    "torch.optim:AdamW": {},
    "torch.optim:Adamax": {},
    "torch.optim:NAdam": {},
    "torch.optim:RAdam": {},
    "torch.optim:RMSprop": {},
    "torch.optim:Rprop": {},
    "torch.optim:SGD": {},
    "pytorch_optimizer:ADOPT": {},
    "pytorch_optimizer:AccSGD": {},
    "pytorch_optimizer:AdEMAMix": {},
    "pytorch_optimizer:AdaBelief": {},
    "pytorch_optimizer:AdaBound": {},
    "pytorch_optimizer:AdaDelta": {},
    "pytorch_optimizer:AdaMax": {},
    "pytorch_optimizer:AdaMod": {},
    "pytorch_optimizer:AdaPNM": {},
    "pytorch_optimizer:AdaSmooth": {},
    "pytorch_optimizer:AdamC": {},
    "pytorch_optimizer:AdamG": {},
    "pytorch_optimizer:Adan": {"max_grad_norm": 0.0},
    "pytorch_optimizer:AggMo": {},
    "pytorch_optimizer:Ano": {},
    "pytorch_optimizer:BCOS": {},
    "pytorch_optimizer:DiffGrad": {},
    "pytorch_optimizer:DualAdam": {},
    "pytorch_optimizer:EXAdam": {},
    "pytorch_optimizer:FOCUS": {},
    "pytorch_optimizer:FTRL": {},
    "pytorch_optimizer:Grams": {},
    "pytorch_optimizer:GrokFastAdamW": {},
    "pytorch_optimizer:Kate": {},
    "pytorch_optimizer:LaProp": {},
    "pytorch_optimizer:Lion": {},
    "pytorch_optimizer:MADGRAD": {},
    "pytorch_optimizer:MSVAG": {},
    "pytorch_optimizer:PAdam": {},
    "pytorch_optimizer:PID": {},
    "pytorch_optimizer:PNM": {},
    "pytorch_optimizer:QHAdam": {},
    "pytorch_optimizer:QHM": {},
    "pytorch_optimizer:RAdam": {},
    "pytorch_optimizer:SGDW": {},
    "pytorch_optimizer:SRMM": {},
    "pytorch_optimizer:ScheduleFreeAdamW": {},
    "pytorch_optimizer:ScheduleFreeRAdam": {},
    "pytorch_optimizer:ScheduleFreeSGD": {},
    "pytorch_optimizer:SignSGD": {},
    "pytorch_optimizer:SimplifiedAdEMAMix": {},
    "pytorch_optimizer:Tiger": {},
    "pytorch_optimizer:VSGD": {},
    "pytorch_optimizer:Yogi": {},
}

#: packages whose classes were all looked at: what is not in the table does not act number by number, or might not
SURVEYED = ("torch.optim", "pytorch_optimizer")


def path_of(torch_class: type[Optimizer]) -> str:
    """Return ``package:Name`` of a class, whichever module of the package it is in.

    >>> import torch
    >>> path_of(torch.optim.NAdam)
    'torch.optim:NAdam'
    """
    module = torch_class.__module__
    package = "torch.optim" if f"{module}.".startswith("torch.optim.") else module.partition(".")[0]
    return f"{package}:{torch_class.__qualname__}"


def acts_by_number(torch_class: type[Optimizer], arguments: Mapping[str, Any]) -> bool:
    """Return whether the class is known to act on each number by itself, with these arguments.

    Args:
        arguments: the keyword arguments that are handed over. Those that are not have the class's defaults.
    """
    needed = ELEMENTWISE.get(path_of(torch_class))
    return needed is not None and all(arguments.get(key, value) == value for key, value in needed.items())
