"""One rank of the learner: a policy inside a DeepSpeed engine. Only here is deepspeed imported.

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

import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain import lora, quantised
from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig
from posttrain.critic import RankCritic
from posttrain.engine_settings import choices, deepspeed_config
from posttrain.errors import UsageError
from posttrain.expert_load import StepLoad
from posttrain.guarded_adam import GuardedAdamW, forget_gradient
from posttrain.learner_state import Layout, Part, RankState, names_in_order
from posttrain.losses import TokenTensors, policy_loss
from posttrain.policy import Policy, load_policy
from posttrain.row_tensors import RowTensors, everything_row, rows_of
from posttrain.sequence_parallel import Shard
from posttrain.snapshot_file import moved, write_checkpoint, write_weights
from posttrain.step_metrics import Clock, Totals
from posttrain.token_logprobs import EntropyMode
from posttrain.types import Batch, Floats, Ints, PackedRow, Snapshot, StepResult

INSTALL = "the learner needs DeepSpeed, which is missing: pip install 'posttrain[deepspeed]'"


class RankLearner:
    """What one rank does. Every public method is a collective: all ranks call it, in one order."""

    def __init__(self, config: GrpoConfig, probe_ids: Ints) -> None:
        deepspeed = _import_deepspeed()
        self._config = config
        self._settings = config.learner
        self._probe_ids = np.asarray(probe_ids, np.int64)
        self._algorithm = Algorithm.of(config.algorithm)
        self.rank, self.world_size, self._device = _join_ranks()
        torch.manual_seed(config.seed)
        self._dtype = getattr(torch, self._settings.dtype)
        self._shard = Shard.join(self._settings.sequence_parallel)
        self._lora = self._settings.lora
        self._policy = self._load_policy(bits=None if self._lora is None else self._lora.bits)
        if self._lora is not None:
            lora.attach(self._policy.model, self._lora, config.model)
            self._policy.register_state_dict_post_hook(lora.keep_adapter)
        apart = self._algorithm.reference and self._lora is None  # a model of its own
        self._reference = self._load_policy().eval() if apart else None
        # flash-attn's varlen kernel wants every sequence whole; our own attention does not.
        self._share = self._policy.packed
        if self._settings.checkpointing:
            self._policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._stage = self._settings.stage
        self._initialize = deepspeed.initialize
        self._part = self._with_optimizer(self._policy)
        self._engine, self._adam = self._part.engine, self._part.adam
        self._critic = self._make_critic() if self._algorithm.critic else None
        self._gathered = deepspeed.zero.GatheredParameters
        self._sender: Any = None
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
        reason = self._step(metrics["loss"])
        clock.lap("optimizer")
        metrics["grad_norm"] = self._grad_norm()
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
        temperature = self._config.rollout.temperature
        logprobs, entropy, routing = self._engine(*tensors.inputs, temperature, mode)
        tokens = TokenTensors(
            logprobs,
            tensors.old_logprobs,
            tensors.advantages,
            tensors.mask,
            tensors.sequence,
            tensors.n_sequences,
            entropy=entropy,
            ref_logprobs=reference,
        )
        loss, metrics = policy_loss(tokens, self._algorithm.parts)
        metrics["advantage_mean"] = tokens.masked(tokens.advantages).sum()
        totals.add({"loss": loss.detach(), **metrics, **tensors.counts()})
        return loss, routing

    def _step(self, loss: float) -> str:
        """Apply the gradient, or say why not."""
        self._adam.applied, self._adam.veto = False, not math.isfinite(loss)
        self._engine.step()
        if self._adam.applied:
            self._updates += 1
            return ""
        forget_gradient(self._engine)
        if self._adam.veto and not math.isfinite(loss):
            return f"the loss is {loss}"
        return "the gradient's norm is not finite"

    def _grad_norm(self) -> float:
        norm = self._adam.norm if self._adam.clip else self._engine.get_global_grad_norm()
        return math.nan if norm is None else float(norm)

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

    # log-probs and weights

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
                all_N = self._engine(*tensors.inputs, self._config.rollout.temperature)[0]
            else:
                raise ValueError(f"this learner has nothing to say of {what!r}")
            found.append(all_N[: tensors.n_targets].cpu().numpy())
        return found

    @torch.no_grad()
    def _reference_logprobs(self, tensors: RowTensors) -> Tensor:
        """Of the start policy: a model of its own, or this one without its adapter."""
        temperature = self._config.rollout.temperature
        if self._reference is not None:
            return self._reference(*tensors.inputs, temperature)[0]
        with lora.adapter_off(self._policy.model):
            return self._engine(*tensors.inputs, temperature)[0]

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

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Name and full tensor, one at a time, in Hugging Face names; a tied head is not repeated.

        An adapter is merged into them.

        The tensor is whole on every rank until the next one is asked for. The seam for transports:
        the file is one consumer, a collective another.
        """
        scaling = 0.0 if self._lora is None else lora.scaling_of(self._lora)
        for name, parameter, pair in lora.base_weights(self._policy.model):
            with self._gathered([parameter, *pair]):
                yield name, lora.merged(quantised.restored(parameter), pair, scaling)

    def _adapter(self) -> dict[str, Tensor]:
        """The adapter's tensors in PEFT's names; on rank 0, empty elsewhere."""
        found = {}
        for name, parameter in lora.adapter_weights(self._policy.model):
            with self._gathered([parameter]):
                if self.rank == 0:
                    found[name] = parameter.detach().cpu().clone()
        return found

    def publish(self, version: int, folder: Path, perturb: float = 0.0) -> Snapshot:
        """Write the weights, and the probe's log-probs under exactly these. See types.Learner."""
        path: Path | None = None
        with self._moved(perturb):
            if self._lora is not None and self._lora.sync == "adapter":
                path = folder / f"adapter-{version}"
                self._write_adapter(path)
            elif self._sender is None:
                path = folder / f"weights-{version}.safetensors"
                write_weights(path, self._shapes(), self.weights(), write=self.rank == 0)
            else:
                self._sender.send(version)
            (probe,) = self.logprobs([self._probe_ids], 1.0)
        return Snapshot(version, path, self._probe_ids, probe)

    def _write_adapter(self, path: Path) -> None:
        tensors = self._adapter()
        if self.rank == 0:
            lora.write_adapter(path, self._policy.model, tensors)

    def attach(self, urls: Sequence[str]) -> None:
        """From now on publish over NCCL to the servers at ``urls``, not through a file."""
        from posttrain.nccl_transport import NcclSender

        metadata = [(name, dtype, shape) for name, (dtype, shape) in self._shapes().items()]
        timeout_s = self._config.sync.timeout_s
        self._sender = NcclSender(
            metadata, self.weights, rank=self.rank, urls=urls, timeout_s=timeout_s
        )

    def _shapes(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        named = lora.base_weights(self._policy.model)
        return {name: quantised.kind_of(parameter) for name, parameter, _ in named}

    @contextmanager
    def _moved(self, perturb: float) -> Iterator[None]:
        """What is published moved by seeded noise, and bit for bit as before afterwards."""
        if not perturb:
            yield
            return
        kept: dict[str, Tensor] = {}

        def change(rule: Any) -> None:
            for index, (name, parameter) in enumerate(self._published_parameters()):
                # Under ZeRO-3 rank 0 changes the whole tensor and all take their part of it.
                sharded = hasattr(parameter, "ds_id")
                with self._gathered([parameter], modifier_rank=0), torch.no_grad():
                    if not sharded or self.rank == 0:
                        parameter.copy_(rule(index, name, parameter))

        def move(index: int, name: str, parameter: Tensor) -> Tensor:
            kept[name] = parameter.detach().clone()
            # B is zero at the start, and would stay so if it were multiplied.
            return moved(parameter, perturb, seed=index, add=".lora_B." in name)

        change(move)
        try:
            yield
        finally:
            change(lambda index, name, parameter: kept.pop(name))

    def _published_parameters(self) -> list[tuple[str, nn.Parameter]]:
        named = list(self._policy.model.named_parameters())
        if self._lora is not None and self._lora.sync == "adapter":
            return [(name, parameter) for name, parameter in named if lora.is_part(name)]
        # What is quantised moves with its adapter.
        return [(name, p) for name, p in named if not quantised.is_quantised(p)]

    # state

    def save(self, folder: Path) -> None:
        """Copy the state; a thread writes it below ``folder``. See ``learner_state``."""
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
        layout = Layout(self.world_size, self._stage)
        return RankState(parts, self.rank, layout, identity, self._config.seed)

    def export(self, folder: Path) -> None:
        """Write an ordinary Hugging Face checkpoint with its tokenizer; atomic.

        With LoRA the weights are merged, and ``<folder>-adapter`` gets the adapter.
        """
        whole = {
            name: tensor.detach().cpu().clone() for name, tensor in self.weights() if self.rank == 0
        }
        if self.rank == 0:
            model = self._policy.model
            if self._lora is not None and self._lora.bits:
                model = quantised.plain(model)
            write_checkpoint(folder, model, whole, self._config.model)
        if self._lora is not None:
            self._write_adapter(folder.with_name(folder.name + "-adapter"))
        dist.barrier()

    # construction

    def _load_policy(self, bits: int | None = None) -> Policy:
        device = str(self._device)
        return load_policy(self._config.model, self._dtype, device, bits=bits, shard=self._shard)

    def _tensors(self, row: PackedRow, share_prompts: bool | None = None) -> RowTensors:
        share = self._share if share_prompts is None else share_prompts
        return RowTensors(row, self._device, share_prompts=share, multiple=self._policy.copies)

    def _make_critic(self) -> RankCritic:
        arguments = self._algorithm.advantage.arguments
        return RankCritic(
            self._load_policy(),
            self._with_optimizer,
            clip=float(arguments.get("value_clip", 0.0)),
            rate_factor=float(arguments.get("critic_rate", 1.0)),
            device=self._device,
        )

    def _with_optimizer(self, model: nn.Module) -> Part:
        """A DeepSpeed engine around the model, and its optimiser."""
        adam = self._optimizer(model)
        names = names_in_order(model, adam)  # before DeepSpeed puts flat buffers in their place
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        cuda = self._device.type == "cuda"
        config = deepspeed_config(self._settings, cuda=cuda, trained=trained)
        engine, *_ = self._initialize(model=model, optimizer=adam, config=config)
        return Part(engine, adam, names)

    def _optimizer(self, model: nn.Module) -> GuardedAdamW:
        """Weight decay on matrices only, as is usual."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        groups: list[dict[str, Any]] = [
            {"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adam = GuardedAdamW(
            [group for group in groups if group["params"]],
            lr=self._settings.learning_rate,
            weight_decay=self._settings.weight_decay,
            fused=True,
        )
        adam.clip = self._settings.max_grad_norm if self._stage == 0 else 0.0
        return adam


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _import_deepspeed() -> Any:
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise UsageError(INSTALL) from error
    from deepspeed.runtime import bf16_optimizer
    from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
    from deepspeed.utils import logger

    logger.setLevel(logging.WARNING)
    bf16_optimizer.see_memory_usage = lambda *_, **__: None  # it prints whatever the settings say
    if GuardedAdamW not in ZERO_SUPPORTED_OPTIMIZERS:
        ZERO_SUPPORTED_OPTIMIZERS.append(GuardedAdamW)  # it is AdamW
    if not torch.cuda.is_available():
        # DeepSpeed would compile a shared-memory op at its first start on a CPU (25 s, and a C++
        # compiler), which only its inference_all_reduce uses. Training goes through gloo.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def _join_ranks() -> tuple[int, int, torch.device]:
    """Join the process group the launcher's environment describes, or be alone."""
    os.environ.setdefault("LOCAL_RANK", "0")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if {"RANK", "MASTER_ADDR"} <= os.environ.keys():  # a launcher sets both
            dist.init_process_group(backend)
        else:
            dist.init_process_group(
                backend,
                store=dist.HashStore(),  # type: ignore[attr-defined]
                rank=0,
                world_size=1,
            )
    return dist.get_rank(), dist.get_world_size(), device
