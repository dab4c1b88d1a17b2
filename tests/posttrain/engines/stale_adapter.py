"""A vLLM worker extension that plants a deaf server: the second adapter is taken and ignored."""

from posttrain.engines import vllm_worker
from posttrain.engines.vllm_worker import WorkerExtension

__all__ = ["WorkerExtension"]

vllm_worker.WorkerExtension.replace_adapter = lambda self, path: None
