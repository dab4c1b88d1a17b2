"""A vLLM worker extension that plants a stale ``lm_head``: weights are synced, the head is not."""

from posttrain.engines import vllm_worker
from posttrain.engines.vllm_worker import WorkerExtension

__all__ = ["WorkerExtension"]

vllm_worker.repack_heads = lambda model: None
