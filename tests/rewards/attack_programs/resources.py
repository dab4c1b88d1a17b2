"""Taking too much: processes, memory, output, disk, inodes, CPU, time, descriptors."""

from rewards.sandbox.protocol import MEBIBYTE, Ending, Limits
from tests.rewards.attacks import EXIT, KILLED, SHORT, SPIN, Attack

FULL = Limits(wall_s=5.0, cpu_s=4.0, output_bytes=64 * 1024)  # the default sizes
NOT_OK = KILLED | EXIT

ATTACKS = (
    Attack(
        "fork_bomb",
        "as many processes as allowed, all gone afterwards",
        "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass\n",
        ends=KILLED,
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "fork_bomb_in_bash",
        "as many processes as allowed, all gone afterwards",
        "bomb() { bomb | bomb & }; bomb; sleep 20",
        ends=NOT_OK,
        ok=None,
        limits=SHORT,
        bare=True,
        argv=("bash", "main.py"),
    ),
    Attack(
        "fork_bomb_of_orphans",
        "a bomb whose every process has lost its parent",
        """
while True:
    try:
        if os.fork():
            os.setsid() if os.getpid() != os.getsid(0) else None
            os._exit(0) if os.getppid() == 1 else None
    except OSError:
        pass
""",
        ends=NOT_OK,
        ok=None,
        limits=SHORT,
    ),
    Attack(
        "too_many_processes",
        "no more processes than the limit says",
        """
def children():
    count = 0
    for _ in range(200):
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
        count += 1
        if count > 32:
            return count
attempt("more processes than 32", children)
os._exit(0)
""",
        within_s=15.0,
    ),
    Attack(
        "too_many_threads",
        "threads count as processes",
        """
def threads():
    threading.stack_size(65536)
    count = 0
    for _ in range(200):
        threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        count += 1
        if count > 32:
            return count
attempt("more threads than 32", threads)
sys.stdout.flush()
os._exit(0)
""",
        within_s=15.0,
    ),
    Attack(
        "memory_bomb",
        "killed or refused, and nothing else on the machine is",
        "kept = []\nwhile True:\n    kept.append(bytearray(8 << 20))\n",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_bomb_in_one_object",
        "killed or refused",
        "kept = b'x' * (6 << 30)\nprint(len(kept))\n",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_bomb_that_goes_on",
        "a program that catches MemoryError for ever is ended",
        """
kept = []
while True:
    try:
        kept.append(bytearray(1 << 20))
    except MemoryError:
        pass
""",
        ends=KILLED,
        ok=False,
        limits=Limits(wall_s=3.0, cpu_s=3.0, memory_bytes=128 * MEBIBYTE, processes=32),
    ),
    Attack(
        "memory_of_many_processes",
        "the memory limit holds for all processes together",
        """
ready, write = os.pipe()
for _ in range(8):
    if os.fork() == 0:
        kept = bytearray(os.urandom(1 << 20)) * 64
        os.write(write, b"x")
        time.sleep(20)
        os._exit(0)
def held():
    os.close(write)
    count = 0
    while os.read(ready, 1):
        count += 1
        if count * 64 >= 384:
            return "%d MiB at once with a limit of 256" % (count * 64)
attempt("memory of processes is not added up", held)
os._exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_shared_by_mmap",
        "shared pages count as well",
        """
import mmap
kept = []
while True:
    area = mmap.mmap(-1, 32 << 20)
    for i in range(0, 32 << 20, 4096):
        area[i] = 1
    kept.append(area)
""",
        ends=KILLED | EXIT,
        ok=False,
        limits=Limits(
            wall_s=8.0, cpu_s=6.0, memory_bytes=128 * MEBIBYTE, processes=32, output_bytes=65536
        ),
    ),
    Attack(
        "memory_in_memfd",
        "pages of an anonymous file count as well",
        """
kept = []
def fill():
    total = 0
    block = bytes(4 << 20)
    while total < 512 << 20:
        kept.append(os.memfd_create("x"))
        for _ in range(8):
            total += os.write(kept[-1], block)
    return "%d MiB" % (total >> 20)
attempt("memory in anonymous files", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_in_pipes",
        "kernel buffers are bounded",
        """
import fcntl
kept = []
def fill():
    total = 0
    for _ in range(2000):
        read, write = os.pipe()
        fcntl.fcntl(write, 1031, 1 << 20)
        os.set_blocking(write, False)
        total += os.write(write, bytes(1 << 20))
        kept.append((read, write))
        if total > 512 << 20:
            return "%d MiB" % (total >> 20)
attempt("memory in pipes", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_in_system_v_segments",
        "memory that belongs to no process counts as well, and the watcher survives",
        """
LIBC.shmat.restype = ctypes.c_void_p
def fill():
    total = 0
    for i in range(200):
        segment = syscall("shmget", 0, 8 << 20, 0o1666)
        at = LIBC.shmat(segment, None, 0)
        if at in (None, ctypes.c_void_p(-1).value):
            return None
        ctypes.memset(at, 1, 8 << 20)
        LIBC.shmdt(ctypes.c_void_p(at))
        total += 8 << 20
        if total > 512 << 20:
            return "%d MiB" % (total >> 20)
attempt("memory in segments", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "memory_in_sockets",
        "buffers of sockets and what is on its way in them are bounded",
        """
kept = []
def fill():
    total = 0
    for _ in range(4000):
        pair = socket.socketpair()
        for one in pair:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
            one.setblocking(False)
            try:
                while True:
                    total += one.send(bytes(1 << 16))
            except BlockingIOError:
                pass
        kept.append(pair)
        if total > 900 << 20:
            return "%d MiB" % (total >> 20)
attempt("memory in sockets", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
        limits=FULL,
    ),
    Attack(
        "memory_while_everybody_is_small",
        "when no process is to blame the program ends, not its watcher",
        """
try:
    open("/proc/self/oom_score_adj", "w").write("0")
except OSError:
    pass
for _ in range(24):
    if os.fork() == 0:
        time.sleep(60)
        os._exit(0)
number = 0
while True:
    for folder in (".", "/dev/shm", "/tmp"):
        number += 1
        try:
            with open("%s/f%d" % (folder, number), "wb") as out:
                out.write(bytes(1 << 20))
        except OSError:
            pass
""",
        ends=KILLED,
        ok=False,
        limits=Limits(wall_s=2.0, cpu_s=2.0, memory_bytes=64 * MEBIBYTE, processes=32),
    ),
    Attack(
        "killed_child_of_an_unharmed_parent",
        "a program whose child was killed for memory did not end well",
        """
child = os.fork()
if child == 0:
    kept = []
    while True:
        kept.append(bytearray(os.urandom(4096)) * 4096)
os.waitpid(child, 0)
print("all is well")
""",
        ends=frozenset({Ending.MEMORY}) | EXIT,
        ok=None,
    ),
    Attack(
        "output_flood",
        "cut at output_bytes and killed",
        "block = b'x' * 65536\nwhile True:\n    os.write(1, block)\n",
        ends=frozenset({Ending.OUTPUT}),
        ok=False,
    ),
    Attack(
        "output_flood_on_stderr",
        "cut at output_bytes and killed",
        "block = b'x' * 65536\nwhile True:\n    os.write(2, block)\n",
        ends=frozenset({Ending.OUTPUT}),
        ok=False,
    ),
    Attack(
        "output_flood_on_both",
        "cut at output_bytes and killed",
        "while True:\n    os.write(1, b'x' * 999)\n    os.write(2, b'y' * 999)\n",
        ends=frozenset({Ending.OUTPUT}),
        ok=False,
    ),
    Attack(
        "output_flood_by_children",
        "the limit is one for all writers",
        """
for _ in range(6):
    if os.fork() == 0:
        while True:
            os.write(1, b"z" * 4096)
time.sleep(60)
""",
        ends=frozenset({Ending.OUTPUT}),
        ok=False,
    ),
    Attack(
        "output_flood_after_exit",
        "a flood by an orphan of a program that exited is bounded and ends",
        """
if os.fork() == 0:
    os.setsid()
    while True:
        os.write(1, b"z" * 65536)
os._exit(0)
""",
        ends=frozenset({Ending.OUTPUT, Ending.EXIT}),
        ok=None,
    ),
    Attack(
        "output_flood_that_ignores_errors",
        "killed, not waited for",
        """
signal.signal(signal.SIGPIPE, signal.SIG_IGN)
while True:
    try:
        os.write(1, b"x" * 65536)
    except OSError:
        pass
""",
        ends=frozenset({Ending.OUTPUT}),
        ok=False,
    ),
    Attack(
        "output_one_below_the_limit",
        "no false alarm: exactly output_bytes on both streams is not a flood",
        "os.write(1, b'x' * 65536)\nos.write(2, b'y' * 65536)\n",
        shows=b"x" * 65536,
    ),
    Attack(
        "disk_flood",
        "no more than disk_bytes in all folders together",
        """
def fill():
    total, names = 0, 0
    for folder in writable_folders():
        try:
            names += 1
            out = open(os.path.join(folder, "flood-%d" % names), "wb", buffering=0)
            while total < 160 << 20:
                total += out.write(bytes(1 << 20))
        except OSError as error:
            print(folder, total >> 20, error)
    return "%d MiB" % (total >> 20) if total > 80 << 20 else None
attempt("more than 64 MiB of files", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
        limits=FULL,
    ),
    Attack(
        "disk_flood_small_limit",
        "the limit of this program, not of the machine",
        """
def fill():
    total = 0
    try:
        for i in range(40):
            with open("flood-%d" % i, "wb", buffering=0) as out:
                total += out.write(bytes(1 << 20))
    except OSError as error:
        print(error)
    return "%d MiB of 16" % (total >> 20) if total > 20 << 20 else None
attempt("more than 16 MiB of files", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "inode_flood",
        "no more than files inodes",
        """
def fill():
    count = 0
    for folder in writable_folders():
        try:
            for i in range(3000):
                os.close(os.open("%s/i%d" % (folder, i), os.O_CREAT | os.O_WRONLY))
                count += 1
        except OSError as error:
            print(folder, count, error)
    return "%d files of 2048" % count if count > 2600 else None
attempt("more inodes than allowed", fill)
sys.exit(1)
""",
        ends=KILLED | EXIT,
        ok=False,
        limits=FULL,
    ),
    Attack(
        "sparse_file",
        "a file of terabytes takes no disk",
        """
try:
    with open("sparse", "wb") as out:
        out.truncate(1 << 41)
except OSError as error:
    print(error)
""",
        ok=None,
        ends=KILLED | EXIT,
    ),
    Attack(
        "fallocate",
        "room on disk cannot be set aside beyond the limit",
        """
def reserve():
    with open("reserved", "wb") as out:
        os.posix_fallocate(out.fileno(), 0, 1 << 30)
        return os.stat("reserved").st_blocks * 512 > 200 << 20 or None
attempt("fallocate", reserve)
""",
        ok=None,
        ends=KILLED | EXIT,
    ),
    Attack(
        "endless_loop",
        "out of CPU time",
        "while True:\n    pass\n",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=SPIN,
    ),
    Attack(
        "endless_loop_in_c",
        "code that never looks at signals is ended as well",
        "import itertools\nsum(itertools.repeat(0))\n",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=SPIN,
    ),
    Attack(
        "endless_power",
        "code that never looks at signals is ended as well",
        "print(9**9**9)\n",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=SPIN,
    ),
    Attack(
        "endless_regular_expression",
        "code that never looks at signals is ended as well",
        "import re\nre.match(r'(a|a)*$', 'a' * 99 + 'b')\n",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=SPIN,
    ),
    Attack(
        "endless_loop_ignoring_every_signal",
        "a caught SIGXCPU changes nothing",
        """
for number in range(1, 65):
    try:
        signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
while True:
    pass
""",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=SPIN,
    ),
    Attack(
        "endless_loop_in_children",
        "the CPU time of children counts, also of those that follow one another",
        """
while True:
    child = os.fork()
    if child == 0:
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        os._exit(0)
    os.waitpid(child, 0)
""",
        ends=frozenset({Ending.CPU, Ending.WALL}),
        ok=False,
        limits=Limits(wall_s=4.0, cpu_s=0.5, processes=32),
    ),
    Attack(
        "endless_loop_in_orphans",
        "the CPU time of processes that lost their parent counts too",
        """
while True:
    if os.fork() == 0:
        if os.fork() == 0:
            end = time.process_time() + 0.1
            while time.process_time() < end:
                pass
            os._exit(0)
        os._exit(0)
    os.wait()
    time.sleep(0.1)
""",
        ends=frozenset({Ending.CPU}),
        ok=False,
        limits=Limits(wall_s=20.0, cpu_s=0.5, processes=32),
    ),
    Attack(
        "endless_loops_side_by_side",
        "the CPU time of children counts, added up",
        """
for _ in range(8):
    if os.fork() == 0:
        while True:
            pass
time.sleep(60)
""",
        ends=frozenset({Ending.CPU, Ending.WALL}),
        ok=False,
        limits=Limits(wall_s=4.0, cpu_s=0.5, processes=32),
    ),
    Attack(
        "sleep",
        "out of wall time",
        "time.sleep(600)\n",
        ends=frozenset({Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "sleep_ignoring_sigterm",
        "out of wall time, with no grace to be had",
        """
for number in range(1, 65):
    try:
        signal.signal(number, lambda *_: print("still here", flush=True))
    except (OSError, ValueError):
        pass
while True:
    try:
        time.sleep(600)
    except BaseException:
        pass
""",
        ends=frozenset({Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "sleep_with_all_signals_blocked",
        "out of wall time",
        """
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(600)
""",
        ends=frozenset({Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "sleep_without_any_descriptor",
        "end of output is not end of program",
        "os.closerange(0, 4096)\ntime.sleep(600)\n",
        ends=frozenset({Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "slow_output",
        "a drip of output does not put the deadline off",
        "while True:\n    print('.', end='', flush=True)\n    time.sleep(0.05)\n",
        ends=frozenset({Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
    Attack(
        "descriptor_exhaustion",
        "its own descriptors run out, nobody else's",
        """
def hoard():
    count = 0
    for _ in range(200000):
        os.open("main.py", os.O_RDONLY)
        count += 1
    return count
attempt("descriptors without end", hoard)
os._exit(0)
""",
    ),
    Attack(
        "huge_arguments",
        "the kernel's limit, and no harm",
        """
try:
    os.execv(sys.executable, [sys.executable, "-c", "1"] + ["x" * 100000] * 200)
except (OSError, MemoryError) as error:
    print(error)
""",
    ),
    Attack(
        "deep_recursion",
        "a crash of the program's own",
        """
sys.setrecursionlimit(10**9)
threading.stack_size(1 << 26)
def down(n):
    return down([n])
down(0)
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "raised_limits",
        "no limit can be lifted",
        """
def lift():
    lifted = []
    for name in dir(resource):
        if name.startswith("RLIMIT_"):
            kind = getattr(resource, name)
            soft, hard = resource.getrlimit(kind)
            if hard == resource.RLIM_INFINITY:
                continue
            for new in (resource.RLIM_INFINITY, hard + 1):
                try:
                    resource.setrlimit(kind, (new, new))
                    lifted.append(name)
                except (OSError, ValueError):
                    pass
    return lifted or None
attempt("raise a hard limit", lift)
""",
    ),
    Attack(
        "priority",
        "no place before others",
        """
attempt("nice", lambda: os.nice(-5) < os.nice(0) or None)
attempt("real-time scheduling", lambda: works(
    "sched_setscheduler", 0, 1, ctypes.byref(ctypes.c_int(10))))
attempt("real-time disk", lambda: works("ioprio_set", 1, 0, (1 << 13) | 0))
""",
    ),
    Attack(
        "mlock_everything",
        "locked memory is within the memory limit",
        """
LIBC.mlockall(3)
kept = []
while True:
    kept.append(bytearray(16 << 20))
""",
        ends=KILLED | EXIT,
        ok=False,
    ),
    Attack(
        "alarms_and_timers",
        "a program's own timers are its own affair",
        "signal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(20)\n",
        ends=frozenset({Ending.SIGNAL}),
        code=14,
        ok=False,
    ),
    Attack(
        "starved_by_affinity",
        "pinning to one core does not stop the watcher",
        """
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
for _ in range(16):
    if os.fork() == 0:
        break
while True:
    pass
""",
        ends=frozenset({Ending.CPU, Ending.WALL}),
        ok=False,
        limits=SHORT,
    ),
)
