"""A small modern decoder on the bytes of real text.

RMSNorm, rotary embeddings, causal attention, SwiGLU or squared ReLU, and a head that is not tied to the embedding.
Separate q, k and v matrices, as spectral update rules treat each matrix by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, model_validator
from torch import Tensor
from typing_extensions import Self

from simdist.program.random import normal
from simdist.settings import PositiveInt
from simdist.workloads.corpus import check_spec, load_corpus
from simdist.workloads.flops import Cost, cost_of
from simdist.workloads.windows import Windows
from simdist.workloads.workload import ParamSpec, Task, Unit, Workload, workloads

VOCABULARY = 256
#: the gated MLP's hidden size is rounded up to a multiple of this
_HIDDEN_MULTIPLE = 32


@workloads.register("byte_gpt")
class ByteGPT(Workload):
    """Small modern decoder (RMSNorm, rotary, SwiGLU or ReLU², untied head) on the bytes of real text.

    Attributes:
        width: size of the residual stream; a multiple of ``2 * heads``.
        depth: number of blocks.
        heads: attention heads.
        context: bytes that a prediction may look back on, and predictions per sequence.
        batch: sequences per worker and step.
        mlp: ``swiglu`` (three matrices) or ``relu2`` (two).
        hidden: inner size of the MLP; null means 4 width for ``relu2`` and 8/3 width, rounded up to a multiple of
            32, for ``swiglu`` (about equal parameters).
        corpus: ``stdlib``, ``kjv``, or ``file:PATH``.
        validation_batches: fixed batches of ``batch`` sequences, evenly spaced over the held-out tenth.
    """

    loss_unit: ClassVar[str] = "nats per byte"

    name: str = "byte_gpt"
    width: PositiveInt = 128
    depth: PositiveInt = 5
    heads: PositiveInt = 4
    context: PositiveInt = 128
    batch: PositiveInt = 8
    mlp: Literal["swiglu", "relu2"] = "swiglu"
    hidden: PositiveInt | None = None
    corpus: Annotated[str, AfterValidator(check_spec)] = "stdlib"
    validation_batches: PositiveInt = 16

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError(
                f"got width {self.width} with {self.heads} heads; expected a multiple of 2 * heads = "
                f"{2 * self.heads} (each head needs an even size for rotary pairs), such as "
                f"{2 * self.heads * max(1, round(self.width / (2 * self.heads)))}"
            )
        return self

    @property
    def hidden_size(self) -> int:
        """Inner size of the MLP."""
        if self.hidden is not None:
            return self.hidden
        if self.mlp == "relu2":
            return 4 * self.width
        return _HIDDEN_MULTIPLE * math.ceil(8 * self.width / 3 / _HIDDEN_MULTIPLE)

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> ByteGPTTask:
        corpus = load_corpus(self.corpus)
        corpus.need(self.context + 1)
        return ByteGPTTask(self, Windows(corpus, self.context, self.batch, seed, device), seed, dtype, device)

    def block_specs(self, index: int) -> tuple[ParamSpec, ...]:
        """Parameters of block ``index``, in forward order."""
        d, h = self.width, self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {"norm1": (d,)}
        shapes |= {f"attn.{name}": (d, d) for name in ("q", "k", "v", "out")}
        shapes |= {"norm2": (d,)}
        shapes |= {"mlp.gate": (h, d)} if self.mlp == "swiglu" else {}
        shapes |= {"mlp.up": (h, d), "mlp.down": (d, h)}
        return tuple(
            ParamSpec(f"blocks.{index}.{name}", shape, "matrix" if len(shape) == 2 else "vector")
            for name, shape in shapes.items()
        )

    def root_specs(self) -> tuple[ParamSpec, ...]:
        """Embedding, final norm and head."""
        return (
            ParamSpec("embed", (VOCABULARY, self.width), "embedding"),
            ParamSpec("norm", (self.width,), "vector"),
            ParamSpec("head", (VOCABULARY, self.width), "head"),
        )


class ByteGPTTask(Task):
    """The decoder with its text; a batch is ``(tokens,)``, int64 [batch, context + 1]."""

    def __init__(self, settings: ByteGPT, text: Windows, seed: int, dtype: torch.dtype, device: torch.device) -> None:
        self.settings = settings
        self.data_hash = text.sha256
        self.samples_per_step = settings.batch * settings.context
        self.units = _units(settings)
        self._seed, self._dtype, self._device = seed, dtype, device
        self._text = text
        self._tables = _tables(settings, dtype, device)
        self.validation: Sequence[tuple[Tensor]] = text.validation(settings.validation_batches)

    def initial(self) -> dict[str, Tensor]:
        """Weights of std 1/sqrt(fan_in), those that write to the residual stream divided by sqrt(2 depth).

        The embedding has std 1 (RMSNorm follows), the head 0.1/sqrt(width): first predictions are nearly uniform,
        but gradients are not zero, as they would be behind a zero head.
        """
        params = {}
        for spec in (spec for unit in self.units for spec in unit.params):
            if spec.role == "vector":
                values = torch.ones(spec.shape, dtype=torch.float64)
            else:
                values = _scale(spec, self.settings.depth) * normal(spec.shape, self._seed, f"initial/{spec.name}")
            params[spec.name] = values.to(torch.float32).to(device=self._device, dtype=self._dtype)
        return params

    def batch(self, worker: int, step: int) -> tuple[Tensor]:
        return (self._text.batch(worker, step),)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross entropy of the next byte, in nats per byte."""
        (tokens,) = batch
        x = F.embedding(tokens[:, :-1], params["embed"])
        for i in range(self.settings.depth):
            x = _block(self.settings, self._tables, params, f"blocks.{i}.", x)
        logits = _read_out(params, x)
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def _scale(spec: ParamSpec, depth: int) -> float:
    if spec.role == "embedding":
        return 1.0
    std = 1 / math.sqrt(spec.shape[1])
    if spec.role == "head":
        return 0.1 * std
    return std / math.sqrt(2 * depth) if spec.name.endswith((".out", ".down")) else std


class _Tables(NamedTuple):
    """Constants of position: rotary cos and sin [context, width / heads / 2], causal mask [context, context]."""

    cos: Tensor
    sin: Tensor
    mask: Tensor


def _tables(settings: ByteGPT, dtype: torch.dtype, device: torch.device) -> _Tables:
    """Rotation angles as in Su et al., arXiv:2104.09864."""
    half = settings.width // settings.heads // 2
    frequencies = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(torch.arange(settings.context, dtype=torch.float64), frequencies)
    mask = torch.full((settings.context, settings.context), -math.inf, dtype=torch.float64).triu(1)
    return _Tables(angles.cos().to(device, dtype), angles.sin().to(device, dtype), mask.to(device, dtype))


def _rotate(x: Tensor, tables: _Tables) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * tables.cos - b * tables.sin, a * tables.sin + b * tables.cos), dim=-1)


def _norm(x: Tensor, gain: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * gain


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Causal attention over [batch, heads, context, size], written out; ``mask`` is -inf above the diagonal.

    ``F.scaled_dot_product_attention`` takes a fused CPU kernel that has no batching rule for ``torch.func.vmap``,
    and would take another one (other bits) where it has.
    """
    scores = (q / math.sqrt(q.shape[-1])) @ k.mT
    return (scores + mask).softmax(-1) @ v


def _block(settings: ByteGPT, tables: _Tables, params: dict[str, Tensor], prefix: str, x: Tensor) -> Tensor:
    """Run one block on the residual stream ``x`` [batch, context, width]."""
    p = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}

    h = _norm(x, p["norm1"])
    # [batch, context, width] -> [batch, heads, context, width / heads]
    q, k, v = (
        (h @ p[f"attn.{name}"].mT).view(*x.shape[:2], settings.heads, -1).transpose(1, 2) for name in ("q", "k", "v")
    )
    y = _attend(_rotate(q, tables), _rotate(k, tables), v, tables.mask)
    x = x + y.transpose(1, 2).flatten(2) @ p["attn.out"].mT

    h = _norm(x, p["norm2"])
    up = h @ p["mlp.up"].mT
    inner = F.silu(h @ p["mlp.gate"].mT) * up if settings.mlp == "swiglu" else F.relu(up).square()
    return x + inner @ p["mlp.down"].mT


def _read_out(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Return logits [batch, context, 256]."""
    return _norm(x, params["norm"]) @ params["head"].mT


def _units(settings: ByteGPT) -> tuple[Unit, ...]:
    """The root unit and one unit per block; FLOPs are counted on one sequence and are proportional to the batch."""
    x = torch.zeros(1, settings.context, settings.width, requires_grad=True)
    tables = _tables(settings, torch.float32, x.device)
    target = torch.zeros(settings.context, dtype=torch.int64)

    def unit(name: str, specs: tuple[ParamSpec, ...], cost: Cost) -> Unit:
        return Unit(name, specs, cost.forward, cost.backward, name == "root", cost.activations)

    def counted(function: Callable[[dict[str, Tensor], Tensor], Tensor], specs: Sequence[ParamSpec]) -> Cost:
        return cost_of(function, {spec.name: spec.shape for spec in specs}, x, tables).times(settings.batch)

    def judged(params: dict[str, Tensor], x: Tensor) -> Tensor:
        return F.cross_entropy(_read_out(params, x).flatten(0, 1), target)

    root = settings.root_specs()
    # all blocks are alike, so one is counted
    block = counted(lambda params, x: _block(settings, tables, params, "blocks.0.", x), settings.block_specs(0))
    blocks = (unit(f"blocks.{i}", settings.block_specs(i), block) for i in range(settings.depth))
    return (unit("root", root, counted(judged, root)), *blocks)
