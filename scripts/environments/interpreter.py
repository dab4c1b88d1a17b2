"""A Python interpreter and a shell that keep their state, in a sandbox for each episode.

    python scripts/environments/interpreter.py [bubblewrap | docker]

The policy is scripted: it defines a function in one call, uses it in the next, lets a call run out
of time, and finds its files there all the same.
"""

import sys
from typing import Any

from scripted import call, play

import envs

ROWS = [
    {
        "prompt": "How many primes are there in numbers.txt? Answer with the number alone.",
        "files": {"numbers.txt": " ".join(map(str, range(100)))},
        "answer": "25",
    }
]
POLICY = [
    call("python", code="def prime(n):\n    return n > 1 and all(n % d for d in range(2, n))"),
    call("python", code="found = [n for n in map(int, open('numbers.txt').read().split())"
                        " if prime(n)]\nopen('found.txt', 'w').write(str(len(found)))"),
    call("python", code="while True: pass"),
    call("shell", command="cat found.txt"),
    "25",
]  # fmt: skip


def main() -> Any:
    sandbox = sys.argv[1] if len(sys.argv) > 1 else "auto"
    environment = envs.load(
        "interpreter", tasks=ROWS, reward="exact", sandbox=sandbox, call_s=2.0, held_out_percent=0
    )
    return play(environment, POLICY)


if __name__ == "__main__":
    main()
