"""Trains what a JSON file lists, one run after the other, under torchrun: ranks start once."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pretrain.training.job import train_model

if __name__ == "__main__":
    for tree in json.loads(Path(sys.argv[1]).read_text()):
        train_model(tree)
