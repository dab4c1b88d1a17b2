"""A folder with files, commands to run, and hidden tests at the end, as on a developer's machine.

    python scripts/environments/workspace.py [bubblewrap | docker]

The policy is scripted: it runs the program, finds the mistake, writes the file anew and says that
it is done. The hidden checks then run in a fresh sandbox over what it left.
"""

import sys
from typing import Any

from scripted import call, play

import envs

ROWS = [
    {
        "prompt": "mean.py prints the mean of the numbers it reads. It fails for no numbers: then "
        "it should print nan. Mend it.",
        "files": {"mean.py": "numbers = [float(x) for x in input().split()]\n"
                             "print(sum(numbers) / len(numbers))\n"},
        "checks": [
            {"command": "python3 mean.py", "stdin": "\n", "stdout": "nan"},
            {"command": "python3 mean.py", "stdin": "1 2 6\n", "stdout": "3.0"},
        ],
    }
]  # fmt: skip
MENDED = """numbers = [float(x) for x in input().split()]
print(sum(numbers) / len(numbers) if numbers else float("nan"))
"""
POLICY = [
    call("shell", command="ls; echo | python3 mean.py"),
    call("write_file", path="mean.py", content=MENDED),
    call("shell", command="echo | python3 mean.py; echo 1 2 6 | python3 mean.py"),
    "mean.py prints nan now where there are no numbers.",
]


def main() -> Any:
    sandbox = sys.argv[1] if len(sys.argv) > 1 else "auto"
    environment = envs.load("workspace", tasks=ROWS, sandbox=sandbox, turns=10)
    return play(environment, POLICY)


if __name__ == "__main__":
    main()
