"""One rank of the learner: a policy inside a DeepSpeed engine.

One optimiser step is one ``train`` call over this rank's packed rows. DeepSpeed averages gradients
over the R data-parallel ranks; the loss we want is the mean over all N loss tokens of the step,
wherever they lie. So each row's loss sum is multiplied by R / N before backward:

    average over ranks of  sum over a rank's rows of  (R / N) loss_sum  =  (1 / N) sum over all

and DeepSpeed's own accumulation factor is off (``scale_wrt_gas=False``). N comes with the batch.
Cutting a batch into other rows, ranks or ZeRO stages changes no weight beyond rounding.

bfloat16 means bfloat16 weights, activations and gradients in each row; the master weights, the
accumulated gradient and Adam's moments are float32. DeepSpeed accumulates in float32 only
where ZeRO is on, so stage 0 in bfloat16 runs as stage 1.

A step whose loss or global gradient norm is not finite changes nothing on any rank: ZeRO's
optimisers refuse by themselves, and ``GuardedAdamW`` refuses for the rest.

The learning rate rises linearly over the first ``warmup_steps`` applied updates and then stays.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig
from posttrain.learner import rank_setup
from posttrain.learner.critic import RankCritic
from posttrain.learner.engine_settings import choices, deepspeed_config
from posttrain.learner.guarded_adam import gradient_norm, update
from posttrain.learner.published_weights import PublishedWeights
from posttrain.learner.row_tensors import RowTensors, everything_row, rows_of
from posttrain.learner.state import Layout, Part, RankState, names_in_order
from posttrain.learner.step_metrics import Clock, Totals
from posttrain.losses import policy_loss
from posttrain.model import lora
from posttrain.model.expert_load import StepLoad
from posttrain.model.policy import Policy
from posttrain.model.sequence_parallel import Shard
from posttrain.model.token_logprobs import EntropyMode
from posttrain.types import Batch, Floats, Ints, PackedRow, Snapshot, StepResult


class RankLearner:
    """What one rank does. Every public method is a collective: all ranks call it, in one order."""

    def __init__(self, config: GrpoConfig, probe_ids: Ints) -> None:
        deepspeed = rank_setup.import_deepspeed()
        self._config = config
        self._settings = config.learner
        self._temperature = config.rollout.temperature
        self._probe_ids = np.asarray(probe_ids, np.int64)
        self._algorithm = Algorithm.of(config.algorithm)
        self.rank, self.world_size, self._device = rank_setup.join_ranks()
        torch.manual_seed(config.seed)
        self._shard = Shard.join(self._settings.sequence_parallel)
        self._lora = self._settings.lora
        self._policy = rank_setup.trained_policy(config, self._device, self._shard)
        apart = self._algorithm.reference and self._lora is None  # a model of its own
        self._reference = self._start_policy().eval() if apart else None
        # flash-attn's varlen kernel wants every sequence whole; our own attention does not.
        self._share = self._policy.packed
        self._initialize = deepspeed.initialize
        self._part = self._with_optimizer(self._policy)
        self._engine, self._adam = self._part.engine, self._part.adam
        self._critic = self._make_critic() if self._algorithm.critic else None
        gathered = deepspeed.zero.GatheredParameters
        self._out = PublishedWeights(self._policy.model, self._lora, self.rank, gathered)
        self._updates = 0  # applied ones: where the warm-up stands
        self._state = self._rank_state()

    # training

    @property
    def row_rank(self) -> int:
        """Whose rows of a batch are this rank's."""
        return self.rank // self._policy.copies

    def train(self, batch: Batch) -> StepResult:
        """One optimiser step over this rank's rows of the batch."""
        rows = batch.rows[self.row_rank]
        if not rows:
            raise ValueError("every rank needs at least one row, if only an empty one")
        clock = Clock(self._device)
        rate = self._set_rate()
        metrics: dict[str, Any] = {}
        if self._critic is not None:
            metrics |= self._critic.train(rows, batch.n_tokens, self.world_size, rate)
            clock.lap("critic")
        reason = ""
        if batch.train_policy:
            reason = self._train_policy(rows, batch.denominator, metrics, clock)
        metrics["learning_rate"] = rate
        metrics |= clock.metrics(metrics.get("learner_tokens", 0.0))
        finite = {name: value for name, value in metrics.items() if _is_finite(value)}
        return StepResult(finite, skipped=bool(reason), reason=reason)

    def _train_policy(
        self,
        rows: Sequence[PackedRow],
        denominator: float,
        metrics: dict[str, Any],
        clock: Clock,
    ) -> str:
        """Forward, backward and update; returns why nothing was changed, if so."""
        self._policy.train()
        totals = Totals(self._device, self._policy.copies)
        load = self._expert_load(rows)
        for i, row in enumerate(rows):
            self._engine.set_gradient_accumulation_boundary(i == len(rows) - 1)
            loss, routing = self._forward_loss(row, totals)
            if load is not None:
                loss = loss + denominator * load.loss(routing)
            clock.lap("forward")
            self._engine.backward(loss * (self.world_size / denominator), scale_wrt_gas=False)
            clock.lap("backward")
        metrics |= totals.reduce(denominator)
        if load is not None:
            metrics |= load.metrics()
        reason = update(self._engine, self._adam, metrics["loss"])
        self._updates += not reason
        clock.lap("optimizer")
        metrics["grad_norm"] = gradient_norm(self._engine, self._adam)
        return reason

    def _expert_load(self, rows: Sequence[PackedRow]) -> StepLoad | None:
        """Of a mixture; already counted where its loss needs it before the first of many rows."""
        experts = self._policy.experts
        if experts is None:
            return None
        load = StepLoad(experts)
        if experts.coefficient and len(rows) > 1:
            with torch.no_grad():
                for row in rows:
                    load.note(self._engine(*self._tensors(row).inputs, 1.0)[2])
            load.settle()
        return load

    def _forward_loss(self, row: PackedRow, totals: Totals) -> tuple[Tensor, Tensor]:
        """The row's loss sum, and its routing; its metrics go to ``totals``."""
        tensors = self._tensors(row)
        mode: EntropyMode = "loss" if self._algorithm.parts.entropy_coef > 0 else "metric"
        reference = tensors.reference  # from a server
        if self._algorithm.reference:
            reference = self._reference_logprobs(tensors)
        logprobs, entropy, routing = self._engine(*tensors.inputs, self._temperature, mode)
        tokens = tensors.tokens(logprobs, entropy, reference)
        loss, metrics = policy_loss(tokens, self._algorithm.parts)
        metrics["advantage_mean"] = tokens.masked(tokens.advantages).sum()
        totals.add({"loss": loss.detach(), **metrics, **tensors.counts()})
        return loss, routing

    def _set_rate(self) -> float:
        warmup = self._settings.warmup_steps
        share = min(1.0, (self._updates + 1) / warmup) if warmup else 1.0
        rate = self._settings.learning_rate * share
        for group in self._adam.param_groups:
            group["lr"] = rate
        return rate

    def choices(self) -> dict[str, Any]:
        """How precision and memory are spent: see ``engine_settings``."""
        return choices(
            self._settings,
            attention=self._policy.model.config._attn_implementation,
            tile_tokens=self._policy.head.chunk,
            device=self._device.type,
        )

    # log-probs

    @torch.no_grad()
    def examine(self, batch: Batch, what: str) -> list[Floats]:
        """Of the targets of each of this rank's rows [N]: see ``types.Learner.examine``."""
        found: list[Floats] = []
        self._policy.eval()
        for row in batch.rows[self.row_rank]:
            tensors = self._tensors(row)
            if what == "values" and self._critic is not None:
                found.append(self._critic.values(tensors))
                continue
            if what == "reference" and self._algorithm.reference:
                all_N = self._reference_logprobs(tensors)
            elif what == "policy":
                all_N = self._engine(*tensors.inputs, self._temperature)[0]
            else:
                raise ValueError(f"this learner has nothing to say of {what!r}")
            found.append(all_N[: tensors.n_targets].cpu().numpy())
        return found

    @torch.no_grad()
    def _reference_logprobs(self, tensors: RowTensors) -> Tensor:
        """Of the start policy: a model of its own, or this one without its adapter."""
        if self._reference is not None:
            return self._reference(*tensors.inputs, self._temperature)[0]
        with lora.adapter_off(self._policy.model):
            return self._engine(*tensors.inputs, self._temperature)[0]

    def logprobs(self, sequences: Sequence[Ints], temperature: float) -> list[Floats]:
        """For each sequence the log-probs of ``sequence[1:]``, under the current weights."""
        found: list[Floats] = []
        self._policy.eval()
        for members in rows_of(sequences, self._settings.tokens_per_row):
            tensors = self._tensors(everything_row(members), share_prompts=False)
            with torch.no_grad():
                row, *_ = self._engine(*tensors.inputs, temperature)
            real = row[: tensors.n_targets].cpu().numpy()
            found += np.split(real, np.cumsum([len(ids) - 1 for ids in members])[:-1])
        return found

    # weights

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and full tensor, one at a time: see ``PublishedWeights.whole``."""
        return self._out.whole()

    def publish(self, version: int, folder: Path, perturb: float = 0.0) -> Snapshot:
        """Write the weights, and the probe's log-probs under exactly these. See types.Learner."""
        with self._out.moved(perturb):
            path = self._out.send(version, folder)
            (probe,) = self.logprobs([self._probe_ids], 1.0)
        return Snapshot(version, path, self._probe_ids, probe)

    def attach(self, urls: Sequence[str]) -> None:
        """From now on publish over NCCL to the servers at ``urls``, not through a file."""
        self._out.connect(urls, self._config.sync.timeout_s)

    def export(self, folder: Path) -> None:
        """Write an ordinary checkpoint, and with LoRA the adapter: see ``PublishedWeights``."""
        self._out.export(folder, self._config.model)
        dist.barrier()

    # state

    def save(self, folder: Path) -> None:
        """Copy the state; a thread writes it below ``folder``. See ``state``."""
        self._state.save(folder, {"updates": self._updates})

    def written(self) -> None:
        """Return when the last ``save`` is on the disk."""
        self._state.written()

    def load(self, folder: Path) -> None:
        """Take over a saved state, bit for bit where ranks and ZeRO stage are the same."""
        self._updates = self._state.load(folder)["updates"]

    def _rank_state(self) -> RankState:
        parts = {"deepspeed": self._part}
        if self._critic is not None:
            parts["critic"] = self._critic.part
        identity = {
            "dtype": self._settings.dtype,
            "critic": self._critic is not None,
            "lora": None if self._lora is None else self._lora.model_dump(mode="json"),
        }
        layout = Layout(self.world_size, self._settings.stage)
        return RankState(parts, self.rank, layout, identity, self._config.seed)

    # construction

    def _start_policy(self) -> Policy:
        return rank_setup.start_policy(self._config, self._device, self._shard)

    def _tensors(self, row: PackedRow, share_prompts: bool | None = None) -> RowTensors:
        share = self._share if share_prompts is None else share_prompts
        return RowTensors(row, self._device, share_prompts=share, multiple=self._policy.copies)

    def _make_critic(self) -> RankCritic:
        arguments = self._algorithm.advantage.arguments
        return RankCritic(
            self._start_policy(),
            self._with_optimizer,
            clip=float(arguments.get("value_clip", 0.0)),
            rate_factor=float(arguments.get("critic_rate", 1.0)),
            device=self._device,
        )

    def _with_optimizer(self, model: nn.Module) -> Part:
        """A DeepSpeed engine around the model, and its optimiser."""
        adam = rank_setup.adam_for(model, self._settings)
        names = names_in_order(model, adam)  # before DeepSpeed puts flat buffers in their place
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        cuda = self._device.type == "cuda"
        config = deepspeed_config(self._settings, cuda=cuda, trained=trained)
        engine, *_ = self._initialize(model=model, optimizer=adam, config=config)
        return Part(engine, adam, names)


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)
