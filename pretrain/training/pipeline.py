"""One rank's stage of a model whose layers are divided over ranks: DeepSpeed's pipeline engine.

Decides where the cuts are, and what travels: hidden states, positions, targets. A stage is one
module with some of the layers; what lies before them (the embedding) is the first rank's, what lies
after (the last norm, the head with its loss) the last's. A tied embedding lives on both ends, which
add up its gradient. The loss is the output of the last module and not DeepSpeed's ``loss_fn``: when
the backward pass comes to the output, gradients in bfloat16 are cleared, the head's among them.

Micro-batches follow each other through the stages, each rank doing a forward and a backward pass
in turn (1F1B; Narayanan et al., arXiv:2104.04473, section 2.2). With p stages and m micro-batches a
rank waits (p - 1) / (m + p - 1) of the time, whatever else it costs.

DeepSpeed's schedule ends with the update of the weights. Here it ends with the reduction of the
gradients, so that a spike is judged by the loss of all ranks before the update, as without stages.

The layers are called here and not by transformers' model, so a model that does more with them than
hand one's output to the next would be trained wrongly: before it is divided, a short row goes both
ways and must come out the same.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.errors import UsageError
from pretrain.packing import IGNORE
from pretrain.training.engine import Engine
from pretrain.training.loss import Head
from pretrain.training.network import (
    PLAIN,
    MicroBatch,
    documents_apart,
    prepare,
    with_weights_in,
)

# Ids [rows, length] or hidden states [rows, length, H]; positions and targets [rows, length].
Travelling = tuple[Tensor, Tensor, Tensor]


class Embedding(nn.Module):
    """The first rank's beginning; with tied weights also the last rank's head."""

    def __init__(self, matrix: nn.Embedding) -> None:
        super().__init__()
        self.matrix = matrix

    def forward(self, inputs: Travelling) -> Travelling:
        ids, *others = inputs
        return self.matrix(ids), *others


class Stage(nn.Module):
    """Some consecutive layers, and after the last of all the norm."""

    def __init__(self, body: Any, first: int, end: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(body.layers[first:end])
        self.rotary = body.rotary_emb
        self.norm = body.norm if end == len(body.layers) else nn.Identity()

    def forward(self, inputs: Travelling) -> Travelling:
        hidden, positions, targets = inputs
        apart = documents_apart(positions) if (positions[:, 1:] == 0).any() else None
        rotation = self.rotary(hidden, positions)
        for layer in self.layers:
            hidden = layer(
                hidden,
                attention_mask=None,
                position_ids=positions,
                position_embeddings=rotation,
                use_cache=False,
                apart=apart,
            )
        return self.norm(hidden), positions, targets


class Output(nn.Module):
    """The last rank's end, where the head has a weight of its own."""

    def __init__(self, matrix: nn.Linear, loss: Callable[[Output, Travelling], Tensor]) -> None:
        super().__init__()
        self.matrix, self._loss = matrix, loss

    def forward(self, inputs: Travelling) -> Tensor:
        return self._loss(self, inputs)


class Pipeline(Engine):
    """The engine of a rank that has one of several stages."""

    def _module(self) -> nn.Module:
        import deepspeed
        from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec

        model, stages = with_weights_in(self.model, self._dtype), self._config.parallel.pipeline
        cuts = check_division(model, stages)
        self._names = {id(weight): name for name, weight in model.named_parameters()}
        head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
        ends = [LayerSpec(Embedding, embedding), LayerSpec(Output, head, self._loss)]
        if head.weight is embedding.weight:
            tie = {"tied_weight_attr": "matrix.weight"}
            ends = [
                TiedLayerSpec("ends", Embedding, embedding, **tie),
                TiedLayerSpec("ends", Embedding, embedding, forward_fn=self._loss, **tie),
            ]
        middle = [LayerSpec(Stage, model.base_model, *cut) for cut in itertools.pairwise(cuts)]
        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False)
        # It prints what it is made of, and broadcasts weights in place.
        with contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            module = PipelineModule(
                [ends[0], *middle, ends[1]],
                num_stages=stages,
                partition_method=f"type:{Stage.__name__}",
                dynamic_shape=True,  # micro-batches of phases, validation and samples differ
            )
        self._last = module.stage_id == stages - 1
        self._scale = 0.0  # of the loss, for its gradient
        self._nll = torch.zeros((), dtype=torch.float64, device=self.device)
        _let_go(model, module)
        return module

    def _loss(self, end: Embedding | Output, inputs: Travelling) -> Tensor:
        """Of a micro-batch, on the last rank."""
        hidden, _, targets = inputs
        z_loss = self._config.optimizer.z_loss
        head = Head(end.matrix)
        loss, nll = head(hidden.flatten(0, 1), targets.flatten(), z_loss)
        self._nll += nll.sum()
        if not end.training:
            self._next = F.linear(hidden[0, -1], head.weight).float()  # logits, for samples
        return loss * self._scale

    def _passes(self, micro_batches: Sequence[MicroBatch], n_tokens: int) -> Tensor:
        n = len(micro_batches)
        self._engine.set_train_batch_size(n * self.data_ranks)
        self._engine._train_schedule = lambda: _without_update(self._engine)
        self._scale = self.data_ranks * n / n_tokens  # it divides by the number of micro-batches
        self._nll.zero_()
        self._engine.train_batch(_loaded(micro_batches))
        return self._nll

    def _expert_load(self) -> None:
        return None

    def _update(self) -> None:
        self._engine._exec_optimizer_step()

    @torch.no_grad()
    def nll(self, micro_batches: Sequence[MicroBatch]) -> float:
        """As ``Engine.nll``."""
        self._nll.zero_()
        self._forward(micro_batches)
        total = self._nll.clone()
        dist.all_reduce(total)
        return float(total)

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], n_tokens: int, seed: int) -> list[int]:
        """As ``Engine.sample``; without a cache, each token is a pass over all before it."""
        random = torch.Generator(self.device).manual_seed(seed)
        told = self.model.generation_config.eos_token_id
        ends = set(told if isinstance(told, list) else [told])
        ids = list(prompt)
        while len(ids) < len(prompt) + n_tokens and not ends.intersection(ids[len(prompt) :]):
            row = torch.tensor([ids], device=self.device)
            at = torch.arange(len(ids), device=self.device)[None]
            self._forward([MicroBatch(row, torch.full_like(row, IGNORE), at, None)])
            token = torch.zeros(1, dtype=torch.int64, device=self.device)
            if self._last:
                token = torch.multinomial(self._next.softmax(-1), 1, generator=random)
            grid = self._engine.grid
            source = grid.stage_to_global(self.place.stages - 1)
            dist.broadcast(token, source, group=grid.get_pipe_parallel_group())
            ids.append(int(token))
        return ids[len(prompt) :]

    def _forward(self, micro_batches: Sequence[MicroBatch]) -> None:
        self._engine.eval_batch(
            _loaded(micro_batches),
            reduce_output=None,
            bcast_loss=False,
            num_micro_batches=len(micro_batches),
        )

    def weights(self) -> dict[str, Tensor]:
        """As ``Engine.weights``; the first rank gets every stage's."""
        own: dict[str, Tensor] = {}
        whole: dict[str, Tensor] = {}
        for weight in self._engine.module.parameters():
            own[self._names[id(weight)]] = weight.detach().cpu()
        if self.place.reader == 0:
            parts: list[Any] | None = [None] * self.place.stages if self.place.rank == 0 else None
            dist.gather_object(own, parts, 0, self._engine.grid.get_pipe_parallel_group())
            for part in reversed(parts or []):  # a tied one is the first stage's
                whole |= part
        return whole


def cuts_of(layers: int, head: float, stages: int) -> list[int]:
    """Where stages begin and the last ends; ``head`` is the head's size in layers.

    Every stage has a layer, the last so many fewer as its head is large.
    """
    share = (layers + head) / stages
    cuts = [0]
    for stage in range(1, stages):
        cuts.append(min(max(round(stage * share), cuts[-1] + 1), layers - stages + stage))
    return [*cuts, layers]


def check_division(model: Any, stages: int) -> list[int]:
    """The cuts of a whole model, after a short row of two documents went both ways.

    Raises UsageError for a model that stages can't do.
    """
    prepare(model)
    kind, body = model.config.model_type, model.base_model
    if not all(hasattr(body, name) for name in ("layers", "rotary_emb", "norm")):
        raise UsageError(f"parallel.pipeline: the layers of {kind} are not known")
    size = sum(weight.numel() for weight in body.layers[0].parameters())
    cuts = cuts_of(len(body.layers), model.get_output_embeddings().weight.numel() / size, stages)
    model.eval()
    model.set_attn_implementation(PLAIN)
    ids = torch.arange(16)[None] % model.config.vocab_size
    positions = torch.arange(8).repeat(2)[None]
    with torch.no_grad():
        travelling = Embedding(model.get_input_embeddings())((ids, positions, ids))
        try:
            for cut in itertools.pairwise(cuts):
                travelling = Stage(body, *cut)(travelling)
        except TypeError as error:
            raise UsageError(f"parallel.pipeline: the layers of {kind}: {error}") from error
        apart = documents_apart(positions)
        told = body(input_ids=ids, position_ids=positions, use_cache=False, rows=1, apart=apart)
    if not torch.equal(travelling[0], told.last_hidden_state):
        raise UsageError(f"parallel.pipeline: {kind} does more with its layers than stages do")
    return cuts


def _let_go(model: Any, module: nn.Module) -> None:
    """Free what other ranks have; the model's shape stays."""
    own = {id(weight) for weight in module.parameters()}
    for part in model.modules():
        for name, weight in part._parameters.items():
            if weight is not None and id(weight) not in own:
                part._parameters[name] = nn.Parameter(weight.to("meta"), requires_grad=False)


def _loaded(micro_batches: Sequence[MicroBatch]) -> Iterator[tuple[Travelling, Tensor]]:
    """For DeepSpeed: what the first stage takes, and labels, which are not used."""
    return iter([((m.ids, m.positions, m.targets), m.targets) for m in micro_batches])


def _without_update(engine: Any) -> Iterator[list[Any]]:
    """DeepSpeed's schedule of a step up to the reduced gradients."""
    from deepspeed.runtime.pipe.schedule import OptimizerStep, TrainSchedule

    class Schedule(TrainSchedule):
        def steps(self) -> Iterator[list[Any]]:
            for commands in super().steps():
                yield [one for one in commands if not isinstance(one, OptimizerStep)]

    return Schedule(engine.micro_batches, engine.num_stages, engine.stage_id)
