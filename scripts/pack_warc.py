"""A crawl made of pages that are files already: a folder of HTML as WARC files.

    python scripts/pack_warc.py runs/debian runs/crawl

Each page is a response record (HTTP/1.1 200) under ``http://manuals.example/`` and its path. There
are eight files, so that as many tasks can read them. A crawl that is there is left as it is.
"""

import sys
from pathlib import Path

from pretrain.data.warc import write_warc
from pretrain.errors import UsageError
from pretrain.new_folder import new_folder

SITE = "http://manuals.example"
HEADERS = {"Content-Type": "text/html"}  # no charset: the page says it, or its bytes do
FILES = 8


def pack(pages: Path, crawl: Path) -> int:
    """Write ``crawl/NNNNN.warc.gz``, whole or not at all; returns the number of pages.

    Raises UsageError where there is no page, or ``crawl`` holds something else.
    """
    paths = sorted(pages.rglob("*.html"))
    if not paths:
        raise UsageError(f"{pages} has no page that ends in .html")
    with new_folder(crawl) as aside:
        for number in range(FILES):
            records = (
                (f"{SITE}/{path.relative_to(pages).as_posix()}", path.read_bytes(), HEADERS)
                for path in paths[number::FILES]
            )
            write_warc(aside / f"{number:05d}.warc.gz", records)
    return len(paths)


if __name__ == "__main__":
    source, target = map(Path, sys.argv[1:])
    if len(list(target.glob("*.warc.gz"))) == FILES:
        print(f"{target} is there already")
        sys.exit()
    try:
        print(f"{pack(source, target):,} pages in {target}")
    except UsageError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
