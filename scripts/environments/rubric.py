"""An agentic task with a rubric: the policy uses tools, a judge grades the whole episode.

    python scripts/environments/rubric.py [URL MODEL]

URL is any OpenAI-compatible server whose MODEL judges; without it a scripted judge does. A judge
that fails leaves the episode without a value; it never counts as 0.
"""

import json
import re
import sys
from typing import Any

from scripted import call, chat_server, play

import envs
import rewards.judge

RUBRIC = [
    {
        "name": "looked",
        "question": "Did the assistant look the order up?",
        "choices": ["no", "yes"],
    },
    {"name": "clear", "question": "Does the answer say what comes next?", "scale": [1, 5]},
]
POLICY = [call("order", number=7), "Your order 7 left today and arrives on Friday."]


class Desk(envs.ToolEnv):
    def order(self, number: int) -> dict[str, str]:
        """The state of an order."""
        return {"state": "sent", "arrives": "Friday"}


def desk(url: str, model: str) -> envs.Environment:
    judge = rewards.judge.load(url, model, RUBRIC, conversation=True, check=False, attempts=1)
    tasks = envs.generated(lambda rng: envs.Task("7", (envs.user("Where is my order 7?"),)))
    return envs.Episodes("desk", tasks, lambda: Desk(judge))


def scripted_judge(messages: Any) -> str:
    text = messages[-1]["content"]
    verdict = {"looked": "yes" if '"order"' in text else "no", "clear": 4}
    key = re.findall(r'"key": "(k-\w+)"', text)[-1]
    return json.dumps({"key": key, "reason": "it was looked up", "verdict": verdict})


def main() -> Any:
    if len(sys.argv) > 1:
        return play(desk(*sys.argv[1:3]), POLICY)
    with chat_server(scripted_judge) as url:
        return play(desk(url, "scripted"), POLICY)


if __name__ == "__main__":
    main()
