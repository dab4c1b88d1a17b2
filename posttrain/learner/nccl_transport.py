"""Weights from the learner's GPUs to the servers' GPUs, over vLLM's own NCCL engine.

Decides the learner's half of a sync by collective: ``NcclSender.send`` does pause, start, transfer
and finish on all servers (the ordering rule of ``weight_sync``), and the snapshot that the engine
is then given has no path. All servers form one group with learner rank 0: a weight crosses once.

Import it lazily and in the learner only: it imports vLLM. Needs one GPU for each side.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import httpx
import torch
from vllm.distributed.weight_transfer.base import ParamMeta, WeightSource
from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

from posttrain.addresses import hold_port
from posttrain.engines.server import bearer
from posttrain.errors import RunError

Tensors = Callable[[], Iterator[tuple[str, torch.Tensor]]]


class NcclSender:
    """Learner side. Every rank makes one, and calls ``send`` whenever the others do.

    ``metadata`` names all tensors in Hugging Face names; ``tensors`` yields them whole and in that
    order, gathering shards as it goes (under ZeRO-3 that is a collective, hence every rank). Rank 0
    alone talks to the servers; they meet it under the address that it asks them from.
    """

    def __init__(
        self,
        metadata: Sequence[tuple[str, torch.dtype, tuple[int, ...]]],
        tensors: Tensors,
        *,
        rank: int,
        urls: Sequence[str],
        timeout_s: float = 120.0,
    ) -> None:
        self._fleet = _Fleet(urls, timeout_s)
        workers = self._fleet.count_workers() if rank == 0 else 0
        address = _address_towards(urls[0])
        with hold_port(address) as held:
            info = NCCLTrainerInitInfo(
                master_address=address,
                master_port=held.getsockname()[1],
                world_size=1 + workers,
                rank=rank,
            )
            self._engine: Any = WeightTransferTrainerFactory.trainer_init(
                info, client=self._fleet, source=_Source(metadata, tensors)
            )

    def send(self, version: int) -> None:
        """Leaves the servers paused, with new weights that nobody has verified yet."""
        self._fleet.version = version
        self._engine.send_weights()

    def close(self) -> None:
        self._engine.shutdown()


class _Source(WeightSource):
    def __init__(
        self, metadata: Sequence[tuple[str, torch.dtype, tuple[int, ...]]], tensors: Tensors
    ) -> None:
        self._metadata = [ParamMeta(name, dtype, shape) for name, dtype, shape in metadata]
        self._tensors = tensors

    def metadata(self) -> list[ParamMeta]:
        return self._metadata

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self._tensors()


class _Fleet:
    """vLLM's four-method control client, over several servers at once.

    The workers of a server take the ranks after those of the servers before it.
    """

    def __init__(self, urls: Sequence[str], timeout_s: float) -> None:
        self.version = 0
        self._urls = tuple(urls)
        self._http = httpx.Client(timeout=timeout_s, trust_env=False, headers=bearer())
        self._threads = ThreadPoolExecutor(max_workers=max(1, len(self._urls)))
        self._workers: list[int] = []

    def count_workers(self) -> int:
        self._workers = [
            int(self._checked(self._http.get(f"{url}/get_world_size")).json()["world_size"])
            for url in self._urls
        ]
        return sum(self._workers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        bodies = []
        offset = int(init_info["rank_offset"])
        for workers in self._workers:
            bodies.append({"init_info": init_info | {"rank_offset": offset}})
            offset += workers
        self._post("init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._post("pause?mode=keep", None)
        self._post("start_weight_update", None)

    def update_weights(self, update_info: Any) -> None:
        self._post("update_weights", [{"update_info": update_info}] * len(self._urls))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        body = {"weight_version": weight_version or str(self.version)}
        self._post("finish_weight_update", [body] * len(self._urls))

    def _post(self, path: str, bodies: Sequence[dict[str, Any]] | None) -> None:
        def one(url: str, body: dict[str, Any] | None) -> None:
            self._checked(self._http.post(f"{url}/{path}", json=body))

        each = bodies if bodies is not None else [None] * len(self._urls)
        list(self._threads.map(one, self._urls, each))

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if response.status_code != 200:
            raise RunError(
                f"weight transfer: {response.request.url} answered {response.status_code}: "
                f"{response.text[:500]}"
            )
        return response


def _address_towards(url: str) -> str:
    """Ours on the network that leads to a server; a datagram socket's connect sends nothing."""
    there = urlsplit(url)
    (family, *_, address), *_ = socket.getaddrinfo(there.hostname, there.port or 80)
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return str(probe.getsockname()[0])
