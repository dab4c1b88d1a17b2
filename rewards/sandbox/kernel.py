"""The few Linux calls of the sandboxes that Python 3.11 does not offer, through the C library.

Every function raises OSError with the call's name when the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNS = 0x00020000  # mounts
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH = 2

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS, _PR_SET_CHILD_SUBREAPER = 1, 4, 38, 36

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = (
    *(ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p),
    *(ctypes.c_ulong, ctypes.c_char_p),
)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)


def _check(result: int, call: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    _check(_libc.unshare(flags), f"unshare({flags:#x})")


def enter(namespace_fd: int, flag: int) -> None:
    """Make a namespace, open as ``namespace_fd``, the one of this process."""
    _check(_libc.setns(namespace_fd, flag), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """``kind`` is the file system's name, empty for a bind or a change of propagation."""
    result = _libc.mount(
        source.encode(), target.encode(), kind.encode() or None, flags, options.encode() or None
    )
    _check(result, f"mount {kind or source} on {target}")


def mount_proc() -> None:
    """/proc of the pid namespace that this process is in."""
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def unmount(target: str) -> None:
    """At once for new users; the memory is free when the last process that uses it is gone."""
    _check(_libc.umount2(target.encode(), MNT_DETACH), f"umount {target}")


def _prctl(option: int, value: int, call: str) -> None:
    _check(_libc.prctl(option, ctypes.c_ulong(value), *([ctypes.c_ulong(0)] * 3)), call)


def die_with_parent(signal_number: int) -> None:
    """Have the kernel send the signal when the parent's *thread* that forked us ends."""
    _prctl(_PR_SET_PDEATHSIG, signal_number, "prctl(PR_SET_PDEATHSIG)")


def set_dumpable(allowed: bool) -> None:
    """Whether processes of the same user may look into this one through /proc or ptrace."""
    _prctl(_PR_SET_DUMPABLE, int(allowed), "prctl(PR_SET_DUMPABLE)")


def no_new_privileges() -> None:
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, "prctl(PR_SET_NO_NEW_PRIVS)")


def adopt_orphans() -> None:
    """Descendants that lose their parent become children of this process."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, "prctl(PR_SET_CHILD_SUBREAPER)")


def hide_arguments() -> None:
    """Blank our own command line: /proc shows it to every process that sees us."""
    with open("/proc/self/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    first, last = int(fields[45]), int(fields[46])  # arg_start, arg_end of proc(5)
    if 0 < first < last:
        ctypes.memset(first, 0, last - first)
