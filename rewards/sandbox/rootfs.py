"""What a program in the bubblewrap sandbox sees of the machine: a read-only toolchain, one tmpfs.

==============  ==================================================================================
/usr, /lib ...  the host's, read-only; with them all installed interpreters and compilers
/etc            a copy of the few files that programs need (``ETC``), and invented users
/opt/...        any further toolchain the host's Python lives in, under its own path, read-only
/proc, /dev     its own processes only; null, zero, full, random, urandom
/box            one tmpfs, the only place to write: work (where the program starts), tmp, shm
/tmp, /dev/shm  links into /box, so that its limits of bytes and inodes hold for all of it
==============  ==================================================================================

No /home, /root, /run, /sys, /var, no terminal, and nothing of the project.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

BOX = "/box"
FOLDERS = ("work", "tmp", "shm")  # of the box
PATH = "/usr/local/bin:/usr/bin:/bin"
UID = GID = "1000"

# Not here: anything with a secret, a host name or a resolver in it.
ETC = ("alternatives", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone")
ETC_PATTERNS = ("java-*", "python3*", "mime.types")
# Of every program's environment, whatever runs it.
SETTINGS = {
    "LANG": "C.UTF-8",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",  # the order of a set must not decide a verdict
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
INVENTED = {
    "passwd": "root:x:0:0:root:/:/bin/false\nsandbox:x:1000:1000:sandbox:/box/work:/bin/sh\n",
    "group": "root:x:0:\nsandbox:x:1000:\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n",
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
}
TOP = ("/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
OWN = ("/etc", "/proc", "/dev", "/tmp", BOX)
DEVICES = ("null", "zero", "full", "random", "urandom")


def check_toolchains(folders: list[str]) -> None:
    """Raises UsageError for one that is none, or would lie where the sandbox has its own."""
    from rewards.errors import UsageError  # the launcher has no use for it

    for folder in folders:
        if not os.path.isdir(folder):
            raise UsageError(f"toolchain {folder!r} is no folder")
        if any(Path(folder).is_relative_to(own) for own in OWN) or folder == "/":
            raise UsageError(f"toolchain {folder!r}: the sandbox has its own {', '.join(OWN)}")


def copy_etc(target: str) -> None:
    """Fill ``target`` with the sandbox's /etc."""
    wanted = [Path("/etc", name) for name in ETC]
    for pattern in ETC_PATTERNS:
        wanted += Path("/etc").glob(pattern)
    os.makedirs(target, exist_ok=True)
    for source in wanted:
        with suppress(OSError, shutil.Error):  # a file that root alone may read is not missed
            if source.is_dir():
                shutil.copytree(source, Path(target, source.name), symlinks=True)
            else:
                shutil.copyfile(source, Path(target, source.name))
    for name, text in INVENTED.items():
        Path(target, name).write_text(text)


def bwrap_arguments(stage: str, toolchains: list[str], *, disable_userns: bool) -> list[str]:
    """Options that are the same for every program. ``stage`` has the folders etc, run and, in
    the order of ``toolchains``, 0, 1, ..."""
    arguments = ["--unshare-user", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
    arguments += ["--unshare-cgroup-try"]  # the pid namespace is made by our init process
    if disable_userns:
        arguments += ["--disable-userns"]
    arguments += ["--uid", UID, "--gid", GID, "--hostname", "sandbox"]
    arguments += ["--new-session", "--cap-drop", "ALL", "--clearenv"]
    for name, value in environment(toolchains).items():
        arguments += ["--setenv", name, value]
    arguments += ["--ro-bind", "/usr", "/usr", "--ro-bind", f"{stage}/etc", "/etc"]
    for folder in TOP:
        if os.path.islink(folder):
            arguments += ["--symlink", os.readlink(folder), folder]
        elif os.path.isdir(folder):
            arguments += ["--ro-bind", folder, folder]
    for i, folder in enumerate(toolchains):
        arguments += ["--ro-bind", f"{stage}/{i}", folder]
    arguments += ["--proc", "/proc", "--perms", "0755", "--tmpfs", "/dev"]
    for device in DEVICES:
        arguments += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    for i, name in enumerate(("stdin", "stdout", "stderr")):
        arguments += ["--symlink", f"/proc/self/fd/{i}", f"/dev/{name}"]
    arguments += ["--symlink", "/proc/self/fd", "/dev/fd", "--bind", f"{stage}/run", BOX]
    arguments += ["--symlink", f"{BOX}/shm", "/dev/shm", "--symlink", f"{BOX}/tmp", "/tmp"]
    return [*arguments, "--remount-ro", "/dev", "--chdir", f"{BOX}/work"]


def environment(toolchains: list[str]) -> dict[str, str]:
    """All of the sandbox's environment; nothing is inherited."""
    return {
        "PATH": ":".join([PATH, *(f"{folder}/bin" for folder in toolchains)]),
        "HOME": f"{BOX}/work",
        "TMPDIR": f"{BOX}/tmp",
        **SETTINGS,
    }


def find(command: str, toolchains: list[str]) -> str | None:
    """Where the sandbox's PATH has ``command``, or None; links out of what it sees do not count."""
    path = environment(toolchains)["PATH"]
    found = shutil.which(command, path=path) if "/" not in command else None
    if found is None:
        return None
    visible = ["/usr", *TOP, *toolchains]
    real = os.path.realpath(found)
    inside = any(Path(real).is_relative_to(os.path.realpath(one)) for one in visible)
    return found if inside else None
