"""Which rank is which, and where they meet.

A launcher that numbers its processes has decided that already. Where there is none, the ranks of
one machine follow each other, and all meet at rank 0: at the address that it connects from, and a
port that it holds.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from posttrain.addresses import is_loopback
from posttrain.errors import UsageError
from posttrain.learner.rank_link import RankLink


def hosts_of(ranks: Sequence[RankLink]) -> str:
    """Where they are, if not here."""
    hosts = {rank.host for rank in ranks} - {socket.gethostname()}
    return f" on {', '.join(sorted(hosts))}" if hosts else ""


def place(ranks: Sequence[RankLink]) -> list[dict[str, str]]:
    """Number the ranks that no launcher numbered; the environment of each, by number.

    Raises UsageError where a launcher started another number, or ranks can't reach each other.
    """
    numbered = [rank for rank in ranks if rank.number >= 0]
    if numbered:
        sizes = {rank.hello["world_size"] for rank in ranks}
        if len({rank.number for rank in numbered}) != len(ranks) or sizes != {len(ranks)}:
            told = ", ".join(f"{rank.number} of {rank.hello['world_size']}" for rank in ranks)
            raise UsageError(
                f"learner.ranks = {len(ranks)}, and the ranks that connected call themselves {told}"
            )
        return [{}] * len(ranks)
    found = sorted(ranks, key=lambda rank: (rank.host, rank.hello["local_rank"]))
    first, several = found[0], len({rank.host for rank in found}) > 1
    if several and any(is_loopback(rank.address) for rank in found):
        names = sorted({rank.host for rank in found if is_loopback(rank.address)})
        raise UsageError(
            f"the ranks on {', '.join(names)} connected over loopback, where those of other "
            "machines can't reach them: give --connect the address that the others use"
        )
    for number, rank in enumerate(found):
        rank.number = number
    meeting = {"MASTER_ADDR": first.address, "MASTER_PORT": str(first.hello["port"])}
    size = {"WORLD_SIZE": str(len(found))}
    return [{"RANK": str(number), **size, **meeting} for number in range(len(found))]
