"""The system calls that a program in the bubblewrap sandbox may not make, as a BPF program.

A deny list: whatever reaches kernel code that programs of our kind do not need and that has been a
way out before (namespaces, mounts, BPF, io_uring, ...), whatever looks into other processes, and
memory that no limit would count without a control group (memfd, System V). Everything else is
allowed, so that interpreters and compilers just work. It is one layer of several: it is there for
kernel bugs, and for the socket families that no namespace holds in (AF_VSOCK reaches the host of a
virtual machine).

The numbers are those of ``asm/unistd.h``; a test compares them with that file where it exists.
"""

from __future__ import annotations

import errno
import platform
import struct

# name -> (x86_64, aarch64); None where the architecture does not have it.
DENIED: dict[str, tuple[int | None, int | None]] = {
    # other processes
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # namespaces and mounts
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "fanotify_init": (300, 262),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    # large parts of the kernel that programs like ours do not need
    "bpf": (321, 280),
    "userfaultfd": (323, 282),
    "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "personality": (135, 92),
    "modify_ldt": (154, None),
    "lookup_dcookie": (212, 18),
    "mbind": (237, 235),
    "set_mempolicy": (238, 237),
    "migrate_pages": (256, 238),
    "move_pages": (279, 239),
    # the machine
    "reboot": (169, 142),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "acct": (163, 89),
    "syslog": (103, 116),
    "iopl": (172, None),
    "ioperm": (173, None),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "clock_adjtime": (305, 266),
    "adjtimex": (159, 171),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "vhangup": (153, 58),
    # memory that is in nobody's address space
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
SOCKETS = {"socket": (41, 198), "socketpair": (53, 199)}  # AF_UNIX alone
CLONE = (56, 220)  # without new namespaces
CLONE3 = (435, 435)  # its flags are in memory, which a filter cannot read: callers fall back
FIRST_UNKNOWN = 457  # calls newer than this list

MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column, AUDIT_ARCH_*
AF_UNIX = 1
# CLONE_NEW: NS, CGROUP, UTS, IPC, USER, PID, NET
NEW_NAMESPACES = 0x20000 | 0x2000000 | 0x4000000 | 0x8000000 | 0x10000000 | 0x20000000 | 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW, _ERROR, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_X32 = 0x40000000  # the second x86 calling convention, whose numbers have this bit


def supported() -> bool:
    """Whether there is a table for this machine."""
    return platform.machine() in MACHINES


def program(machine: str) -> bytes:
    """The filter for ``seccomp(2)``: ``struct sock_filter`` one after another."""
    column, architecture = MACHINES[machine]
    rules = [
        _step(_LOAD, _ARCHITECTURE),
        *_if(_EQUAL, architecture, then=[], otherwise=[_step(_RETURN, _KILL_PROCESS)]),
        _step(_LOAD, _NUMBER),
        *_if(_AT_LEAST, FIRST_UNKNOWN, then=[_refuse(errno.ENOSYS)]),  # x32 is above it too
        *_if(_EQUAL, CLONE3[column], then=[_refuse(errno.ENOSYS)]),
    ]
    for numbers in DENIED.values():
        number = numbers[column]
        if number is not None:
            rules += _if(_EQUAL, number, then=[_refuse(errno.EPERM)])
    new_namespace = _if(_ANY_BIT, NEW_NAMESPACES, then=[_refuse(errno.EPERM)])
    rules += _if(
        _EQUAL,
        CLONE[column],
        then=[_step(_LOAD, _FIRST_ARGUMENT), *new_namespace, _step(_RETURN, _ALLOW)],
    )
    other_family = _if(_EQUAL, AF_UNIX, then=[_step(_RETURN, _ALLOW)])
    for numbers in SOCKETS.values():
        rules += _if(
            _EQUAL,
            numbers[column],
            then=[_step(_LOAD, _FIRST_ARGUMENT), *other_family, _refuse(errno.EAFNOSUPPORT)],
        )
    return b"".join([*rules, _step(_RETURN, _ALLOW)])


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def _refuse(error: int) -> bytes:
    return _step(_RETURN, _ERROR | error)


def _if(test: int, value: int, then: list[bytes], otherwise: list[bytes] | None = None) -> list:  # type: ignore[type-arg]
    """Run ``then`` when the loaded value passes the test, ``otherwise`` (or what follows) if not.

    One of the two must be empty, and a block that does not fall through must return.
    """
    if then:
        return [_step(test, value, 0, len(then)), *then]
    return [_step(test, value, len(otherwise or []), 0), *(otherwise or [])]
