"""The state of one rank: held in memory, written beside training, read back under any layout.

Decides three things.

How a save overlaps training. DeepSpeed assembles its checkpoint as always, but where it would write
a file, the tensors are copied into the memory of the host instead. That is all ``save`` waits for;
one thread writes, hashes and fsyncs the copy (``checked_files``). One copy at a time.

What a checkpoint may be read by. The same precision, critic and adapter; any number of ranks and
any ZeRO stage. With the saved ranks and stage every bit is taken back, random state included. With
others the files first become DeepSpeed's universal checkpoint (arXiv:2406.18820), one folder for
each parameter with its float32 value and Adam's moments, which a rank of any layout takes its part
of. Sums are then made in another order, so training goes on equal within rounding.

How the gaps of DeepSpeed 0.19 are filled. Its converter leaves stage 0 out; from stage 3 it writes
bare tensors, which the readers of other stages don't take, and no step count of Adam's. Its stage-3
reader gives all groups the settings of the first, and one tensor as step count, which then counts
once for each group. So stage 0 is read and written here, what is lacking is added, each group gets
a count of its own, and settings stay the run's.
"""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from posttrain.errors import RunError
from posttrain.seeds import derive_seed
from posttrain.storage.checked_files import CheckedFile, begin, write_all

_STATE = "learner.json"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Layout:
    """How the state is cut into the files of the ranks."""

    world_size: int
    zero_stage: int


@dataclass(frozen=True, slots=True)
class Part:
    """A model with its optimiser in a DeepSpeed engine: the policy, or the critic."""

    engine: Any
    adam: Any  # the optimiser that DeepSpeed was given
    names: tuple[str, ...]  # of the trained parameters, in the optimiser's order

    @property
    def all_trained(self) -> bool:
        """Frozen weights are in the model's own folder, and not in a checkpoint."""
        return all(parameter.requires_grad for parameter in self.engine.module.parameters())


@dataclass(slots=True)
class RankState:
    """Saves and loads the parts of one rank. ``save`` and ``load`` are collectives.

    ``identity`` is what a checkpoint must have in common with the run that reads it.
    """

    parts: Mapping[str, Part]  # by the name of its folder
    rank: int
    layout: Layout
    identity: Mapping[str, Any]
    seed: int
    _writer: threading.Thread | None = field(default=None, init=False)

    def save(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """Copy the state; its files appear below ``folder`` after this has returned."""
        self.written()
        begin(folder, self.rank)
        held: dict[Path, Any] = {}
        for name, part in self.parts.items():
            with _held_back(part.engine, held):
                part.engine.save_checkpoint(
                    str(folder),
                    tag=name,
                    save_latest=False,
                    exclude_frozen_parameters=not part.all_trained,
                )
        held[folder / f"random-{self.rank}.pt"] = _random_state()
        files: dict[Path, Callable[[CheckedFile], object]] = {
            path: partial(torch.save, state) for path, state in held.items()
        }
        if self.rank == 0:
            names = {name: part.names for name, part in self.parts.items()}
            about = {**asdict(self.layout), **self.identity, "names": names, "progress": progress}
            text = json.dumps(about).encode()
            files[folder / _STATE] = lambda file: file.write(text)
        self._writer = threading.Thread(
            target=write_all, args=(folder, self.rank, files), name="checkpoint", daemon=True
        )
        self._writer.start()

    def written(self) -> None:
        """Return when the last save has ended, however it did: its marks say that."""
        if self._writer is not None:
            self._writer.join()

    def load(self, folder: Path) -> dict[str, Any]:
        """Take a saved state over; returns its ``progress``.

        Raises RunError when it is of another precision, critic or adapter.
        """
        about = json.loads((folder / _STATE).read_text())
        found = {name: about.get(name) for name in self.identity}
        if found != self.identity:
            raise RunError(
                f"checkpoint {folder} was written with {found}, this run has "
                f"{dict(self.identity)}. Only learner.ranks and learner.zero_stage may differ"
            )
        saved = Layout(about["world_size"], about["zero_stage"])
        for name, part in self.parts.items():
            if saved == self.layout or saved.zero_stage == self.layout.zero_stage == 0:
                part.engine.load_checkpoint(
                    str(folder), tag=name, load_module_strict=part.all_trained
                )
            else:
                self._load_universal(folder, name, saved.zero_stage, about["names"][name])
        self._restore_random(folder, about["progress"])
        return dict(about["progress"])

    def _load_universal(self, folder: Path, name: str, stage: int, names: Sequence[str]) -> None:
        part, aside = self.parts[name], folder.with_name(f"{folder.name}.universal.tmp")
        if self.rank == 0:
            shutil.rmtree(aside, ignore_errors=True)
            _convert(folder / name, aside / name, stage, names)
        dist.barrier()
        if not aside.exists():
            raise RunError(
                f"checkpoint {folder} was written by another layout, which rank 0 converts in a "
                "folder that this rank does not see: share the run directory, or resume with the "
                "learner.ranks and learner.zero_stage it was written with"
            )
        _load_parts(part, aside, name, self.layout.zero_stage)
        dist.barrier()
        if self.rank == 0:
            shutil.rmtree(aside)

    def _restore_random(self, folder: Path, progress: Mapping[str, Any]) -> None:
        """A rank that the saved run did not have starts a stream of its own."""
        path = folder / f"random-{self.rank}.pt"
        if not path.exists():
            torch.manual_seed(derive_seed(self.seed, "rank", self.rank, *progress.values()))
            return
        state = torch.load(path)
        torch.set_rng_state(state["cpu"])
        if torch.cuda.is_available() and state["cuda"] is not None:
            torch.cuda.set_rng_state(state["cuda"])


def names_in_order(model: nn.Module, adam: torch.optim.Optimizer) -> tuple[str, ...]:
    """Of the optimiser's parameters, as DeepSpeed's files call them."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return tuple(names[p] for group in adam.param_groups for p in group["params"])


def _random_state() -> dict[str, Tensor | None]:
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else None
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


@contextlib.contextmanager
def _held_back(engine: Any, held: dict[Path, Any]) -> Iterator[None]:
    """Inside, what DeepSpeed saves goes to ``held`` by its path, as a copy."""
    writer = engine.checkpoint_engine

    def hold(state_dict: Any, path: str) -> None:
        held[Path(path)] = _copy(state_dict)

    writer.save = hold  # hides the method of its class
    try:
        yield
    finally:
        del writer.save


def _copy(tree: Any) -> Any:
    """The same tree with its tensors copied to the host; what is one tensor stays one (a tie)."""
    copies: dict[tuple[Any, ...], Tensor] = {}

    def copy(tensor: Tensor) -> Tensor:
        key = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if not tensor.numel() or key not in copies:
            copies[key] = tensor.detach().to("cpu", copy=True)
        return copies[key]

    return tree_map_only(Tensor, copy, tree)


# another layout


def _convert(saved: Path, target: Path, stage: int, names: Sequence[str]) -> None:
    """DeepSpeed's files of a part -> its universal checkpoint, complete for every stage."""
    target.mkdir(parents=True)
    if stage == 0:
        step = _convert_plain(saved, target, names)
    else:
        _convert_zero(saved, target)
        step = _step_of(target)
    for file in (target / "zero").rglob("fp32.pt"):
        torch.save(step, file.with_name("step.pt"))
    if stage == 3:
        for key in ("fp32", *_MOMENTS):
            for file in (target / "zero").rglob(f"{key}.pt"):
                torch.save({"param": torch.load(file)}, file)
    _write_common(saved, target, step)


def _convert_zero(saved: Path, target: Path) -> None:
    from deepspeed.checkpoint import ds_to_universal

    arguments = ds_to_universal.argparse.Namespace(
        input_folder=str(saved),
        output_folder=str(target),
        num_extract_workers=1,  # in this process: it has threads, and must not be forked
        num_merge_workers=1,
        keep_temp_folder=False,
        strict=True,
        inject_missing_state=True,
    )
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ds_to_universal.main(arguments)


def _convert_plain(saved: Path, target: Path, names: Sequence[str]) -> Tensor:
    """Stage 0: every rank has everything. Returns Adam's step count."""
    state = torch.load(_model_file(saved), weights_only=False)
    moments = state["optimizer"]["state"]
    step = torch.zeros(())
    for index, name in enumerate(names):
        weight = state["module"][name]
        found = moments.get(index, {})  # empty before the first step
        step = found.get("step", step)
        tensors = {key: found.get(key, torch.zeros_like(weight)) for key in _MOMENTS}
        folder = target / "zero" / name
        folder.mkdir(parents=True)
        for key, tensor in {"fp32": weight, **tensors}.items():
            torch.save({"param": tensor.float()}, folder / f"{key}.pt")
    torch.save({"param_groups": state["optimizer"]["param_groups"]}, _common(target))
    return step


def _load_parts(part: Part, folder: Path, name: str, stage: int) -> None:
    """Each rank takes its part of the universal checkpoint."""
    groups = part.adam.param_groups
    own = [{key: value for key, value in group.items() if key != "params"} for group in groups]
    if stage == 0:
        _load_plain(part, folder / name)
    else:
        settings = part.engine._config
        settings.load_universal_checkpoint = True  # read when it loads; not known at its start
        try:
            part.engine.load_checkpoint(str(folder), tag=name)
        finally:
            settings.load_universal_checkpoint = False
    for group, values in zip(groups, own, strict=True):
        group |= values
    for parameter, state in part.adam.state.items():
        if "step" in state:
            state["step"] = state["step"].to(parameter.device, copy=True)


def _load_plain(part: Part, folder: Path) -> None:
    parameters = [p for group in part.adam.param_groups for p in group["params"]]
    with torch.no_grad():
        for name, parameter in zip(part.names, parameters, strict=True):
            where = folder / "zero" / name
            parameter.copy_(torch.load(where / "fp32.pt")["param"].view_as(parameter))
            state = {key: torch.load(where / f"{key}.pt")["param"] for key in _MOMENTS}
            state = {k: v.view_as(parameter).to(parameter.device) for k, v in state.items()}
            part.adam.state[parameter] = state | {"step": torch.load(where / "step.pt")}


def _step_of(target: Path) -> Tensor:
    found = torch.load(_common(target), weights_only=False).get("optimizer_state_dict")
    if found is not None:  # stage 3
        return found["state"][0]["step"]
    return torch.load(next((target / "zero").rglob("step.pt")), weights_only=False)


def _write_common(saved: Path, target: Path, step: Tensor) -> None:
    """What the readers of all stages ask for beside the parameters, under all names they use."""
    found = torch.load(_common(target), weights_only=False)
    groups = found["param_groups"]
    state = {"state": {0: {"step": step}}, "param_groups": groups}
    common = {"param_groups": groups, "optimizer_state_dict": state}
    model = torch.load(_model_file(saved), weights_only=False)
    common["ds_version"] = model["ds_version"]
    torch.save(common, _common(target))
    counters = {**model, "module": {}, "optimizer": None}
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        torch.save(counters, target / name)


def _model_file(folder: Path) -> Path:
    return sorted(folder.glob("*model_states.pt"))[0]


def _common(target: Path) -> Path:
    return target / "zero" / "optimizer_state.pt"
