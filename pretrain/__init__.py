"""Base checkpoints: a corpus, a tokenizer, a small model, and the training that joins them.

``make_base(out_dir)`` is the whole of it in one small process, ``train_model`` the training of a
model of any size on tokenised shards, ``train_vision`` that of one that sees. The result is an
ordinary checkpoint folder, which is all that the rest of the toolkit knows of this package.
Importing it does not load torch.
"""

from __future__ import annotations

from pretrain.base import BaseSettings, make_base
from pretrain.corpus import CorpusSettings, Source, chat_rows, is_held_out
from pretrain.model import ModelSettings
from pretrain.train import TrainSettings
from pretrain.training import train_model
from pretrain.vision import train_vision

__all__ = [
    "BaseSettings",
    "CorpusSettings",
    "ModelSettings",
    "Source",
    "TrainSettings",
    "chat_rows",
    "is_held_out",
    "make_base",
    "train_model",
    "train_vision",
]
