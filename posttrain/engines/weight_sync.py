"""One weight sync on one server: a transaction that proves itself.

The ordering rule, for every transport:

    deliver    the snapshot is where the server can read it (``delivery``)
    pause      no token is written while weights change; requests in flight wait
    start      the server sets its packed weights aside
    transfer   the snapshot's tensors arrive
    finish     they are packed and take effect, under the new version's name
    resume     requests in flight go on; their KV cache is computed anew
    verify     the server's log-probs of the probe equal the learner's
    commit     the caller routes requests here again, salted with the new version

A failure anywhere leaves the server unfit: nothing is rolled back, nothing retried on it. The
caller must send it no request until it was restarted and a sync succeeded. Completions that end
between resume and commit must be held back by the caller until commit, and dropped without it.

With the collective transport the learner has done pause to finish by the time a snapshot is handed
over (``nccl_transport``); what is left here is resume, verify and commit.

An adapter takes the place of start to finish: the server loads it beside its unchanged weights.
The first one goes through vLLM's own route, which also gives it the name that requests ask for.
Later ones are put in its place inside the worker. vLLM's ``load_inplace`` is not used: the flag
stays with the name, so that the adapter would be read from its file at every engine step, and a
request in flight would put its older file back.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass

import numpy as np

from posttrain.engines.client import ServerFailed, VllmClient
from posttrain.engines.delivery import deliver
from posttrain.errors import RunError
from posttrain.types import Snapshot
from posttrain.waits import waiting


class SyncRefused(Exception):
    """The transaction did not go through. Never leaves the engine."""


@dataclass(frozen=True, slots=True)
class SyncRule:
    """When a sync counts as good."""

    max_probe_gap: float  # mean |engine - learner| over the probe, in nats
    timeout_s: float  # of each phase


async def apply(client: VllmClient, snapshot: Snapshot, rule: SyncRule, *, salt: str) -> float:
    """Bring one server to the snapshot's weights and return the probe gap. Raises SyncRefused."""
    try:
        if snapshot.is_adapter:
            await _load_adapter(client, snapshot, rule.timeout_s)
        elif snapshot.path is not None:
            await _transfer(client, snapshot, rule.timeout_s)
        await _phase(client, "resume", "/resume", None, snapshot, rule.timeout_s)
        return await verify(client, snapshot, rule, salt=salt)
    except (ServerFailed, RunError) as error:
        raise SyncRefused(str(error)) from error


async def verify(client: VllmClient, snapshot: Snapshot, rule: SyncRule, *, salt: str) -> float:
    """The probe gap. Raises SyncRefused when it is above the limit, or not a number."""
    name = f"weight sync {snapshot.version}, verify"
    with waiting(name, deadline_s=rule.timeout_s, owner=client.url):
        found = await client.logprobs(
            snapshot.probe_ids, temperature=1.0, salt=salt, timeout_s=rule.timeout_s
        )
    gap = float(np.abs(found - snapshot.probe_logprobs).mean())
    limit = rule.max_probe_gap * snapshot.gap_allowance
    if not gap <= limit:
        raise SyncRefused(
            f"weight sync {snapshot.version}, verify: on the probe the engine's log-probs differ "
            f"from the learner's by {gap:.4f} on average, the limit (sync.max_probe_gap) is "
            f"{limit:g}"
        )
    return gap


async def _transfer(client: VllmClient, snapshot: Snapshot, timeout_s: float) -> None:
    path = await _deliver(client, snapshot, timeout_s)
    steps: tuple[tuple[str, str, dict[str, object] | None], ...] = (
        ("pause", "/pause?mode=keep", None),
        ("start", "/start_weight_update", None),
        ("transfer", "/update_weights", {"update_info": {"path": path}}),
        ("finish", "/finish_weight_update", {"weight_version": str(snapshot.version)}),
    )
    for phase, path, body in steps:
        await _phase(client, phase, path, body, snapshot, timeout_s)


async def _load_adapter(client: VllmClient, snapshot: Snapshot, timeout_s: float) -> None:
    path = await _deliver(client, snapshot, timeout_s)
    await _phase(client, "pause", "/pause?mode=keep", None, snapshot, timeout_s)
    if client.adapter:
        body: dict[str, object] = {"method": "replace_adapter", "args": [path]}
        await _phase(client, "adapter", "/collective_rpc", body, snapshot, timeout_s)
    else:
        # A name of its own: the server may have been used by another run before.
        name = f"policy-{secrets.token_hex(4)}"
        body = {"lora_name": name, "lora_path": path}
        await _phase(client, "adapter", "/v1/load_lora_adapter", body, snapshot, timeout_s)
        client.adapter = name
    version: dict[str, object] = {"new_version": str(snapshot.version)}
    await _phase(client, "version", "/update_weight_version", version, snapshot, timeout_s)


async def _deliver(client: VllmClient, snapshot: Snapshot, timeout_s: float) -> str:
    assert snapshot.path is not None  # over a collective there is nothing to deliver
    name = f"weight sync {snapshot.version}, deliver"
    with waiting(name, deadline_s=timeout_s, owner=client.url):
        return await deliver(client, snapshot.path, timeout_s)


async def _phase(
    client: VllmClient,
    phase: str,
    path: str,
    body: dict[str, object] | None,
    snapshot: Snapshot,
    timeout_s: float,
) -> None:
    name = f"weight sync {snapshot.version}, {phase}"
    with waiting(name, deadline_s=timeout_s, owner=client.url):
        await client.command(path, body, timeout_s=timeout_s, name=name)
