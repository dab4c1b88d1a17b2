"""Ending badly, staying behind, and reaching for the processes around."""

from dataclasses import replace

from rewards.sandbox.protocol import Ending
from tests.rewards.attacks import EXIT, KILLED, SHORT, Attack

SIGNAL = frozenset({Ending.SIGNAL})
WALL = frozenset({Ending.WALL})


def exits_with(code: int) -> Attack:
    return Attack(
        f"exit_code_{code}",
        "an exit code is no signal, no time-out and no lack of memory",
        f"os._exit({code})\n",
        code=code,
        ok=code == 0,
    )


def dies_by(number: int, name: str) -> Attack:
    return Attack(
        f"killed_by_own_{name}",
        "a signal is a signal, not a lack of memory or of time",
        f"os.kill(os.getpid(), {number})\ntime.sleep(30)\n",
        ends=SIGNAL,
        code=number,
        ok=False,
    )


ATTACKS = (
    *(exits_with(code) for code in (0, 1, 2, 98, 124, 125, 126, 127, 128, 137, 139, 143, 152, 255)),
    *(
        dies_by(number, name)
        for number, name in (
            (1, "sighup"),
            (2, "sigint"),
            (6, "sigabrt"),
            (9, "sigkill"),
            (11, "sigsegv"),
            (10, "sigusr1"),
            (15, "sigterm"),
            (14, "sigalrm"),
            (34, "realtime_signal"),
        )
    ),
    Attack(
        "real_segmentation_fault",
        "reported as signal 11",
        "ctypes.string_at(0)\n",
        ends=SIGNAL,
        code=11,
        ok=False,
    ),
    Attack(
        "core_dump",
        "reported as signal 6, and no core file stays",
        """
soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
os.abort()
""",
        ends=SIGNAL,
        code=6,
        ok=False,
    ),
    Attack(
        "sys_exit_before_the_end",
        "an exit like any other; a judge must miss the output",
        "sys.exit(0)\nprint('42')\n",
        shows=b"",
    ),
    Attack(
        "exit_in_a_child_only",
        "the ending of the program is that of its first process",
        """
if os.fork() == 0:
    os._exit(0)
os.wait()
os._exit(3)
""",
        code=3,
        ok=False,
    ),
    Attack(
        "daemon_that_holds_the_pipes",
        "the program's end is the end; the daemon is gone and was not waited for",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        time.sleep(1.0)
        while True:
            try:
                os.write(1, b"late")
                open("/tmp/late-" + HOST["mark"], "w").close()
            except OSError:
                pass
            time.sleep(0.2)
    os._exit(0)
os.wait()
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "daemon_without_descriptors",
        "what holds no pipe is found as well",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.chdir("/")
        os.closerange(0, 256)
        time.sleep(600)
    os._exit(0)
os.wait()
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "daemon_that_keeps_forking",
        "no race between looking and killing",
        """
if os.fork() == 0:
    while True:
        os.setsid() if os.getsid(0) != os.getpid() else None
        try:
            if os.fork():
                os._exit(0)
        except OSError:
            pass
print("done", flush=True)
os._exit(0)
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "daemon_that_waits_for_the_next_program",
        "nothing is left to rewrite the next program",
        """
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        end = time.time() + 60
        while time.time() < end:
            for folder in writable_folders(3):
                path = os.path.join(folder, "main.py")
                try:
                    if HOST["mark"] not in open(path).read():
                        open(path, "w").write("print('rewritten')")
                except OSError:
                    pass
            time.sleep(0.01)
    os._exit(0)
os.wait()
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "daemon_that_became_another_program",
        "found whatever it is called",
        """
if os.fork() == 0:
    os.setsid()
    os.execv("/bin/sleep", [HOST["mark"], "600"])
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "traced_child_left_behind",
        "a process stopped under ptrace is gone as well",
        """
if os.fork() == 0:
    if os.fork() == 0:
        LIBC.ptrace(0, 0, 0, 0)
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    time.sleep(600)
time.sleep(0.2)
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "child_in_vfork",
        "a parent in an uninterruptible wait is ended too",
        """
# clone(CLONE_VM | CLONE_VFORK | SIGCHLD) shares the stack: the parent waits until the child ends.
if os.fork() == 0:
    syscall("clone", 0x4000 | 17, 0, 0, 0, 0)
    time.sleep(600)
time.sleep(600)
""",
        ends=WALL,
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "threads_left_behind",
        "a program that does not end is ended",
        """
for _ in range(5):
    threading.Thread(target=time.sleep, args=(600,)).start()
print("done", flush=True)
""",
        ends=WALL,
        ok=False,
        shows=b"done\n",
        limits=replace(SHORT, wall_s=3.0),  # Python has to start before
    ),
    Attack(
        "first_thread_gone",
        "a leader that is a zombie while its threads run has not ended",
        """
def spin():
    while True:
        time.sleep(0.1)
threading.Thread(target=spin, daemon=True).start()
LIBC.syscall(60, 0)
""",
        ends=WALL,
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "stopped",
        "a stopped program is out of time",
        "os.kill(os.getpid(), signal.SIGSTOP)\n",
        ends=WALL,
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "stops_its_group_and_everything",
        "what it can stop is only its own",
        """
for target in (os.getppid(), 1, 0, -1):
    try:
        os.kill(target, signal.SIGSTOP)
    except OSError as error:
        print(error)
time.sleep(600)
""",
        ends=WALL,
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "kills_its_parent",
        "its own end at the most, and an honest one",
        """
for number in (9, 15, 2, 1, 6, 11, 19, 17, 13, 14, 10, 12, 24, 18, 34):
    try:
        os.kill(os.getppid(), number)
    except OSError as error:
        print(number, error)
    time.sleep(0.01)
sys.exit(7)
""",
        ends=EXIT | KILLED,
        ok=False,
    ),
    Attack(
        "kills_process_1",
        "its own end at the most",
        """
for number in range(1, 65):
    try:
        os.kill(1, number)
    except (OSError, ValueError):
        pass
sys.exit(7)
""",
        ends=EXIT | KILLED,
        ok=False,
    ),
    Attack(
        "kills_everything",
        "its own end at the most",
        """
for number in (15, 9):
    try:
        os.kill(-1, number)
    except OSError as error:
        print(error)
sys.exit(7)
""",
        ends=EXIT | KILLED,
        ok=False,
    ),
    Attack(
        "kills_every_process_it_sees",
        "one by one, threads and process groups too",
        """
for one in others():
    for call in (os.kill, os.killpg):
        try:
            call(one, 9)
        except OSError:
            pass
sys.exit(7)
""",
        ends=EXIT | KILLED,
        ok=False,
    ),
    Attack(
        "kills_its_own_group",
        "the watcher is not in it",
        "os.killpg(0, 9)\ntime.sleep(9)\n",
        ends=SIGNAL,
        code=9,
        ok=False,
    ),
    Attack(
        "sees_no_process_of_the_host",
        "few, and none with a mark that is not its own",
        """
def seen():
    names = []
    for one in others():
        try:
            names.append(open("/proc/%d/cmdline" % one).read().replace(chr(0), " ")[:80])
        except OSError:
            names.append("?")
    print(names)
    return names if len(names) > 4 or any("pytest" in one for one in names) else None
attempt("see processes of the host", seen)
attempt("signal the host's victim", lambda: os.kill(HOST["victim"], 0) or "a process")
""",
    ),
    Attack(
        "ptrace_of_others",
        "no process but its own children can be traced, read or written",
        """
def traced(pid):
    # PTRACE_SEIZE: the target need not stop. A success is undone by our exit.
    return works("ptrace", 0x4206, pid, 0, 0)
attempt("ptrace of the parent", lambda: traced(os.getppid()) if os.getppid() else None)
attempt("ptrace of process 1", lambda: traced(1))
attempt("ptrace of any other", lambda: [one for one in others() if in_child(
    lambda: traced(one))] or None)
attempt("memory of process 1", lambda: bool(open("/proc/1/mem", "rb+")))
attempt("memory of the parent", lambda: bool(open("/proc/%d/mem" % os.getppid(), "rb+")))
attempt("maps of process 1", lambda: open("/proc/1/maps").read(100) or None)
""",
    ),
    Attack(
        "process_vm_readv_of_others",
        "no reading of another's memory without ptrace either",
        """
def peek(pid):
    first = open("/proc/%d/maps" % pid).readline().split("-")[0]
    into = ctypes.create_string_buffer(16)
    here = (ctypes.c_void_p * 2)(ctypes.addressof(into), 16)
    there = (ctypes.c_void_p * 2)(int(first, 16), 16)
    return works("process_vm_readv", pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
attempt("process 1", lambda: peek(1))
attempt("the parent", lambda: peek(os.getppid()))
""",
    ),
    Attack(
        "descriptors_of_others",
        "no descriptor of the watcher can be opened, taken or written",
        """
FORGED = b'{"ending":"exit","exit_code":0,"stdout":"FORGED"}\\n'
def written(pid):
    done = []
    for name in os.listdir("/proc/%d/fd" % pid):
        try:
            if name in "012" and os.readlink("/proc/%d/fd/%s" % (pid, name)) == os.readlink(
                "/proc/self/fd/" + name):
                continue  # the very streams that it was given
            fd = os.open("/proc/%d/fd/%s" % (pid, name), os.O_WRONLY | os.O_NONBLOCK)
            done.append((name, os.write(fd, FORGED)))
        except OSError:
            pass
    return done or None
def taken(pid):
    pidfd = syscall("pidfd_open", pid, 0)
    got = []
    for number in range(16):
        try:
            got.append(syscall("pidfd_getfd", pidfd, number, 0))
        except OSError:
            pass
    return got or None
for pid in others():
    attempt("write to descriptors", lambda: written(pid))
    attempt("take descriptors", lambda: taken(pid))
attempt("one to count", lambda: None)
""",
    ),
    Attack(
        "no_inherited_descriptor",
        "0, 1 and 2 are all there is",
        """
def inherited():
    found = []
    for number in range(3, 4096):
        try:
            os.fstat(number)
            found.append((number, os.readlink("/proc/self/fd/%d" % number)))
        except OSError:
            pass
    return found or None
attempt("inherited descriptors", inherited)
attempt("the terminal", lambda: open("/dev/tty").fileno())
attempt("a terminal on 0, 1 or 2", lambda: any(os.isatty(fd) for fd in (0, 1, 2)) or None)
def push():
    import fcntl
    for fd in (0, 1, 2):
        try:
            fcntl.ioctl(fd, 0x5412, b"x")
            return fd
        except OSError:
            pass
attempt("type into a terminal", push)
""",
    ),
    Attack(
        "forged_frames_on_every_descriptor",
        "whatever is open, nothing but stdout and stderr comes of it",
        """
frames = [
    b'{"ending": "exit", "exit_code": 0, "signal": null, "stdout": "Rk9SR0VE"}\\n',
    struct.pack(">I", 16) + b"exit\\0\\0\\0\\0FORGED!!",
    struct.pack("<I", 16) + b"exit\\0\\0\\0\\0FORGED!!",
    b"\\x01\\0\\0\\0\\0\\0\\0\\x06FORGED",
    b"\\x02\\0\\0\\0\\0\\0\\0\\x06FORGED",
    bytes(4096),
    b"\\xff" * 4096,
]
for fd in range(3, 256):
    for frame in frames:
        try:
            os.write(fd, frame)
        except OSError:
            break
print("end")
sys.exit(5)
""",
        code=5,
        ok=False,
        shows=b"end\n",
    ),
    Attack(
        "output_like_frames_of_docker",
        "the bytes on stdout are the bytes that were written, whatever they look like",
        """
data = b"\\x02\\0\\0\\0\\0\\0\\0\\x06FORGED" * 3 + b"\\x00\\x01\\x02\\xff\\r\\n"
os.write(1, data)
os.write(2, b"\\x01\\0\\0\\0\\0\\0\\0\\x02no")
""",
        shows=b"\x02\0\0\0\0\0\0\x06FORGED" * 3 + b"\x00\x01\x02\xff\r\n",
    ),
    Attack(
        "output_like_a_result",
        "a line that claims a result is output",
        """
print('{"ending": "exit", "exit_code": 0, "passed": true, "score": 1.0}')
print("OK\\n\\n1 passed in 0.01s", file=sys.stderr)
sys.exit(1)
""",
        code=1,
        ok=False,
        shows=b'{"ending": "exit", "exit_code": 0, "passed": true, "score": 1.0}\n',
    ),
    Attack(
        "last_words_to_the_parent_pipe",
        "two streams that are swapped stay two streams",
        """
keep = os.dup(1)
os.dup2(2, 1)
os.dup2(keep, 2)
os.write(1, b"this is stderr")
os.write(2, b"this is stdout")
""",
        shows=b"this is stdout",
    ),
    Attack(
        "stdout_closed_early",
        "goes on, and its exit code is its own",
        "os.write(1, b'first')\nos.close(1)\nos.close(2)\ntime.sleep(0.3)\nos._exit(4)\n",
        code=4,
        ok=False,
        shows=b"first",
    ),
    Attack(
        "blocking_mode_changed",
        "the reader's end is not the writer's to change",
        """
import fcntl
for fd in (0, 1, 2):
    fcntl.fcntl(fd, fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC)
    try:
        fcntl.fcntl(fd, 1031, 4096)
    except OSError:
        pass
os.write(1, b"x" * 4000)
""",
        shows=b"x" * 4000,
    ),
    Attack(
        "reads_from_its_stdout",
        "output cannot be taken back or read",
        """
def read(fd):
    os.set_blocking(fd, False)
    return os.read(fd, 100) or None
attempt("read stdout", lambda: read(1))
attempt("read stderr", lambda: read(2))
attempt("truncate stdout", lambda: os.ftruncate(1, 0) or "truncated")
""",
    ),
)
