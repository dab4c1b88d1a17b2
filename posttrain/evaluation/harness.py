"""Benchmarks of lm-evaluation-harness, on this toolkit's engine: ``posttrain eval --harness mmlu``.

lm-eval decides what is asked and how it is scored; the engine of RL (vLLM, or the embedded one)
gives the log-probs. A task's likelihoods are sums over the tokens of each choice, at temperature 1.
Where a task wants to know if a continuation is the greedy one (lambada), or a text (bbh), the
engine writes it greedily. A prompt longer than the window loses its beginning, as in lm-eval.

The result has the form of every other benchmark (``results``): one entry for each task, its scores
by document, so that two models are compared in pairs. The headline is ``acc``, else
``exact_match``, ``acc_norm`` or the first there is; all of lm-eval's numbers stand under
``metrics``. Its own tasks read their data sets from a hub; a folder of task files (``--data``) may
name local ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager

from posttrain import preflight
from posttrain.config import make_config
from posttrain.engines.choice import make_engine
from posttrain.errors import UsageError
from posttrain.evaluation.results import RESULT, summarise_benchmark
from posttrain.evaluation.statistics import bootstrap_interval
from posttrain.event_loop import run_async
from posttrain.storage.provenance import provenance
from posttrain.types import Engine, Ints, Request, Sampling

HEADLINES = ("acc", "exact_match", "acc_norm")
CONCURRENT = 64
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HarnessJob:
    """One model on tasks of lm-eval."""

    model: str
    tasks: str  # by comma; a group stands for its members
    out: Path
    data: str | None = None  # a folder of task files
    limit: int = 0  # documents of each task; 0: all
    engine: str = "auto"
    max_tokens: int = 1024  # of a text, where the task does not say

    @property
    def settings(self) -> dict[str, Any]:
        """What a result depends on."""
        named = ("model", "tasks", "data", "limit", "engine", "max_tokens")
        return {name: getattr(self, name) for name in named}


class EngineLM(TemplateLM):
    """A model of lm-eval's, asked in a thread beside the event loop that the engine lives in."""

    def __init__(self, engine: Engine, tokenizer: Any, window: int, most: int) -> None:
        super().__init__()
        self.tokenizer, self._engine = tokenizer, engine
        self._window, self._most = window, most
        self._loop = asyncio.get_running_loop()
        self._slots = asyncio.Semaphore(CONCURRENT)
        self._asked = 0
        self.greedy_tasks: set[str] = set()  # that ask whether a continuation is the greedy one

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **given))

    def loglikelihood(
        self, requests: list[Any], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        found = super().loglikelihood(requests, disable_tqdm=True)
        asking = [i for i, request in enumerate(requests) if request.task_name in self.greedy_tasks]
        pairs = [self._encode_pair(*requests[i].args) for i in asking if requests[i].args[0]]
        greedy = self._wait([self._is_greedy(before, after) for before, after in pairs])
        for i, yes in zip((i for i in asking if requests[i].args[0]), greedy, strict=True):
            found[i] = (found[i][0], yes)
        return found

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        scores = self._wait([self._score(before, after) for _, before, after in requests])
        return [(score, False) for score in scores]

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        found = []
        for request in requests:
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._window - 1,
                context_len=1,
            )
            pairs = map(make_disjoint_window, windows)
            found.append(sum(self._wait([self._score(before, after) for before, after in pairs])))
        return found

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        return self._wait([self._text(*request.args) for request in requests])

    def _wait(self, work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
        async def slotted(one: Coroutine[Any, Any, T]) -> T:
            async with self._slots:
                return await one

        async def everything() -> list[T]:
            return list(await asyncio.gather(*map(slotted, work)))

        return asyncio.run_coroutine_threadsafe(everything(), self._loop).result()

    async def _score(self, before: list[int], after: list[int]) -> float:
        """Log-prob of ``after`` behind ``before``, both token ids."""
        ids = np.array([*before, *after][-(self._window - 1) :], np.int64)
        logprobs = await self._engine.logprobs(ids, 1.0)
        return float(logprobs[len(ids) - 1 - len(after) :].sum())

    async def _is_greedy(self, before: list[int], after: list[int]) -> bool:
        return not after or await self._greedy(before, len(after)) == after

    async def _greedy(self, before: list[int], most: int, stop: tuple[int, ...] = ()) -> list[int]:
        self._asked += 1
        prompt: Ints = np.array(before[-(self._window - most) :], np.int64)
        sampling = Sampling(max_tokens=most, temperature=0.0, stop_token_ids=stop)
        self._engine.admit(1)
        try:
            request = Request(f"0-{self._asked}", prompt, sampling, seed=0)
            return (await self._engine.generate(request)).token_ids.tolist()
        finally:
            self._engine.leave()

    async def _text(self, context: str, settings: Mapping[str, Any]) -> str:
        until = settings.get("until") or []
        until = [until] if isinstance(until, str) else list(until)
        most = min(int(settings.get("max_gen_toks", self._most)), self._window // 2)
        ids = await self._greedy(self.tok_encode(context), most, (self.eot_token_id,))
        text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
        for end in filter(None, until):
            text = text.partition(end)[0]
        return text


def evaluate_harness(job: HarnessJob, *, report: Callable[[str], None] = print) -> dict[str, Any]:
    """Evaluate and return what eval.json holds. Raises UsageError before a model is loaded."""
    if job.out.exists() and any(job.out.iterdir()):
        raise UsageError(f"{job.out} exists and is not empty: choose another folder with --out")
    names = [name.strip() for name in job.tasks.split(",") if name.strip()]
    manager = _manager(names, job.data)
    kinds = _checked(manager, names)
    rollout = {"engine": job.engine, "max_tokens": job.max_tokens}
    config = preflight.check_settings(
        make_config({"model": job.model, "env": "evaluation", "rollout": rollout})
    )
    window = preflight.model_window(job.model, config)
    job.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    async def evaluated() -> dict[str, Any]:
        from transformers import AutoTokenizer

        engine = make_engine(config, job.out / "logs")
        try:
            await engine.start()
            tokenizer = AutoTokenizer.from_pretrained(job.model)
            model = EngineLM(engine, tokenizer, window, job.max_tokens)
            model.greedy_tasks = {name for name, kind in kinds.items() if kind == "loglikelihood"}
            return await asyncio.to_thread(_simple, model, names, manager, job.limit)
        finally:
            await engine.close()

    found = run_async(evaluated())
    benchmarks = {name: _benchmark(name, found) for name in sorted(found["samples"])}
    for name, one in benchmarks.items():
        report(f"{name}: {one['n_tasks']} documents done")
    result = {
        "settings": job.settings,
        "provenance": provenance(),
        "seconds": time.perf_counter() - started,
        "benchmarks": benchmarks,
        "groups": {name: _numbers(one) for name, one in (found.get("groups") or {}).items()},
    }
    beside = job.out / f"{RESULT}.new"
    beside.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(beside, job.out / RESULT)
    return result


def _manager(names: Sequence[str], data: str | None) -> Any:
    """What finds the tasks; lm-eval's own, ten thousand files, are read only where one is named."""
    if data is not None:
        own = TaskManager(include_path=data, include_defaults=False)
        if all(own.match_tasks([name]) for name in names):
            return own
    return TaskManager(include_path=data)


def _checked(manager: Any, names: Sequence[str]) -> dict[str, str]:
    """Leaf task -> what it asks of a model. Raises UsageError for what can't be had."""
    if not names:
        raise UsageError("no task is named: --harness mmlu,hellaswag")
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown:
        raise UsageError(f"lm-eval has no task {unknown[0]!r}; `lm-eval ls tasks` lists them")
    try:
        tasks = manager.load(list(names))["tasks"]
    except Exception as error:  # boundary: the loader of each data set
        raise UsageError(
            f"the data sets of {', '.join(names)} can't be had: {type(error).__name__}: {error}. "
            "lm-eval reads them from a hub; offline, write task files over local ones and give "
            "their folder with --data (docs/evaluation.md)"
        ) from error
    return {name: str(task.OUTPUT_TYPE) for name, task in tasks.items()}


def _simple(model: Any, names: Sequence[str], manager: Any, limit: int) -> dict[str, Any]:
    found = simple_evaluate(
        model, tasks=list(names), task_manager=manager, limit=limit or None, bootstrap_iters=0
    )
    return dict(found or {})


def _benchmark(name: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """One task in the form of ``results.summarise_benchmark``."""
    samples = sorted(found["samples"][name], key=lambda one: one["doc_id"])
    metric = _headline(samples[0])
    per_task = [float(one[metric]) for one in samples]
    numbers = {
        "accuracy": sum(per_task) / len(per_task),
        "interval": bootstrap_interval(per_task),
        "format_failures": 0.0,
        "per_task": per_task,
    }
    return summarise_benchmark({"lm-eval": numbers}) | {
        "metric": metric,
        "metrics": _numbers(found["results"][name]),
    }


def _headline(sample: Mapping[str, Any]) -> str:
    measured = [
        name for name in sample.get("metrics", ()) if isinstance(sample.get(name), int | float)
    ]
    if not measured:
        raise UsageError(f"lm-eval gives no number for each document: {sample.get('metrics')}")
    return next((name for name in HEADLINES if name in measured), measured[0])


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(value) for name, value in row.items() if isinstance(value, int | float)}
