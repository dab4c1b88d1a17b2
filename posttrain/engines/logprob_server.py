"""Another model's log-probs of what the policy wrote, from a vLLM server of the user's own.

The teacher of on-policy distillation is asked so, and the reference of a KL where it does not fit
beside the learner, or is not the start policy. Both models must have the same tokenizer, which is
checked on a sentence before anything is trained; the ids go as they are. vLLM gives prompt
log-probs at temperature 1 only, so the policy must be sampled at 1.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from posttrain.engines.client import ModelLimits, ServerFailed, VllmClient
from posttrain.errors import RunError, UsageError
from posttrain.types import Floats, Ints
from posttrain.waits import waiting

_CONCURRENCY = 16
SENTENCE = "What is 12 + 34 * 5? Think first: \\frac{1}{2} é 漢 <think>\n"


class LogprobServer:
    """The server at ``url``; ``role`` names its model in messages: the teacher, the reference."""

    def __init__(self, url: str, role: str, timeout_s: float) -> None:
        self._url, self._role = url, f"the {role}"
        self._client = VllmClient(url, ModelLimits(window=0, vocab_size=0))  # for its connections
        self._timeout_s = timeout_s
        self._slots = asyncio.Semaphore(_CONCURRENCY)

    async def check(self, own_ids: Sequence[int]) -> None:
        """Raises UsageError when the server does not answer, or tokenizes otherwise.

        ``own_ids`` are the policy's tokens of ``SENTENCE``.
        """
        body = {"prompt": SENTENCE, "add_special_tokens": False}
        try:
            answer = await self._client.post(
                "/tokenize", body, timeout_s=self._timeout_s, name=f"{self._role}'s tokenizer"
            )
        except ServerFailed as failure:
            raise UsageError(f"{self._role} at {self._url} can't be asked: {failure}") from failure
        if list(answer["tokens"]) != list(own_ids):
            raise UsageError(
                f"{self._role} at {self._url} has another tokenizer than the policy: its log-probs "
                "are of other tokens. Take a model of the same family."
            )

    async def logprobs(self, sequences: Sequence[Ints]) -> list[Floats]:
        """For each sequence [T]: the log-prob of each token after those before it.

        The first token, which has nothing before it, gets 0. Raises RunError.
        """
        with waiting(f"{self._role}'s log-probs", deadline_s=self._timeout_s, owner=self._url):
            return list(await asyncio.gather(*(self._one(ids) for ids in sequences)))

    async def _one(self, ids: Ints) -> Floats:
        async with self._slots:
            body = {"prompt": ids.tolist(), "max_tokens": 1, "prompt_logprobs": 0}
            try:
                answer = await self._client.post(
                    "/v1/completions", body, timeout_s=self._timeout_s, name="log-probs of a sample"
                )
            except ServerFailed as failure:
                raise RunError(f"{self._role} at {self._url} failed: {failure}") from failure
        entries = answer["choices"][0]["prompt_logprobs"][1:]  # nothing is before the first token
        pairs = zip(entries, ids[1:].tolist(), strict=True)
        found = [0.0, *(entry[str(token)]["logprob"] for entry, token in pairs)]
        return np.array(found, np.float32)

    async def close(self) -> None:
        await self._client.close()
