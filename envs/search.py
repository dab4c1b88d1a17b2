"""Search over a local index of documents: SQLite's FTS5, ranked by BM25, no server and no network.

``Index.build`` reads a folder of ``.txt`` and ``.md`` files (the id is the path), or rows or a
JSONL file with ``id``, ``text`` and perhaps ``title``. A query is words: whatever it holds beside
letters and digits is no operator, so no text that a model writes can be an error or reach the
database's language. A document matches when it has one of the words; a word in the title counts
three times. Words are compared without case and accents, and not stemmed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from envs import files
from envs.tools import ToolEnv
from rewards import Reward, UsageError

ENDINGS = (".txt", ".md")
MAX_WORDS = 32  # of a query
MAX_RESULTS = 20
PAGE_CHARS = 3000
TITLE_WEIGHT = 3.0
_WORD = re.compile(r"\w+")
_SCHEMA = """
CREATE TABLE source (digest TEXT);
CREATE TABLE documents (number INTEGER PRIMARY KEY, id TEXT UNIQUE, title TEXT, text TEXT);
CREATE VIRTUAL TABLE found USING fts5(
    title, text, content=documents, content_rowid=number, tokenize='unicode61 remove_diacritics 2'
);
"""
_SEARCH = f"""
SELECT id, documents.title, snippet(found, 1, '', '', ' ... ', 40), -bm25(found, {TITLE_WEIGHT}, 1)
FROM found JOIN documents ON number = found.rowid
WHERE found MATCH ? ORDER BY bm25(found, {TITLE_WEIGHT}, 1), id LIMIT ?
"""


class Index:
    """An index, open for reading from many threads."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection, self._lock = connection, threading.Lock()

    @classmethod
    def build(cls, source: Any, path: str | Path | None = None) -> Index:
        """Index ``source`` in memory, or in the file ``path``, which is used again as long as the
        source has the same files of the same size and time.

        Raises UsageError for a source without documents, a document without id or text, and an id
        that comes twice.
        """
        if path is None:
            return cls(_filled(":memory:", source, ""))
        digest = _digest(source)
        if _is_of(path, digest):
            return cls(_connect(path))
        fresh = f"{path}.{os.getpid()}.new"
        Path(fresh).unlink(missing_ok=True)
        try:
            _filled(fresh, source, digest).close()
            os.replace(fresh, path)
        finally:
            Path(fresh).unlink(missing_ok=True)
        return cls(_connect(path))

    def __len__(self) -> int:
        return int(self._ask("SELECT count(*) FROM documents")[0][0])

    def search(self, query: str, k: int = 5) -> list[dict[str, Any]]:
        """The best ``k`` documents: id, title, snippet and score, best first."""
        words = list(dict.fromkeys(_WORD.findall(query)))[:MAX_WORDS]
        if not words:
            return []
        match = " OR ".join(f'"{word}"' for word in words)  # quoted: a word, never an operator
        rows = self._ask(_SEARCH, match, min(max(k, 1), MAX_RESULTS))
        names = ("id", "title", "snippet", "score")
        return [dict(zip(names, (*row[:3], round(row[3], 3)), strict=True)) for row in rows]

    def text(self, ident: str) -> str | None:
        """A document; None when there is none of that id."""
        rows = self._ask("SELECT text FROM documents WHERE id = ?", ident)
        return str(rows[0][0]) if rows else None

    def close(self) -> None:
        self._connection.close()

    def _ask(self, statement: str, *values: Any) -> list[Any]:
        clean = [v.encode("utf-8", "replace").decode() if isinstance(v, str) else v for v in values]
        with self._lock:
            return self._connection.execute(statement, clean).fetchall()


def documents(source: Any) -> Iterator[tuple[str, str, str]]:
    """(id, title, text) of each. Raises UsageError."""
    if isinstance(source, str | Path) and Path(source).is_dir():
        for path in _texts(Path(source)):
            text = path.read_text(encoding="utf-8", errors="replace")
            heading = text.lstrip().partition("\n")[0].lstrip("# ").strip()
            yield str(path.relative_to(source)), heading[:200], text
        return
    rows: Iterable[Any] = files.read(str(source)) if isinstance(source, str | Path) else source
    for number, row in enumerate(rows, start=1):
        ident, text = row.get("id"), row.get("text")
        if ident in (None, "") or not isinstance(text, str) or not text.strip():
            raise UsageError(f"document {number}: it needs an id and a text, got {row!r:.100}")
        yield str(ident), str(row.get("title") or ""), text


def _texts(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.suffix in ENDINGS and p.is_file())


def _filled(path: str, source: Any, digest: str) -> sqlite3.Connection:
    """A new database with all documents."""
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.executescript(_SCHEMA)
    except sqlite3.OperationalError as error:
        raise UsageError(f"this Python's SQLite has no full-text search (FTS5): {error}") from None
    with connection:
        connection.execute("INSERT INTO source VALUES (?)", (digest,))
        for one in documents(source):
            try:
                connection.execute("INSERT INTO documents (id, title, text) VALUES (?, ?, ?)", one)
            except sqlite3.IntegrityError:
                raise UsageError(f"two documents have the id {one[0]!r:.100}") from None
        connection.execute("INSERT INTO found (found) VALUES ('rebuild')")
        count = connection.execute("SELECT count(*) FROM documents").fetchone()[0]
    if not count:
        raise UsageError(f"no documents in {source!r:.100}: {' or '.join(ENDINGS)} files, or rows")
    return connection


def _connect(path: str | Path) -> sqlite3.Connection:
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, check_same_thread=False)


def _is_of(path: str | Path, digest: str) -> bool:
    """Whether the file is an index of this source. Raises UsageError for another kind of file."""
    if not Path(path).exists():
        return False
    try:
        with closing(_connect(path)) as connection:
            return bool(connection.execute("SELECT digest FROM source").fetchone()[0] == digest)
    except sqlite3.DatabaseError as error:
        raise UsageError(f"{path} is there and is no index: {error}") from None


def _digest(source: Any) -> str:
    """Of what the source is: its files' names, sizes and times, or the rows themselves."""
    if isinstance(source, str | Path):
        path = Path(source)
        paths = _texts(path) if path.is_dir() else [path] if path.exists() else []
        stats = [(str(one.absolute()), one.stat()) for one in paths]
        facts: Any = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    else:
        facts = [dict(row) for row in source]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


class SearchEnv(ToolEnv):
    """One question, to be answered from an index."""

    def __init__(self, index: Index, reward: Reward | None = None) -> None:
        super().__init__(reward)
        self._index = index

    def search(
        self, query: Annotated[str, "words"], k: Annotated[int, "how many, at most 20"] = 5
    ) -> Sequence[Mapping[str, Any]]:
        """The documents that fit best: id, title, a snippet and a score."""
        return self._index.search(query, k)

    def open(
        self,
        id: Annotated[str, "as search returned it"],
        offset: Annotated[int, "the character to start at"] = 0,
    ) -> str:
        """A document's text, a page of it at a time."""
        text = self._index.text(id)
        if text is None:
            raise KeyError(f"there is no document {id!r:.100}")
        start = max(offset, 0)
        page, left = text[start : start + PAGE_CHARS], len(text) - start - PAGE_CHARS
        return page + (f"\n[{left} more characters from {start + PAGE_CHARS}]" if left > 0 else "")
