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

from posttrain import lora
from posttrain.algorithm import Algorithm
from posttrain.config import GrpoConfig
from posttrain.critic import RankCritic
from posttrain.errors import UsageError
from posttrain.learner_state import Layout, Part, RankState, names_in_order
from posttrain.losses import TokenTensors, policy_loss
from posttrain.policy import Policy, load_policy
from posttrain.row_tensors import RowTensors, everything_row, rows_of
from posttrain.snapshot_file import moved, write_checkpoint, write_weights
from posttrain.step_metrics import Clock, Totals
from posttrain.token_logprobs import EntropyMode
from posttrain.types import Batch, Floats, Ints, PackedRow, Snapshot, StepResult

INSTALL = "the learner needs DeepSpeed, which is missing: pip install 'posttrain[deepspeed]'"


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that can be told to let a step pass without doing anything.

    With ``clip`` it clips the gradient itself: DeepSpeed's stage 0 in float32 clips too, but tells
    nobody the norm, and does not look whether it is finite.
    """

    clip: float = 0.0
    veto: bool = False
    applied: bool = False
    norm: float = math.nan  # of the gradient before clipping; only with ``clip``

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights unless vetoed, or unless the norm is not finite."""
        if self.clip:
            owned = [p for group in self.param_groups for p in group["params"]]
            self.norm = float(nn.utils.clip_grad_norm_(owned, self.clip))
            self.veto = self.veto or not math.isfinite(self.norm)
        if not self.veto:
            super().step(closure)
            self.applied = True


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
        self._policy = self._load_policy()
        self._lora = self._settings.lora
        if self._lora is not None:
            lora.attach(self._policy.model, self._lora, config.model)
            self._policy.register_state_dict_post_hook(lora.keep_adapter)
        apart = self._algorithm.reference and self._lora is None  # a model of its own
        self._reference = self._load_policy().eval() if apart else None
        # flash-attn's varlen kernel wants every sequence whole; our own attention does not.
        self._share = self._policy.packed
        if self._settings.gradient_checkpointing:
            self._policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        self._stage = _stage(self._settings.zero_stage, self._dtype)
        self._initialize = deepspeed.initialize
        self._part = self._with_optimizer(self._policy)
        self._engine, self._adam = self._part.engine, self._part.adam
        self._critic = self._make_critic() if self._algorithm.critic else None
        self._gathered = deepspeed.zero.GatheredParameters
        self._sender: Any = None
        self._updates = 0  # applied ones: where the warm-up stands
        self._state = self._rank_state()

    # training

    def train(self, batch: Batch) -> StepResult:
        """One optimiser step over this rank's rows of the batch."""
        rows = batch.rows[self.rank]
        if not rows:
            raise ValueError("every rank needs at least one row, if only an empty one")
        clock = Clock(self._device)
        rate = self._set_rate()
        metrics: dict[str, float] = {}
        if self._critic is not None:
            metrics |= self._critic.train(rows, batch.n_tokens, self.world_size, rate)
            clock.lap("critic")
        reason = ""
        if batch.train_policy:
            reason = self._train_policy(rows, batch.denominator, metrics, clock)
        metrics["learning_rate"] = rate
        metrics |= clock.metrics(metrics.get("learner_tokens", 0.0))
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        return StepResult(finite, skipped=bool(reason), reason=reason)

    def _train_policy(
        self,
        rows: Sequence[PackedRow],
        denominator: float,
        metrics: dict[str, float],
        clock: Clock,
    ) -> str:
        """Forward, backward and update; returns why nothing was changed, if so."""
        self._policy.train()
        totals = Totals(self._device)
        for i, row in enumerate(rows):
            self._engine.set_gradient_accumulation_boundary(i == len(rows) - 1)
            loss = self._forward_loss(row, totals)
            clock.lap("forward")
            self._engine.backward(loss * (self.world_size / denominator), scale_wrt_gas=False)
            clock.lap("backward")
        metrics |= totals.reduce(denominator)
        reason = self._step(metrics["loss"])
        clock.lap("optimizer")
        metrics["grad_norm"] = self._grad_norm()
        return reason

    def _forward_loss(self, row: PackedRow, totals: Totals) -> Tensor:
        """The row's loss sum; its metrics go to ``totals``."""
        tensors = RowTensors(row, self._device, share_prompts=self._share)
        mode: EntropyMode = "loss" if self._algorithm.parts.entropy_coef > 0 else "metric"
        reference = tensors.reference  # from a server
        if self._algorithm.reference:
            reference = self._reference_logprobs(tensors)
        temperature = self._config.rollout.temperature
        logprobs, entropy = self._engine(*tensors.inputs, temperature, mode)
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
        return loss

    def _step(self, loss: float) -> str:
        """Apply the gradient, or say why not."""
        self._adam.applied, self._adam.veto = False, not math.isfinite(loss)
        self._engine.step()
        if self._adam.applied:
            self._updates += 1
            return ""
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

    # log-probs and weights

    @torch.no_grad()
    def examine(self, batch: Batch, what: str) -> list[Floats]:
        """Of the targets of each of this rank's rows [N]: see ``types.Learner.examine``."""
        found: list[Floats] = []
        self._policy.eval()
        for row in batch.rows[self.rank]:
            tensors = RowTensors(row, self._device, share_prompts=self._share)
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
            tensors = RowTensors(everything_row(members), self._device, share_prompts=False)
            with torch.no_grad():
                row, _ = self._engine(*tensors.inputs, temperature)
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
                yield name, lora.merged(parameter.data, pair, scaling)

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
        return {name: (p.dtype, tuple(getattr(p, "ds_shape", p.shape))) for name, p, _ in named}

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
        return named

    # state

    def save(self, folder: Path) -> None:
        """Copy the state; a thread writes it below ``folder``. See ``learner_state``."""
        self._state.save(folder, {"updates": self._updates})

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
            write_checkpoint(folder, self._policy.model, whole, self._config.model)
        if self._lora is not None:
            self._write_adapter(folder.with_name(folder.name + "-adapter"))
        dist.barrier()

    # construction

    def _load_policy(self) -> Policy:
        return load_policy(self._config.model, self._dtype, str(self._device))

    def _make_critic(self) -> RankCritic:
        arguments = self._algorithm.advantage.arguments
        return RankCritic(
            self._load_policy().model,
            self._with_optimizer,
            clip=float(arguments.get("value_clip", 0.0)),
            rate_factor=float(arguments.get("critic_rate", 1.0)),
            device=self._device,
        )

    def _with_optimizer(self, model: nn.Module) -> Part:
        """A DeepSpeed engine around the model, and its optimiser."""
        adam = self._optimizer(model)
        names = names_in_order(model, adam)  # before DeepSpeed puts flat buffers in their place
        engine, *_ = self._initialize(model=model, optimizer=adam, config=self._deepspeed_config())
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

    def _deepspeed_config(self) -> dict[str, Any]:
        low = self._dtype == torch.bfloat16
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": self._settings.max_grad_norm if self._stage else 0.0,
            "zero_optimization": {"stage": self._stage},
            "bf16": {"enabled": low, "check_grad_overflow": low},
            "data_types": {"grad_accum_dtype": "fp32"},
            "steps_per_print": 10**9,
        }


def _stage(asked: int, dtype: torch.dtype) -> int:
    return max(asked, 1) if dtype == torch.bfloat16 else asked


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
