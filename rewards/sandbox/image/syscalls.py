"""Decides which system calls a program in a container may not make, on top of Docker's own filter.

The deny list of ``rewards.sandbox.seccomp`` holds here too. The agent and the program have the same
user id, since a process without capabilities can't change it, so a second filter refuses what a
process may do to another one of its user: change its limits, its scheduling or its priority. Each
of these calls is allowed for the caller itself, which it says by an id of 0.

Both are classic BPF over ``struct seccomp_data``: nr at 0, arch at 4, arguments from 16.
"""

from __future__ import annotations

import ctypes
import platform
import struct

from rewards.sandbox import seccomp

# name -> number on (x86_64, aarch64); the first argument must be 0
OWN_ONLY = {
    "prlimit64": (302, 261),
    "sched_setaffinity": (203, 122),
    "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118),
    "sched_setattr": (314, 274),
}
# (which, who): a process, and the caller; ioprio_set counts its kinds from 1
OWN_OF_A_KIND = {"setpriority": ((141, 140), 0), "ioprio_set": ((251, 30), 1)}

LOAD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, EPERM = 0x7FFF0000, 0x00050001
NR, ARGUMENT_0, ARGUMENT_1 = 0, 16, 24  # the low halves, where the ABI's ints are

PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, MODE_FILTER = 38, 22, 2
Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, operand


def own_only(machine: str) -> bytes:
    """The second filter. The first one has ended calls under any other ABI."""
    column = seccomp.MACHINES[machine][0]
    code: list[Instruction] = [(LOAD, 0, 0, NR)]
    allow = (RETURN, 0, 0, ALLOW)
    for numbers in OWN_ONLY.values():
        then = [*_need(ARGUMENT_0, 0), allow]
        code += [(JUMP_EQUAL, 0, len(then), numbers[column]), *then]
    for numbers, kind in OWN_OF_A_KIND.values():
        then = [*_need(ARGUMENT_0, kind), *_need(ARGUMENT_1, 0), allow]
        code += [(JUMP_EQUAL, 0, len(then), numbers[column]), *then]
    return b"".join(struct.pack("=HBBI", *one) for one in [*code, allow])


def _need(offset: int, value: int) -> list[Instruction]:
    """EPERM unless the argument has the value, else go on."""
    return [(LOAD, 0, 0, offset), (JUMP_EQUAL, 1, 0, value), (RETURN, 0, 0, EPERM)]


class Filters:
    """Both; ``install`` binds the calling process and all that it starts, for good."""

    def __init__(self) -> None:
        machine = platform.machine()
        programs = [own_only(machine), seccomp.program(machine)]
        self._code = [ctypes.create_string_buffer(one, len(one)) for one in programs]
        self._fprogs = [
            ctypes.create_string_buffer(
                struct.pack("HxxxxxxQ", len(one) // 8, ctypes.addressof(one))
            )
            for one in self._code
        ]
        self._libc = ctypes.CDLL(None, use_errno=True)

    def install(self) -> None:
        """Raises OSError where the kernel refuses one."""
        self._prctl(PR_SET_NO_NEW_PRIVS, 1, 0)
        for fprog in self._fprogs:
            self._prctl(PR_SET_SECCOMP, MODE_FILTER, ctypes.addressof(fprog))

    def _prctl(self, *arguments: int) -> None:
        if self._libc.prctl(*map(ctypes.c_ulong, (*arguments, 0, 0))) != 0:
            raise OSError(ctypes.get_errno(), f"prctl{arguments} was refused")
