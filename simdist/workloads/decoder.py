"""Decoder-only transformers as large language models have them: the presets of ``simdist plan`` are its settings.

It trains as well, on the bytes of real text, where it is small enough: so plans can be held against runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator, model_validator
from torch import Tensor
from typing_extensions import Self

from simdist.program.random import normal
from simdist.settings import PositiveFloat, PositiveInt
from simdist.workloads import decoder_blocks as parts
from simdist.workloads.corpus import check_spec, load_corpus
from simdist.workloads.flops import Cost, cost_of
from simdist.workloads.windows import Windows
from simdist.workloads.workload import ParamSpec, Role, Task, Unit, Workload, workloads

#: standard deviation of first weights, as in GPT-2
_STD = 0.02
META = torch.device("meta")


@workloads.register("decoder")
class Decoder(Workload):
    """Decoder-only transformer at any size (GPT-2, Llama 3; presets of `simdist plan`) on the bytes of real text.

    Pre-norm blocks. Query, key and value weights are matrices of their own, also where the published code joins them,
    as spectral rules treat each matrix by itself. FLOPs and activations are counted on the meta device.

    Attributes:
        width: size of the residual stream.
        depth: number of blocks.
        heads: of queries.
        kv_heads: of keys and values; null: as many (grouped queries, arXiv 2305.13245, with fewer).
        hidden: inner size of the MLP.
        vocabulary: rows of embedding and head; training text has the 256 bytes, so at least 256.
        context: tokens that a prediction may look back on, and predictions per sequence.
        batch: sequences per worker and step.
        norm: ``rms`` or ``layer``.
        positions: ``rotary``, or ``learned``: a row of a table for each of ``window`` positions.
        window: rows of that table; null: ``context``.
        rotary_base: theta of rotary positions.
        mlp: ``swiglu`` (three matrices) or ``gelu`` (two).
        biases: linear layers have biases (the head never).
        tied: the head is the embedding.
        attention: what FLOPs and activations are those of: ``fused`` kernels, which compute scores again backwards, or
            ``written_out``, which keep them. Values do not depend on it.
        corpus: ``stdlib``, ``kjv``, or ``file:PATH``.
        validation_batches: fixed batches of ``batch`` sequences of the held-out tenth.
    """

    loss_unit: ClassVar[str] = "nats per token"

    name: str = "decoder"
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt | None = None
    hidden: PositiveInt
    vocabulary: PositiveInt
    context: PositiveInt = 1024
    batch: PositiveInt = 1
    norm: Literal["rms", "layer"] = "rms"
    positions: Literal["rotary", "learned"] = "rotary"
    window: PositiveInt | None = None
    rotary_base: PositiveFloat = 10_000.0
    mlp: Literal["swiglu", "gelu"] = "swiglu"
    biases: bool = False
    tied: bool = False
    attention: Literal["fused", "written_out"] = "fused"
    corpus: Annotated[str, AfterValidator(check_spec)] = "stdlib"
    validation_batches: PositiveInt = 4

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        pairs = 2 if self.positions == "rotary" else 1
        if self.width % (pairs * self.heads):
            raise ValueError(f"got width {self.width}; expected a multiple of {pairs} * heads = {pairs * self.heads}")
        if self.heads % self.kv:
            raise ValueError(f"got {self.kv} kv_heads for {self.heads} heads; expected a divisor of {self.heads}")
        if self.vocabulary < 256:
            raise ValueError(f"got vocabulary {self.vocabulary}; expected at least 256, as the text is bytes")
        if self.positions == "learned" and self.rows < self.context:
            raise ValueError(
                f"got context {self.context} with learned positions for {self.rows}; expected a context of at most "
                f"{self.rows}, or a larger window"
            )
        if self.positions == "rotary" and self.window is not None:
            raise ValueError(f"got window {self.window} with rotary positions, which need no table; leave window out")
        return self

    @property
    def kv(self) -> int:
        """Heads of keys and values."""
        return self.kv_heads or self.heads

    @property
    def rows(self) -> int:
        """Rows of the table of learned positions."""
        return self.window or self.context

    def build(self, seed: int, dtype: torch.dtype, device: torch.device) -> DecoderTask:
        # a plan needs no text
        text = None
        if device.type != "meta":
            corpus = load_corpus(self.corpus)
            corpus.need(self.context + 1)
            text = Windows(corpus, self.context, self.batch, seed, device)
        return DecoderTask(self, text, seed, dtype, device)

    def block_specs(self, prefix: str) -> tuple[ParamSpec, ...]:
        """Parameters of a block whose names begin with ``prefix``, in forward order."""
        d, h, kv = self.width, self.hidden, self.kv * (self.width // self.heads)
        layers = {"attn.q": (d, d), "attn.k": (kv, d), "attn.v": (kv, d), "attn.out": (d, d)}
        mlp = {"mlp.gate": (h, d)} if self.mlp == "swiglu" else {}
        mlp |= {"mlp.up": (h, d), "mlp.down": (d, h)}
        specs = [*self._norm("norm1"), *self._linear(layers), *self._norm("norm2"), *self._linear(mlp)]
        return tuple(ParamSpec(prefix + name, shape, role) for name, shape, role in specs)

    def root_specs(self) -> tuple[ParamSpec, ...]:
        """Embedding, positions, final norm and head."""
        table = (self.vocabulary, self.width)
        specs: list[tuple[str, tuple[int, ...], Role]] = [("embed.weight", table, "embedding")]
        if self.positions == "learned":
            specs.append(("positions.weight", (self.rows, self.width), "embedding"))
        specs += self._norm("norm")
        if not self.tied:
            specs.append(("head.weight", table, "head"))
        return tuple(ParamSpec(*spec) for spec in specs)

    def _norm(self, name: str) -> list[tuple[str, tuple[int, ...], Role]]:
        kinds = ("weight", "bias") if self.norm == "layer" else ("weight",)
        return [(f"{name}.{kind}", (self.width,), "vector") for kind in kinds]

    def _linear(self, layers: dict[str, tuple[int, int]]) -> list[tuple[str, tuple[int, ...], Role]]:
        specs: list[tuple[str, tuple[int, ...], Role]] = []
        for name, shape in layers.items():
            specs.append((f"{name}.weight", shape, "matrix"))
            if self.biases:
                specs.append((f"{name}.bias", shape[:1], "vector"))
        return specs


class DecoderTask(Task):
    """The decoder with its text; a batch is ``(tokens,)``, int64 [batch, context + 1]. Without text it is for plans."""

    def __init__(
        self, settings: Decoder, text: Windows | None, seed: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.settings = settings
        self.data_hash = "none (plan)" if text is None else text.sha256
        self.samples_per_step = settings.batch * settings.context
        self.units = _units(settings)
        self.validation: Sequence[tuple[Tensor]] = [] if text is None else text.validation(settings.validation_batches)
        self._text = text
        self._seed, self._dtype, self._device = seed, dtype, device
        self._tables = _tables(settings, dtype, device)

    def initial(self) -> dict[str, Tensor]:
        """Normal weights of std 0.02, those that write to the residual stream over sqrt(2 depth), as in GPT-2."""
        params = {}
        for spec in (spec for unit in self.units for spec in unit.params):
            if spec.role == "vector":
                make = torch.ones if spec.name.endswith("weight") else torch.zeros
                values = make(spec.shape, dtype=torch.float64, device=self._device)
            else:
                writes = spec.name.endswith((".out.weight", ".down.weight"))
                std = _STD / math.sqrt(2 * self.settings.depth) if writes else _STD
                values = std * normal(spec.shape, self._seed, f"initial/{spec.name}")
            params[spec.name] = values.to(torch.float32).to(device=self._device, dtype=self._dtype)
        return params

    def batch(self, worker: int, step: int) -> tuple[Tensor]:
        assert self._text is not None, "a plan reads no text"
        return (self._text.batch(worker, step),)

    def loss(self, params: dict[str, Tensor], batch: tuple[Tensor, ...]) -> Tensor:
        """Mean cross entropy of the next token, in nats."""
        (tokens,) = batch
        settings = self.settings
        x = F.embedding(tokens[:, :-1], params["embed.weight"])
        if settings.positions == "learned":
            x = x + params["positions.weight"][: x.shape[1]]
        run = _block(settings, self._tables, parts.written_out(self._tables.mask))
        for i in range(settings.depth):
            prefix = f"blocks.{i}."
            own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
            x = run(own, x)
        return _judged(settings, params, x, tokens[:, 1:])


def _tables(settings: Decoder, dtype: torch.dtype, device: torch.device) -> parts.Tables:
    size = settings.width // settings.heads
    return parts.tables(settings.context, size, settings.rotary_base, dtype, device)


def _block(
    settings: Decoder, tables: parts.Tables, attend: parts.Attention
) -> Callable[[dict[str, Tensor], Tensor], Tensor]:
    at = tables if settings.positions == "rotary" else None
    return partial(parts.block, heads=settings.heads, kv=settings.kv, at=at, attend=attend)


def _judged(settings: Decoder, params: dict[str, Tensor], x: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy of ``targets`` [batch, context]."""
    head = params["embed.weight" if settings.tied else "head.weight"]
    logits = parts.normed(x, params, "norm") @ head.mT
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _units(settings: Decoder) -> tuple[Unit, ...]:
    """The root unit and one unit per block, all of which are alike: one is counted, on one sequence."""
    x = torch.empty(1, settings.context, settings.width, device=META, requires_grad=True)
    targets = torch.empty(1, settings.context, dtype=torch.int64, device=META)
    tables = _tables(settings, torch.float32, META)
    attend = parts.fused if settings.attention == "fused" else parts.written_out(tables.mask)

    def unit(name: str, specs: tuple[ParamSpec, ...], cost: Cost) -> Unit:
        return Unit(name, specs, cost.forward, cost.backward, name == "root", cost.activations)

    def counted(function: Callable[[dict[str, Tensor], Tensor], Tensor], specs: Sequence[ParamSpec]) -> Cost:
        shapes = {spec.name: spec.shape for spec in specs}
        return cost_of(function, shapes, x, [*tables, targets]).times(settings.batch)

    root = settings.root_specs()
    block = counted(_block(settings, tables, attend), settings.block_specs(""))
    blocks = (unit(f"blocks.{i}", settings.block_specs(f"blocks.{i}."), block) for i in range(settings.depth))
    judged = counted(lambda params, x: _judged(settings, params, x, targets), root)
    return (unit("root", root, judged), *blocks)
