"""Open weights brought in: checked from the files to the tokenizer, and written out again."""

from __future__ import annotations

from pretrain.importing.importer import ImportSettings, import_checkpoint
from pretrain.importing.report import Finding, ImportReport

__all__ = ["Finding", "ImportReport", "ImportSettings", "import_checkpoint"]
