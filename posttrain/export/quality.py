"""What an export cost in quality: perplexity and a task score, before and after, in the same way.

    perplexity = exp( - mean over scored tokens of log p(token | what comes before) )

Scored are the tokens of a text, in windows that do not overlap; of conversations, the last answer;
of a run's held-out tasks, the gold answer behind the prompt, and the original's own answer to it. A
model that learned to think first does not write the gold answer, so its perplexity there says
little; on its own answers it grows by exp(KL(original, export)), for each token.

The task score is the run's own evaluation on its held-out tasks, with the same tasks and seeds for
both models, so that the difference is not one of luck in the tasks.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from envs import Environment
from posttrain.chat import Chat
from posttrain.config import CheckpointSettings
from posttrain.engines.embedded import EmbeddedEngine
from posttrain.errors import RunError, UsageError
from posttrain.event_loop import run_async
from posttrain.export.checkpoint import dtype_of, load_model
from posttrain.held_out import summarise
from posttrain.preparation import Prepared, prepare
from posttrain.seeds import derive_seed
from posttrain.storage.jsonl import read_lines
from posttrain.storage.run_dir import RunDir
from posttrain.types import EvalResult, Group

_MOST_TOKENS = 200_000  # of a text that are scored
_MOST_ROWS = 64  # computed at once
_MOST_GOLD = 500  # held-out tasks whose gold answers are scored


@dataclass(frozen=True, slots=True)
class Scored:
    """Tokens of one text, of which those from ``start`` on are scored."""

    token_ids: list[int]
    start: int


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a model is."""

    perplexity: Mapping[str, float]  # by the name of the text
    tokens: Mapping[str, int]  # that were scored, of each text
    tasks: EvalResult | None  # None: not measured


@dataclass(slots=True)
class Measure:
    """What is measured, the same for the original and for what is made of it."""

    job: Prepared | None  # whose held-out tasks are played
    logs: Path
    texts: dict[str, Sequence[Scored]] = field(default_factory=dict)

    @property
    def tasks_name(self) -> str:
        return self.job.environment.name if self.job is not None else ""

    def original(self, checkpoint: str | Path) -> Quality:
        """Measure the original. Its own answers are a text from then on."""
        result = None
        if self.job is not None:
            if gold := gold_texts(self.job):
                self.texts["gold answers"] = gold
            result, groups = self._play(str(checkpoint))
            self.texts["the original's own answers"] = [
                Scored([*turn.prompt_ids, *turn.completion.token_ids], len(turn.prompt_ids))
                for group in groups
                for rollout in group.rollouts
                for turn in rollout.turns
            ]
        return self._quality(checkpoint, result)

    def of(self, checkpoint: str | Path) -> Quality:
        """Measure what was made of it."""
        return self._quality(checkpoint, self._play(str(checkpoint))[0] if self.job else None)

    def _quality(self, checkpoint: str | Path, result: EvalResult | None) -> Quality:
        if not self.texts:
            return Quality({}, {}, result)
        model = load_model(checkpoint)
        scored = {name: perplexity(model, texts) for name, texts in self.texts.items()}
        found = {name: value for name, (value, _) in scored.items()}
        return Quality(found, {name: count for name, (_, count) in scored.items()}, result)

    def _play(self, checkpoint: str) -> tuple[EvalResult, list[Group]]:
        """The run's evaluation of this checkpoint, in its precision."""
        assert self.job is not None
        settings, tasks = self.job.config.evaluation, self.job.held_out
        played = dtype_of(checkpoint)
        engine = EmbeddedEngine(
            checkpoint,
            dtype=played if played == "bfloat16" else "float32",  # what the engine knows
            max_probe_gap=0.0,
            max_batch=_MOST_ROWS,
        )
        player = self.job.player(engine, settings.temperature)
        seed = derive_seed(self.job.config.seed, "evaluation")

        async def play() -> list[Group]:
            await engine.start()
            engine.admit(len(tasks) * settings.samples)
            rounds = (
                player.group(task, seed=seed, where=(0, index), size=settings.samples)
                for index, task in enumerate(tasks)
            )
            try:
                return await asyncio.gather(*rounds)
            finally:
                await engine.close()

        groups = run_async(play())
        try:
            return summarise(groups, settings.samples), groups
        except ValueError as error:
            raise RunError(f"{error}. Without a task score: --tasks 0") from error


@torch.inference_mode()
def perplexity(model: Any, texts: Sequence[Scored]) -> tuple[float, int]:
    """Perplexity over all scored tokens, and how many they are."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([text.token_ids], device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits[0, text.start - 1 : -1].float()
        chosen = torch.log_softmax(logits, -1).gather(-1, ids[0, text.start :, None])
        total -= float(chosen.double().sum())
        count += len(text.token_ids) - text.start
    return math.exp(total / count), count


def texts_of_file(path: Path, tokenizer: Any, window: int) -> tuple[Scored, ...]:
    """Conversations of a .jsonl file, or any other file as one text. Raises UsageError."""
    if not path.is_file():
        raise UsageError(f"there is no text file {path}")
    if path.suffix == ".jsonl":
        return _conversations(path, Chat(tokenizer, "the tokenizer"), window)
    ids = tokenizer.encode(path.read_text(encoding="utf-8"), add_special_tokens=False)
    parts = [ids[i : i + window] for i in range(0, min(len(ids), _MOST_TOKENS), window)]
    texts = tuple(Scored(part, 1) for part in parts if len(part) > 1)
    if not texts:
        raise UsageError(f"{path} has no two tokens: there is nothing to score")
    return texts


def _conversations(path: Path, chat: Chat, window: int) -> tuple[Scored, ...]:
    rows, bad = read_lines(path)
    texts = []
    for row in rows:
        messages = row.get("messages") if isinstance(row, dict) else None
        if not messages or messages[-1].get("role") != "assistant":
            raise UsageError(f"{path}: every row needs 'messages' that end with an assistant's")
        scored = _answered(chat, messages[:-1], str(messages[-1]["content"]))
        if len(scored.token_ids) <= window:
            texts.append(scored)
    if bad or not texts:
        raise UsageError(f"{path}: {bad} lines are not JSON, {len(texts)} fit the model's window")
    return tuple(texts)


def _answered(chat: Chat, messages: Sequence[Any], answer: str) -> Scored:
    prompt = chat.prompt_ids(messages).tolist()
    return Scored([*prompt, *chat.encode(answer), chat.stop_token_ids[0]], len(prompt))


def job_of_run(
    run: Path,
    checkpoint: Path,
    *,
    tasks: int,
    env: Environment | None = None,
    env_args: dict[str, Any] | None = None,
) -> Prepared:
    """The run's job, to be evaluated by the embedded engine. Raises UsageError."""
    config = RunDir.open(run).load_config()
    rollout = config.rollout.model_copy(update={"engine": "embedded", "urls": []})
    learner = config.learner.model_copy(update={"lora": None})
    wanted = {
        "model": str(checkpoint),
        "rollout": rollout,
        "learner": learner,
        "evaluation": config.evaluation.model_copy(update={"tasks": tasks}),
        "checkpoint": CheckpointSettings(),  # whose best may be by a benchmark: not of interest
    }
    if env_args:
        wanted["env_args"] = env_args
    return prepare(config.model_copy(update=wanted), env, None)


def gold_texts(job: Prepared) -> tuple[Scored, ...]:
    """Prompt and gold answer of the held-out tasks that have one as a text."""
    texts = [
        _answered(job.chat, task.messages, task.answer)
        for task in job.held_out[:_MOST_GOLD]
        if isinstance(task.answer, str) and task.answer
    ]
    return tuple(text for text in texts if len(text.token_ids) <= job.window)
