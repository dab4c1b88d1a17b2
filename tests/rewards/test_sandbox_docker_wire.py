"""What a container sends is hostile: every answer is a result that fits, or the container is lost.

And the filters of system calls, decided by an interpreter of their own language, for both machines.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.sandbox.docker_container import Container, Lost, Stream
from rewards.sandbox.image import frames
from rewards.sandbox.image.room import wipe
from rewards.sandbox.image.syscalls import OWN_OF_A_KIND, OWN_ONLY, own_only
from rewards.sandbox.protocol import Ending, Finished, Limits, Program

LIMITS = Limits(wall_s=0.2, output_bytes=100)
PROGRAM = Program(("true",), limits=LIMITS)


def packet(data: bytes, kind: int = 1) -> bytes:
    return struct.pack(">BxxxI", kind, len(data)) + data


def answered(reply, monkeypatch) -> Finished | Lost:
    """What becomes of PROGRAM when the container answers a job with ``reply(job id)``."""
    monkeypatch.setattr("rewards.sandbox.docker_container.GRACE_S", 0.1)
    ours, theirs = socket.socketpair()

    def container():
        with theirs, theirs.makefile("rb") as reader:
            theirs.sendall(packet(frames.pack({})))
            (length,) = frames.LENGTH.unpack(reader.read(4))
            header = json.loads(reader.read(length))
            theirs.sendall(reply(header["id"]))

    thread = threading.Thread(target=container)
    thread.start()
    stream = Stream(ours)
    try:
        return Container("x", stream).run(PROGRAM)[0]
    except Lost as lost:
        return lost
    finally:
        stream.close()
        thread.join()


GOOD = {"ending": "exit", "exit_code": 3, "signal": None, "wall_s": 0.1, "clean": "", "stdout": 2}


def test_a_good_answer_is_taken_in_any_number_of_packets(monkeypatch):
    def reply(ident):
        frame = frames.pack({**GOOD, "id": ident}, b"outerr")
        return packet(b"from the agent", kind=2) + b"".join(
            packet(frame[i : i + 1]) for i in range(len(frame))
        )

    expected = Finished(Ending.EXIT, 3, None, b"ou", b"terr", 0.1)
    assert answered(reply, monkeypatch) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"id": "0" * 32},
        {"ending": "fine"},
        {"ending": ["exit"]},
        {"exit_code": 256},
        {"exit_code": True},
        {"exit_code": "0"},
        {"ending": "signal", "signal": 0},
        {"wall_s": float("nan")},
        {"wall_s": 1e9},
        {"stdout": 7},
        {"stdout": -1},
        {"clean": None},
    ],
    ids=str,
)
def test_an_answer_that_is_off_is_a_loss(change, monkeypatch):
    def reply(ident):
        return packet(frames.pack({**GOOD, "id": ident, **change}, b"outerr"))

    assert isinstance(answered(reply, monkeypatch), Lost)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        packet(b""),
        packet(b"\xff\xff\xff\xff"),
        struct.pack(">BxxxI", 1, 0xFFFFFFFF),
        packet(struct.pack(">I", 4) + b"null"),
        packet(struct.pack(">I", 200_000) + b"[" * 200_000),
        packet(struct.pack(">I", 15) + b'{"body": 1e300}'),
        packet(struct.pack(">I", 15) + b'{"body":999999}'),
        packet(struct.pack(">I", 12) + b'{"body": -1}'),
    ],
    ids=repr,
)
def test_what_is_no_frame_is_a_loss(raw, monkeypatch):
    start = time.monotonic()
    assert isinstance(answered(lambda ident: raw, monkeypatch), Lost)
    assert time.monotonic() - start < 5


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_frame_or_are_refused(data):
    rest = memoryview(data)

    def take(size):
        nonlocal rest
        if size > len(rest):
            raise EOFError
        piece, rest = bytes(rest[:size]), rest[size:]
        return piece

    try:
        header, body = frames.read(take, 100)
    except (frames.BadFrame, EOFError):
        return
    assert isinstance(header, dict) and len(body) == header["body"] <= 100


@given(st.dictionaries(st.text(), st.text() | st.integers()), st.binary())
def test_a_frame_comes_back_as_it_was(header, body):
    left = frames.pack(header, body)

    def take(size):
        nonlocal left
        piece, left = left[:size], left[size:]
        return piece

    assert frames.read(take, len(body)) == ({**header, "body": len(body)}, body)
    assert left == b""


# filters

ALLOW, EPERM = 0x7FFF0000, 0x00050001


def decide(code: bytes, number: int, *arguments: int) -> int:
    """What the kernel would: classic BPF over (nr, arch, instruction pointer, six arguments)."""
    data = struct.pack("<IIQ6Q", number, 0, 0, *arguments, *[0] * (6 - len(arguments)))
    steps = list(struct.iter_unpack("=HBBI", code))
    loaded, at = 0, 0
    while True:
        operation, if_true, if_false, value = steps[at]
        at += 1
        if operation == 0x20:
            (loaded,) = struct.unpack_from("<I", data, value)
        elif operation == 0x15:
            at += if_true if loaded == value else if_false
        else:
            assert operation == 0x06
            return value


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_a_process_may_change_itself_and_no_other(machine, column):
    code = own_only(machine)
    for numbers in OWN_ONLY.values():
        assert decide(code, numbers[column], 0, 1) == ALLOW
        assert decide(code, numbers[column], 1, 0) == EPERM
    for numbers, kind in OWN_OF_A_KIND.values():
        assert decide(code, numbers[column], kind, 0) == ALLOW
        assert decide(code, numbers[column], kind, 1) == EPERM
        assert decide(code, numbers[column], kind + 1, 0) == EPERM
    known = {numbers[column] for numbers in OWN_ONLY.values()}
    known |= {numbers[column] for numbers, _ in OWN_OF_A_KIND.values()}
    assert len(known) == len(OWN_ONLY) + len(OWN_OF_A_KIND)
    assert {decide(code, one, 1, 1) for one in range(500) if one not in known} == {ALLOW}


def test_wiping_leaves_nothing_and_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("x")
    top = tmp_path / "top"
    here = os.fsencode(top)
    for _ in range(60):  # beyond what a path can name at once
        os.makedirs(here)
        os.symlink(outside, os.path.join(here, b"link"))
        os.mkfifo(os.path.join(here, b"\xff\n"))
        here = os.path.join(here, b"d" * 50)
    os.chmod(top / ("d" * 50), 0)
    wipe(os.fsencode(top))
    assert os.listdir(top) == []
    assert (outside / "kept").read_text() == "x"
