"""System calls that an answer to an exercise never needs, and a kernel bug or a way out might."""

from tests.rewards.attacks import EXIT, KILLED, Attack

ATTACKS = (
    Attack(
        "user_namespaces",
        "no namespace of one's own, in which one would be root",
        """
NEW = dict(user=0x10000000, mount=0x20000, pid=0x20000000, net=0x40000000, ipc=0x8000000,
           uts=0x4000000, cgroup=0x2000000, time=0x80)
for name, flag in NEW.items():
    attempt("unshare " + name, lambda: in_child(lambda: works("unshare", flag)))
attempt("unshare user and all", lambda: in_child(lambda: works("unshare", 0x7E020000)))
def cloned():
    child = syscall("clone", NEW["user"] | 17, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return "a child in a user namespace"
attempt("clone into a user namespace", lambda: in_child(cloned))
def cloned3():
    given = struct.pack("11Q", NEW["user"], 0, 0, 0, 17, 0, 0, 0, 0, 0, 0)
    child = LIBC.syscall(435, given, 88)
    if child == 0:
        os._exit(0)
    return child if child > 0 else None
attempt("clone3 into a user namespace", lambda: in_child(cloned3))
attempt("the unshare program", lambda: subprocess.run(
    ["unshare", "-Ur", "id", "-u"], capture_output=True, timeout=1.5).stdout or None)
""",
    ),
    Attack(
        "namespaces_of_others",
        "no namespace can be entered",
        """
def enter(pid, kind):
    return works("setns", os.open("/proc/%d/ns/%s" % (pid, kind), os.O_RDONLY), 0)
for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup"):
    attempt("enter " + kind, lambda: in_child(lambda: enter(1, kind)))
    attempt("enter by the parent " + kind, lambda: in_child(lambda: enter(os.getppid(), kind)))
""",
    ),
    Attack(
        "mounts",
        "the file system is as it was given",
        """
here = os.getcwd().encode()
attempt("tmpfs", lambda: works("mount", b"none", here, b"tmpfs", 0, 0))
attempt("bind", lambda: works("mount", b"/usr", here, 0, 4096, 0))
attempt("remount writable", lambda: works("mount", b"none", b"/", 0, 32 | 4096, 0))
attempt("remount /usr writable", lambda: works("mount", b"none", b"/usr", 0, 32 | 4096, 0))
attempt("proc", lambda: works("mount", b"proc", here, b"proc", 0, 0))
attempt("overlay", lambda: works("mount", b"o", here, b"overlay", 0, b"lowerdir=/usr:/bin"))
attempt("umount /proc", lambda: works("umount2", b"/proc", 2))
attempt("umount a masked file", lambda: works("umount2", b"/proc/kcore", 2))
attempt("umount the work folder", lambda: works("umount2", here, 2))
attempt("pivot_root", lambda: works("pivot_root", b".", b"."))
attempt("chroot", lambda: in_child(lambda: works("chroot", b".")))
attempt("fsopen", lambda: works("fsopen", b"tmpfs", 0))
attempt("open_tree", lambda: works("open_tree", -100, b"/", 1))
attempt("fuse", lambda: os.open("/dev/fuse", os.O_RDWR))
attempt("loop", lambda: os.open("/dev/loop-control", os.O_RDWR))
""",
    ),
    Attack(
        "handles_of_files",
        "no file can be opened past the mount namespace",
        """
def by_handle():
    # The root of most file systems is inode 2 or 128.
    for inode in (2, 128, 256):
        handle = struct.pack("<IiII", 8, 1, inode, 0)
        try:
            fd = syscall("open_by_handle_at", os.open("/", os.O_RDONLY), handle, 0)
            return os.listdir(fd)
        except OSError as error:
            last = error
    raise last
attempt("open_by_handle_at", by_handle)
""",
    ),
    Attack(
        "kernel_settings",
        "nothing under /proc and /sys can be written",
        """
for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/hostname",
             "/proc/sys/vm/overcommit_memory", "/proc/sys/net/ipv4/ip_forward",
             "/proc/sys/kernel/modprobe", "/proc/sysrq-trigger", "/proc/1/oom_score_adj",
             "/proc/sys/fs/binfmt_misc/register", "/proc/sys/vm/drop_caches",
             "/sys/kernel/uevent_helper", "/sys/power/state", "/sys/fs/cgroup/release_agent",
             "/proc/sys/user/max_user_namespaces", "/proc/irq/default_smp_affinity"):
    attempt("write " + path, lambda: open(path, "w").fileno())
attempt("lower its oom score", lambda: open("/proc/self/oom_score_adj", "w").write("-1000") and
    int(open("/proc/self/oom_score_adj").read()) < 0 or None)
attempt("firmware", lambda: os.listdir("/sys/firmware") or None)
""",
    ),
    Attack(
        "control_groups",
        "no control group can be left, changed or made",
        """
def writable():
    found = []
    for folder, folders, files in os.walk("/sys/fs/cgroup"):
        if os.access(folder, os.W_OK):
            found.append(folder)
        for one in files:
            if one in ("cgroup.procs", "tasks", "release_agent", "notify_on_release", "pids.max",
                       "memory.max", "memory.limit_in_bytes", "cgroup.subtree_control"):
                try:
                    os.close(os.open(os.path.join(folder, one), os.O_WRONLY))
                    found.append(os.path.join(folder, one))
                except OSError:
                    pass
        if len(found) > 3:
            break
    return found or None
attempt("write to control groups", writable)
attempt("mount cgroup", lambda: works("mount", b"c", os.getcwd().encode(), b"cgroup", 0, b"pids"))
attempt("mount cgroup2", lambda: works("mount", b"c", os.getcwd().encode(), b"cgroup2", 0, 0))
""",
    ),
    Attack(
        "rights_of_the_administrator",
        "no call that changes the machine",
        """
now = struct.pack("qq", *divmod(time.time_ns(), 10**9))
attempt("set the clock", lambda: works("clock_settime", 0, now))
attempt("set the time of day", lambda: works(
    "settimeofday", struct.pack("qq", int(time.time()), 0), 0))
attempt("set the host name", lambda: works("sethostname", b"x", 1))
attempt("reboot", lambda: works("reboot", 0xFEE1DEAD, 672274793, 0, 0))
attempt("load a module", lambda: works("init_module", b"", 0, b""))
attempt("load a module by file", lambda: works("finit_module", os.open("main.py", 0), b"", 0))
attempt("load a kernel", lambda: works("kexec_load", 0, 0, 0, 0))
attempt("swap", lambda: works("swapon", b"main.py", 0))
attempt("accounting", lambda: works("acct", 0))
attempt("ports", lambda: works("iopl", 3))
attempt("ports one by one", lambda: works("ioperm", 0x80, 1, 1))
attempt("/dev/mem", lambda: os.open("/dev/mem", os.O_RDONLY))
attempt("/dev/kvm", lambda: os.open("/dev/kvm", os.O_RDWR))
""",
    ),
    Attack(
        "parts_of_the_kernel_with_a_history",
        "closed by a filter of system calls",
        """
attempt("io_uring", lambda: works("io_uring_setup", 1, ctypes.create_string_buffer(120)))
attempt("userfaultfd", lambda: works("userfaultfd", 1))
attempt("bpf", lambda: works("bpf", 0, struct.pack("IIIIQ", 2, 4, 4, 1, 0) + bytes(100), 48))
attempt("perf_event_open", lambda: works("perf_event_open", struct.pack(
    "IIQQQQQ", 1, 112, 0, 0, 0, 0, 0x61) + bytes(64), 0, -1, -1, 0))
attempt("add_key", lambda: works("add_key", b"user", b"rewardtest", b"x", 1, -3))
attempt("keyctl", lambda: works("keyctl", 0, -4, 1))
attempt("request_key", lambda: works("request_key", b"user", b"rewardtest", 0, 0))
attempt("fanotify", lambda: works("fanotify_init", 0, 0))
attempt("quotactl", lambda: works("quotactl", 0x800001 << 8, 0, 0, 0))
attempt("move_pages of process 1", lambda: works("move_pages", 1, 0, 0, 0, 0, 0))
""",
    ),
    Attack(
        "another_abi",
        "a filter of system calls that is passed by with 32-bit numbers is none",
        """
import mmap
def by_int80():
    # mov eax, 310 (unshare); mov ebx, CLONE_NEWUSER; int 0x80; the result is in eax.
    code = b"\\x53\\xb8\\x36\\x01\\x00\\x00\\xbb\\x00\\x00\\x00\\x10\\xcd\\x80\\x5b\\xc3"
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(area)))
    return "a user namespace" if call() == 0 else None
attempt("int 0x80", lambda: in_child(by_int80))
attempt("x32", lambda: in_child(lambda: LIBC.syscall(
    0x40000000 | 272, 0x10000000) == 0 and "a user namespace" or None))
""",
    ),
    Attack(
        "own_filter",
        "a filter or a personality of its own harms itself only",
        """
LIBC.prctl(38, 1, 0, 0, 0)
LIBC.prctl(36, 1, 0, 0, 0)
LIBC.prctl(1, 0, 0, 0, 0)
LIBC.personality(0x0040000)
LIBC.prctl(22, 1, 0, 0, 0)
os.getpid()
""",
        ends=KILLED | EXIT,
        ok=None,
    ),
    Attack(
        "own_memory",
        "writing to its own memory is no way to a parent's",
        """
attempt("write into the interpreter on disk", lambda: open("/proc/self/exe", "r+b").fileno())
def dirty():
    import mmap
    with open(os.__file__, "rb") as file:
        area = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)
        maps = [line for line in open("/proc/self/maps") if line.rstrip().endswith("os.py")]
        start = int(maps[0].split("-")[0], 16)
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            memory.write(b"EVIL")
        return open(os.__file__, "rb").read(4) == b"EVIL" or None
attempt("write a file by its private copy", dirty)
""",
    ),
)
