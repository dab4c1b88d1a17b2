"""vLLM's worker extension with faults that a test switches on: a file in a folder names each.

stale_lm_head    weights are synced, and the tied head is not packed anew: the server answers 200
deaf_adapter     an adapter after the first is taken and ignored
"""

import os
from pathlib import Path

from posttrain import vllm_worker
from posttrain.vllm_worker import WorkerExtension

__all__ = ["WorkerExtension"]

FOLDER = "POSTTRAIN_TEST_FAULTS"  # set by the fixture "faults"


def _unless(fault, healthy):
    def either(*arguments):
        if not (Path(os.environ[FOLDER]) / fault).exists():
            return healthy(*arguments)
        return None

    return either


vllm_worker.repack_heads = _unless("stale_lm_head", vllm_worker.repack_heads)
vllm_worker.WorkerExtension.replace_adapter = _unless(
    "deaf_adapter", vllm_worker.WorkerExtension.replace_adapter
)
