"""What an attack is, what every attack program starts with, and the canary that runs after it.

An attack is a program as data. ``attempt("what", action)`` in it prints ``ESCAPED what`` when the
action gave evidence that it worked and ``blocked what`` when it did not, so that a program that
never ran is not mistaken for one that was held. What happened on the host is looked at from the
host (``test_attacks.py``), whatever the program says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from rewards.sandbox.protocol import MEBIBYTE, Ending, Limits, Program

QUICK = Limits(
    wall_s=20.0,  # generous: none of them is ended by it, and a busy machine takes long
    cpu_s=2.0,
    memory_bytes=256 * MEBIBYTE,
    processes=32,
    output_bytes=64 * 1024,
    disk_bytes=16 * MEBIBYTE,
    files=512,
)
# What is bound to be killed, by wall time and by CPU time.
SHORT = Limits(wall_s=0.7, cpu_s=0.7, memory_bytes=256 * MEBIBYTE, processes=32)
SPIN = Limits(wall_s=30.0, cpu_s=0.4, memory_bytes=512 * MEBIBYTE, processes=32)

KILLED = frozenset({Ending.WALL, Ending.CPU, Ending.MEMORY, Ending.OUTPUT, Ending.SIGNAL})
EXIT = frozenset({Ending.EXIT})
ANY = frozenset(Ending)


@dataclass(frozen=True)
class Attack:
    """One hostile program and what must be true of it.

    ``ok`` is what ``Finished.ok`` must be: a program that probes runs to its end, one that takes
    too much does not; None where both are fine.
    """

    name: str
    means: str  # what contained means here, besides what is true of all
    source: str | bytes
    ends: frozenset[Ending] = EXIT
    ok: bool | None = True
    code: int | None = None  # the exit code or the signal that must be reported
    shows: bytes | None = None  # the exact stdout
    limits: Limits = QUICK
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict)
    bare: bool = False  # the source as it stands, without the prologue
    argv: tuple[str, ...] = ("python3", "main.py")
    within_s: float | None = None  # less than the limits would allow

    @property
    def attempts(self) -> int:
        """Calls of attempt() that the program must report (those in a loop count once)."""
        return 0 if isinstance(self.source, bytes) else self.source.count("attempt(")

    def program(self, host: Mapping[str, object]) -> Program:
        """``host["mark"]`` is on the command line of everything that the program forks."""
        source = self.source if isinstance(self.source, bytes) else self.source.encode()
        if not self.bare:
            source = PROLOGUE.replace("@HOST@", json.dumps(host)).encode() + source
        argv = (*self.argv, str(host["mark"]))
        return Program(argv, {"main.py": source, **self.files}, self.stdin, self.limits)


# The guard: should a backend fail to isolate at all, the worst programs must not run on the host.
PROLOGUE = r'''
import ctypes, errno, json, os, resource, signal, socket, stat, struct, subprocess, sys
import threading, time
HOST = json.loads(r"""@HOST@""")
LIBC = ctypes.CDLL(None, use_errno=True)
try:
    if os.readlink("/proc/self/ns/pid") == HOST["pid_namespace"]:
        print("ESCAPED the host's own pid namespace", flush=True)
        os._exit(99)
except OSError:
    pass

def attempt(label, action):
    """Print whether ``action`` gave evidence that it worked; an error or nothing is a block."""
    try:
        evidence = action()
    except BaseException as error:
        print("blocked", label, repr(error)[:120], flush=True)
        return
    if evidence is None or evidence is False:
        print("blocked", label, repr(evidence), flush=True)
    else:
        print("ESCAPED", label, repr(evidence)[:300], flush=True)

def in_child(action, wait_s=1.5):
    """What ``action`` returns in a forked process; None where it died or took too long."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            evidence = action()
        except BaseException:
            evidence = None
        os.write(write, repr(evidence).encode()[:200])
        os._exit(0)
    os.close(write)
    import select
    if not select.select([read], [], [], wait_s)[0]:
        os.kill(child, signal.SIGKILL)
    said = os.read(read, 200).decode()
    os.waitpid(child, 0)
    return None if said in ("", "None", "False") else said

NUMBERS = dict(
    keyctl=250, add_key=248, request_key=249, io_uring_setup=425, userfaultfd=323, bpf=321,
    perf_event_open=298, kexec_load=246, init_module=175, finit_module=313, unshare=272, setns=308,
    mount=165, umount2=166, pivot_root=155, chroot=161, fsopen=430, open_tree=428, ptrace=101,
    process_vm_readv=310, pidfd_open=434, pidfd_getfd=438, open_by_handle_at=304,
    name_to_handle_at=303, fanotify_init=300, memfd_create=319, shmget=29, msgget=68, semget=64,
    mq_open=240, settimeofday=164, clock_settime=227, sethostname=170, syslog=103, iopl=172,
    ioperm=173, swapon=167, reboot=169, quotactl=179, acct=163, ioprio_set=251,
    sched_setscheduler=144, clone=56, move_pages=279, kcmp=312, shmat=30, msgsnd=69,
)

def syscall(name, *arguments):
    """By number, past every wrapper. Raises OSError."""
    ctypes.set_errno(0)
    LIBC.syscall.restype = ctypes.c_long
    passed = [ctypes.c_long(one) if isinstance(one, int) else one for one in arguments]
    returned = LIBC.syscall(ctypes.c_long(NUMBERS[name]), *passed)
    if returned == -1:
        raise OSError(ctypes.get_errno(), name + ": " + os.strerror(ctypes.get_errno()))
    return returned

def works(name, *arguments):
    syscall(name, *arguments)
    return name + " worked"

def others():
    """Every process that can be seen, but this one."""
    return [int(one) for one in os.listdir("/proc") if one.isdigit() and int(one) != os.getpid()]

def writable_folders(depth=5):
    found, queue = [], [("/", 0)]
    while queue:
        folder, level = queue.pop()
        if os.access(folder, os.W_OK | os.X_OK):
            found.append(folder)
        if level == depth:
            continue
        try:
            inside = list(os.scandir(folder))
        except OSError:
            continue
        for one in inside:
            if one.path not in ("/proc", "/sys") and one.is_dir(follow_symlinks=False):
                queue.append((one.path, level + 1))
    return found

'''

# Prints all that an earlier program could have changed for a later one. Its output after an
# attack must be what it was before any, byte for byte.
CANARY = r"""
import hashlib, json, os, resource, signal, sys
seen = {"digest": hashlib.sha256(sys.stdin.buffer.read()).hexdigest(), "argv": sys.argv}
seen["cwd"] = sorted(os.listdir("."))
seen["main"] = hashlib.sha256(open("main.py", "rb").read()).hexdigest()
seen["environment"] = dict(os.environ)
seen["limits"] = {
    name: resource.getrlimit(getattr(resource, name))
    for name in sorted(dir(resource)) if name.startswith("RLIMIT_")
}
seen["nice"] = os.nice(0)
seen["affinity"] = len(os.sched_getaffinity(0))
seen["umask"] = os.umask(0o22)
seen["root"] = 0 in (os.getuid(), os.geteuid(), os.getgid(), *os.getgroups())
seen["path"] = sys.path
seen["custom"] = sorted({"sitecustomize", "usercustomize", "conftest"} & set(sys.modules))
seen["signals"] = [
    line for line in open("/proc/self/status").read().splitlines()
    if line.startswith(("Sig", "Shd", "NoNewPrivs", "Cap", "Seccomp"))
    and not line.startswith(("SigQ", "SigPnd", "ShdPnd"))
]
seen["fds"] = sorted(set(os.listdir("/proc/self/fd")) - {"3"})
seen["ipc"] = {
    name: open("/proc/sysvipc/" + name).read().count("\n")
    for name in ("shm", "msg", "sem") if os.path.exists("/proc/sysvipc/" + name)
}
seen["processes"] = sorted(
    open("/proc/%s/cmdline" % one, "rb").read().replace(b"\0", b" ").decode()[:60]
    for one in os.listdir("/proc") if one.isdigit() and int(one) != os.getpid()
)
def listing(top):
    for folder, folders, files in os.walk(top):
        yield from (os.path.join(folder, one) for one in folders + files)
seen["temporary"] = sorted(
    ascii(one) for top in ("/tmp", "/var/tmp", "/dev/shm", "/run", "/var/lock", "/dev/mqueue")
    if not os.getcwd().startswith(top) for one in listing(top)
)
home = os.path.expanduser("~")
seen["home"] = sorted(os.listdir(home)) if os.path.isdir(home) and home != os.getcwd() else []
above = os.path.dirname(os.getcwd())
try:
    seen["above"] = sorted(os.listdir(above))
except OSError as error:
    seen["above"] = repr(error)
print(json.dumps(seen, sort_keys=True))
"""
CANARY_STDIN = b"canary\x00\r\n\xff" * 100


def canary() -> Program:
    limits = Limits(wall_s=10.0, cpu_s=10.0)
    return Program(("python3", "main.py"), {"main.py": CANARY.encode()}, CANARY_STDIN, limits)
