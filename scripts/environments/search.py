"""Questions over a local index of documents: this repository's own documentation.

    python scripts/environments/search.py

``search`` ranks by BM25, ``open`` reads a document page by page. The policy is scripted.
"""

from pathlib import Path
from typing import Any

from scripted import call, play

import envs

DOCS = Path(__file__).parents[2] / "docs"
ROWS = [{"prompt": "Which system call filter do sandboxes have?", "answer": "seccomp"}]
POLICY = [
    call("search", query='sandbox "system call" AND (filter', k=2),  # quotes and brackets are text
    call("open", id="sandbox.md"),
    "seccomp",
]


def main() -> Any:
    environment = envs.load(
        "search", tasks=ROWS, documents=DOCS, reward="exact", held_out_percent=0
    )
    return play(environment, POLICY)


if __name__ == "__main__":
    main()
