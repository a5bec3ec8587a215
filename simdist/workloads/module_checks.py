"""What a user's module may not do, refused with the reason before anything is trained.

A worker's loss must be a function of its parameters and its batch alone, and the loss of joined batches the mean of
their losses; otherwise engines would disagree, and sharded training would not be the training it stands for.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from simdist.errors import InputError


def check_layers(module: nn.Module) -> None:
    """Refuse the known layers that keep state or draw random numbers.

    Raises:
        InputError: for batch norm and for dropout above zero.
    """
    for name, layer in module.named_modules():
        where = f"{type(layer).__name__} at {name or 'the top'!r}"
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise InputError(
                f"got a module with {where}: it mixes the examples of a batch and changes its buffers, so workers "
                "would drift apart; expected LayerNorm, RMSNorm or GroupNorm instead"
            )
        rate = layer.p if isinstance(layer, nn.modules.dropout._DropoutNd) else getattr(layer, "dropout", 0.0)
        if layer.training and isinstance(rate, int | float) and rate > 0:
            raise InputError(
                f"got a module with {where} and dropout {rate:g}: its draws would differ between engines; "
                "expected dropout 0"
            )


def check_behaviour(
    loss: Callable[[dict[str, Tensor], tuple[Tensor, ...]], Tensor],
    module: nn.Module,
    params: dict[str, Tensor],
    first: tuple[Tensor, ...],
    second: tuple[Tensor, ...],
    name: str,
) -> None:
    """Run the loss on two batches, and on both joined.

    Raises:
        InputError: when the module or the loss raises, the loss is no scalar, two calls differ, a buffer changes, or
            the loss is not a mean over examples.
    """
    before = {key: value.clone() for key, value in module.named_buffers()}
    joined = tuple(torch.cat(pair) for pair in zip(first, second, strict=True))
    try:
        with torch.no_grad():
            a, again, b, both = (loss(params, batch) for batch in (first, first, second, joined))
    except Exception as error:
        raise InputError(
            f"the module or the loss {name!r} raised {type(error).__name__} on a batch of shapes "
            f"{[tuple(tensor.shape) for tensor in first]}: {error}"
        ) from error
    if not isinstance(a, Tensor) or a.shape != () or not a.is_floating_point():
        got = f"shape {tuple(a.shape)}, {a.dtype}" if isinstance(a, Tensor) else type(a).__name__
        raise InputError(f"loss {name!r} returned {got}; expected a scalar tensor, the mean over the batch")
    changed = [key for key, value in module.named_buffers() if not torch.equal(value, before[key])]
    if changed:
        raise InputError(
            f"got a module whose buffer {changed[0]!r} changes in the forward pass; expected fixed buffers, as only "
            "parameters are trained and exchanged"
        )
    if not torch.equal(a, again) and torch.isfinite(a):
        raise InputError(
            "got a module whose loss differs between two calls on the same batch; expected no random numbers in the "
            "forward pass (functional dropout with training=True?)"
        )
    mean = (a + b) / 2
    if torch.isfinite(mean) and not torch.isclose(both, mean, rtol=1e-3, atol=1e-5):
        raise InputError(
            f"got loss {name!r} with {a.item():.6g} and {b.item():.6g} on two batches and {both.item():.6g} on both "
            f"joined; expected their mean {mean.item():.6g}: use reduction='mean', and no layer that mixes examples"
        )
