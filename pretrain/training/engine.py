"""One rank's model inside a DeepSpeed engine. Only here and in ``pipeline`` is deepspeed imported.

Decides how a step's loss is averaged. DeepSpeed averages gradients over its D data-parallel ranks;
what is wanted is the mean over all N loss tokens of the step, wherever they lie. So each
micro-batch's loss sum is multiplied by D / N, and DeepSpeed's accumulation factor is off. Ranks
that share rows (Ulysses) each have the loss of their own tokens and count as data-parallel; those
that share matrices (AutoTP) compute the same loss, and D is the ranks without them.

A spike is known from the loss of all ranks before the update: one all-reduce of three numbers, the
only time per step that the host waits for the device. A vetoed update passes through DeepSpeed as
always, and the optimiser does nothing.

bfloat16 means weights, activations and gradients of a micro-batch; master weights, accumulated
gradients and Adam's moments are float32. DeepSpeed accumulates in float32 only where ZeRO is on,
and only there it tells a norm over tensor ranks and stages: with them, or in bfloat16, stage 0 runs
as stage 1.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from pretrain.errors import UsageError
from pretrain.models.experts import experts_of
from pretrain.optimizer import GuardedAdamW, parameter_groups
from pretrain.training.checkpoints import ENGINE
from pretrain.training.network import (
    MicroBatch,
    Network,
    compile_layers,
    rows_attention,
    with_weights_in,
)
from pretrain.training.rank_files import held_back
from pretrain.training.settings import ParallelSettings, TrainConfig

INSTALL = "training needs DeepSpeed, which is missing: pip install 'posttrain[deepspeed]'"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step did; the same on every rank."""

    loss: float  # mean nll of the step's tokens, without z-loss
    grad_norm: float  # before clipping
    reason: str  # why the update was not applied, or ""
    stop: bool  # some rank was asked to
    expert_load: list[list[float]] | None = None  # share of the choices, [layers][experts]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank stands. ``copies`` ranks (neighbours) work on the same rows, and so do the
    ``stages`` ranks of a pipeline: the first stages of all pipelines come first."""

    rank: int
    world: int
    copies: int = 1
    stages: int = 1

    @property
    def readers(self) -> int:
        """How many parts a step's rows have."""
        return self.world // (self.copies * self.stages)

    @property
    def reader(self) -> int:
        """Which of them is this rank's."""
        return self.rank % (self.world // self.stages) // self.copies


class Engine:
    """Every method is a collective: all ranks call it, in one order."""

    def __init__(self, model: Any, config: TrainConfig, dtype: torch.dtype) -> None:
        deepspeed = import_deepspeed()
        self.device = join_ranks()
        self.model, self._config, self._dtype = model, config, dtype
        parallel, settings = config.parallel, config.optimizer
        copies = max(parallel.tensor, parallel.sequence)
        self.place = Place(dist.get_rank(), dist.get_world_size(), copies, parallel.pipeline)
        divided = dtype is torch.bfloat16 or parallel.pipeline * parallel.tensor > 1
        self.stage = max(1, parallel.zero_stage) if divided else parallel.zero_stage
        self._tensor = parallel.tensor
        self.data_ranks = self.place.world // (self._tensor * parallel.pipeline)
        if parallel.checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile:
            compile_layers(model)
        module = self._module()
        self._adam = GuardedAdamW(
            parameter_groups(module.parameters(), settings.weight_decay),
            lr=settings.rate,
            betas=settings.betas,
            eps=settings.epsilon,
            fused=True,
        )
        self._adam.clip = settings.max_grad_norm if self.stage == 0 else 0.0
        clip, trained = not self._adam.clip, sum(p.numel() for p in module.parameters())
        settled = deepspeed_config(config, self.stage, dtype, clip=clip, trained=trained)
        self._engine, *_ = deepspeed.initialize(model=module, optimizer=self._adam, config=settled)
        self._gathered = deepspeed.zero.GatheredParameters

    def _module(self) -> nn.Module:
        """What this rank trains, from the whole model."""
        size = self._config.parallel.sequence
        shard = Shard.join(size) if size > 1 else None
        model = with_weights_in(self.model, self._dtype).to(self.device)
        self.network = Network(model, self._config.optimizer.z_loss, shard)
        return self.network

    def train(
        self,
        micro_batches: Sequence[MicroBatch],
        n_tokens: int,
        rate: float,
        judge: Callable[[float], str],
        stop: bool = False,
    ) -> Outcome:
        """One optimiser step; ``judge`` says of the loss why it must not be learnt from, or ""."""
        for group in self._adam.param_groups:
            group["lr"] = rate
        told = torch.zeros(2, device=self.device)  # nll, ranks that want to stop
        told[0] = self._passes(micro_batches, n_tokens)
        told[1] = float(stop)
        dist.all_reduce(told)
        nll_sum, stops = told.tolist()
        mean = nll_sum / self._tensor / n_tokens
        reason = judge(mean)
        self._adam.applied, self._adam.veto = False, bool(reason)
        self._update()
        if not self._adam.applied and not reason:
            reason = "the gradient's norm is not finite"
        norm = self._adam.norm if self._adam.clip else self._engine.get_global_grad_norm()
        norm = math.nan if norm is None else float(norm)
        return Outcome(mean, norm, reason, stops > 0, self._expert_load())

    def _passes(self, micro_batches: Sequence[MicroBatch], n_tokens: int) -> Tensor:
        """Forward and backward, gradients reduced; this rank's sum of nll."""
        self.network.train()
        total = torch.zeros((), device=self.device)
        for i, micro in enumerate(micro_batches):
            self._engine.set_gradient_accumulation_boundary(i == len(micro_batches) - 1)
            loss, nll = self._engine(*micro.inputs)
            self._engine.backward(loss * (self.data_ranks / n_tokens), scale_wrt_gas=False)
            total += nll.sum()
        return total

    def _update(self) -> None:
        self._engine.step()

    def _expert_load(self) -> list[list[float]] | None:
        """Of the step, over all ranks."""
        load = self.network.take_load()
        if load is None:
            return None
        load = load.to(self.device)
        dist.all_reduce(load)
        return (load / self.place.world).tolist()

    @torch.no_grad()
    def nll(self, micro_batches: Sequence[MicroBatch]) -> float:
        """Sum in nats over the tokens of all ranks; each rank gives as many micro-batches."""
        self.network.eval()
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for micro in micro_batches:
            total += self._engine(*micro.inputs)[1].sum()
        dist.all_reduce(total)
        return float(total) / self._tensor

    @torch.no_grad()
    def sample(self, prompt: Sequence[int], n_tokens: int, seed: int) -> list[int]:
        """What the model writes after a prompt, at temperature 1; the same on every rank."""
        self.network.eval()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), self.network.for_generation() as model:
            torch.manual_seed(seed)
            ids = torch.tensor([list(prompt)], device=self.device)
            found = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                max_new_tokens=n_tokens,
                synced_gpus=self.stage == 3 and self.place.world > 1,
            )
        return [int(token) for token in found[0, len(prompt) :]]

    # state

    def state(self, folder: Path) -> dict[Path, Any]:
        """This rank's files below ``folder``, as copies in the host's memory."""
        held: dict[Path, Any] = {}
        with held_back(self._engine, held):
            self._engine.save_checkpoint(str(folder), tag=ENGINE, save_latest=False)
        cuda = torch.cuda.get_rng_state() if self.device.type == "cuda" else None
        random = {"cpu": torch.get_rng_state(), "cuda": cuda}
        return {**held, folder / f"random-{self.place.rank}.pt": random}

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Take over a saved state, bit for bit."""
        self._engine.load_checkpoint(str(folder), tag=ENGINE)
        random = torch.load(folder / f"random-{self.place.rank}.pt")
        torch.set_rng_state(random["cpu"])
        if random["cuda"] is not None:
            torch.cuda.set_rng_state(random["cuda"])

    def weights(self) -> dict[str, Tensor]:
        """Whole tensors by their Hugging Face names, on rank 0; a tied one once."""
        from deepspeed.module_inject.layers import GatherReplacedLayerParams

        whole: dict[str, Tensor] = {}
        seen: set[int] = set()
        for prefix, module in self.model.named_modules():
            own = dict(module.named_parameters(recurse=False))
            shared = GatherReplacedLayerParams(list(own.values()), module, self._tensor > 1)
            with self._gathered(list(own.values())), shared:
                for name, parameter in own.items():
                    if self.place.rank == 0 and id(parameter) not in seen:
                        whole[f"{prefix}.{name}"] = parameter.detach().cpu().clone()
                    seen.add(id(parameter))
        return whole


def deepspeed_config(
    config: TrainConfig, stage: int, dtype: torch.dtype, *, clip: bool, trained: int
) -> Mapping[str, Any]:
    """The dictionary for ``deepspeed.initialize`` of a model with ``trained`` parameters.

    ZeRO-2 and 3 set aside a whole bucket at the start, however small the model: 5e8 elements.
    """
    low = dtype is torch.bfloat16
    told: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimizer.max_grad_norm if clip else 0.0,
        "zero_optimization": {"stage": stage, "reduce_bucket_size": min(500_000_000, trained)},
        "bf16": {"enabled": low, "check_grad_overflow": low},
        "data_types": {"grad_accum_dtype": "fp32"},
    }
    if config.parallel.tensor > 1:
        told["tensor_parallel"] = {
            "autotp_size": config.parallel.tensor,
            "vocab_parallel_lm_head": False,  # the head's loss is ours and wants all of it
        }
    return told


@dataclass(frozen=True, slots=True)
class Shard:
    """This rank's place among the ranks that share rows."""

    rank: int
    size: int
    group: Any

    @classmethod
    def join(cls, size: int) -> Shard:
        """Form groups of ``size`` consecutive ranks."""
        import deepspeed

        deepspeed.init_distributed(dist.get_backend(), dist_init_required=False)
        rank, world = dist.get_rank(), dist.get_world_size()
        groups = [dist.new_group(range(at, at + size)) for at in range(0, world, size)]
        return cls(rank % size, size, groups[rank // size])

    def own(self, tokens: Tensor) -> Tensor:
        """This rank's part of what every token [T] of a micro-batch has."""
        return tokens.chunk(self.size)[self.rank]

    def attention(self, config: Any) -> str:
        """Registers attention that trades tokens for heads within the group; returns its name."""
        from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
        from transformers import AttentionInterface

        heads, key_heads, width = head_sizes(config)
        trade = UlyssesSPAttentionHF(
            attn=rows_attention,
            batch_size=1,
            attn_head_count=heads,
            attn_head_size=width,
            kv_head_count=key_heads,
            num_hidden_layers=config.num_hidden_layers,
            process_group=self.group,
            seq_length_is_variable=True,
        )

        def attention(module: Any, *tensors: Tensor, **keywords: Any) -> tuple[Tensor, None]:
            return trade(module, *tensors, **keywords)[0], None

        AttentionInterface.register("pretrain_ulysses", attention)
        return "pretrain_ulysses"


def head_sizes(config: Any) -> tuple[int, int, int]:
    """Heads, key-value heads, and the width of one."""
    heads = int(config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads, int(getattr(config, "num_key_value_heads", None) or heads), int(width)


def check_ranks(ranks: int, parallel: ParallelSettings, model_config: Any) -> None:
    """Raises UsageError where the model can't be divided over the ranks as it was asked for."""
    if ranks % parallel.together:
        raise UsageError(
            f"{ranks} ranks can't be divided into groups of {parallel.together} "
            "(parallel.tensor, parallel.sequence, parallel.pipeline)"
        )
    heads, key_heads, _ = head_sizes(model_config)
    size, stages = parallel.sequence, parallel.pipeline
    if heads % size or (key_heads % size and size % key_heads):
        raise UsageError(f"parallel.sequence = {size} does not divide {heads}/{key_heads} heads")
    if parallel.tensor > 1 and parallel.zero_stage == 3:
        raise UsageError(
            "parallel.tensor with parallel.zero_stage = 3 is not supported: use 0 to 2"
        )
    layers, kind = model_config.num_hidden_layers, model_config.model_type
    if layers < stages:
        raise UsageError(f"parallel.pipeline = {stages}: the model has {layers} layers")
    if stages > 1 and experts_of(model_config):
        raise UsageError(f"parallel.pipeline: the experts of {kind} are balanced over all layers")


def import_deepspeed() -> Any:
    """DeepSpeed, made to keep quiet, to need no compiler, and to take our optimiser for AdamW."""
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
        ZERO_SUPPORTED_OPTIMIZERS.append(GuardedAdamW)
    if not torch.cuda.is_available():
        # Its shared-memory op, compiled at the first start, is for inference only.
        deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def join_ranks() -> torch.device:
    """Join the process group that a launcher's environment describes, or be alone."""
    os.environ.setdefault("LOCAL_RANK", "0")
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if cuda else "gloo"
        if {"RANK", "MASTER_ADDR"} <= os.environ.keys():
            dist.init_process_group(backend)
        else:
            store = dist.HashStore()  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=0, world_size=1)
    return device
