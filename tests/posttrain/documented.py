"""Which fields of metrics.jsonl docs/metrics.md explains."""

import re
from pathlib import Path

from posttrain.storage.run_dir import RunDir

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def undocumented(run_dir):
    """Fields of a run's records that the page has no word for, as "kind.field"."""
    known = {}
    for title, body in re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE.read_text(), re.M | re.S):
        rows = re.findall(r"^\| (`.*?) \|", body, re.M)
        for kind in title.split(", "):
            known[kind] = set(re.findall(r"`(\w+)`", " ".join(rows))) | {"kind", "step", "time"}
    return {
        f"{record['kind']}.{field}"
        for record in RunDir.open(run_dir).read_metrics()
        for field in record.keys() - known.get(record["kind"], set())
    }
