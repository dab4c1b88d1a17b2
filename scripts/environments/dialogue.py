"""A dialogue with a simulated user: the policy must find out what the user wants.

    python scripts/environments/dialogue.py [URL MODEL]

URL is any OpenAI-compatible server whose MODEL plays the user; without it a scripted one does. The
policy is scripted too. Train on it with ``env="dialogue"`` and the same arguments in ``env_args``.
"""

import sys
from typing import Any

from scripted import chat_server, play

import envs

ROWS = [
    {
        "prompt": "Hi, I would like to book a table.",
        "persona": "in a hurry, friendly",
        "goal": "a table for 3 at 19:00; you tell both only when asked",
        "answer": "3 at 19:00",
    }
]
POLICY = [
    "Gladly. For how many people, and when?",
    "Your table is booked: 3 at 19:00. Anything else?",
]


def booked(messages: Any, answer: str, **columns: Any) -> bool:
    """Whether the assistant said the booking; what the user said does not count."""
    return any(answer in m["content"] for m in messages if m["role"] == "assistant")


def scripted_user(messages: Any) -> str:
    last = messages[-1]["content"]
    return "Three of us, at 19:00." if "how many" in last else "Thanks, bye. [DONE]"


def main() -> Any:
    def run(url: str, model: str) -> Any:
        user = {"url": url, "model": model}
        environment = envs.load(
            "dialogue", tasks=ROWS, reward=booked, user=user, check=False, held_out_percent=0
        )
        return play(environment, POLICY)

    if len(sys.argv) > 1:
        return run(*sys.argv[1:3])
    with chat_server(scripted_user) as url:
        return run(url, "scripted")


if __name__ == "__main__":
    main()
