"""Reading and writing what is not the program's, and making its own folder hard to clean."""

from rewards.sandbox.protocol import Limits
from tests.rewards.attacks import EXIT, KILLED, Attack

ROOMY = Limits(wall_s=8.0, cpu_s=6.0, output_bytes=64 * 1024)

ATTACKS = (
    Attack(
        "reads_files_of_the_host",
        "the host's files are not there",
        """
def read(path):
    if os.path.isdir(path):
        return os.listdir(path) or None
    return open(path, "rb").read(64) or None
attempt("a secret file", lambda: read(HOST["secret_file"]))
attempt("the checkout", lambda: read(HOST["checkout"]))
attempt("the home", lambda: read(HOST["home"]))
attempt("/root", lambda: read("/root") if "/root" != os.getcwd() else None)
attempt("/etc/shadow", lambda: read("/etc/shadow"))
attempt("/etc/ssh", lambda: read("/etc/ssh"))
attempt("ssh keys", lambda: read(os.path.expanduser("~/.ssh")))
attempt("cloud keys", lambda: read(os.path.expanduser("~/.aws")))
attempt("docker's data", lambda: read("/var/lib/docker"))
attempt("logs", lambda: [one for one in os.listdir("/var/log") if one == "syslog"] or None)
attempt("the host's folder of the witness", lambda: read(HOST["witness"]))
""",
    ),
    Attack(
        "names_of_the_host",
        "neither its name nor its people",
        """
attempt("host name", lambda: HOST["hostname"] if HOST["hostname"] in (
    socket.gethostname(), os.uname().nodename,
    open("/proc/sys/kernel/hostname").read().strip()) else None)
attempt("host name in files", lambda: HOST["hostname"] if any(
    HOST["hostname"] in open(path).read() for path in ("/etc/hostname", "/etc/hosts")
    if os.path.exists(path)) else None)
attempt("paths in mounts", lambda: [line for line in open("/proc/self/mountinfo")
    if HOST["checkout"] in line or HOST["home"] + "/" in line] or None)
attempt("kernel messages", lambda: open("/dev/kmsg").fileno())
attempt("kernel messages by syscall", lambda: syscall(
    "syslog", 3, ctypes.create_string_buffer(64), 64) or None)
attempt("physical memory", lambda: open("/proc/kcore", "rb").read(4) or None)
""",
    ),
    Attack(
        "environment_of_the_host",
        "neither its own nor anybody's has a secret; the test looks for it in the output",
        """
print(dict(os.environ))
for one in ("self", *others()):
    for name in ("environ", "cmdline"):
        try:
            print(open("/proc/%s/%s" % (one, name), "rb").read()[:4000])
        except OSError:
            pass
attempt("variables of the host", lambda: [one for one in os.environ if one.startswith(
    ("REWARD_TEST", "PYTEST", "VIRTUAL_ENV", "SSH_", "AWS_", "HF_", "OPENAI"))] or None)
""",
    ),
    Attack(
        "writes_outside",
        "nothing outside its folder and its temporary ones changes",
        """
def write(path):
    with open(path, "w") as out:
        out.write("import posix")
    return path
attempt("the host's folder", lambda: write(HOST["witness"] + "/written"))
attempt("the checkout", lambda: write(HOST["checkout"] + "/written-" + HOST["mark"]))
for folder in ("/", "/etc", "/usr", "/usr/bin", "/usr/local/bin", "/bin", "/lib", "/opt", "/root",
               "/boot", "/srv", os.path.dirname(os.__file__), os.path.dirname(sys.executable)):
    attempt("write " + folder, lambda: write(folder + "/written-" + HOST["mark"]))
for path in (os.__file__, sys.executable, "/etc/passwd", "/etc/ld.so.preload", "/etc/resolv.conf"):
    attempt("overwrite " + path, lambda: open(path, "r+b").fileno())
attempt("remove", lambda: os.unlink(os.__file__) or "removed")
attempt("rename", lambda: os.rename(os.__file__, os.__file__ + "x") or "renamed")
attempt("chmod", lambda: os.chmod(os.__file__, 0o777) or "changed")
attempt("touch", lambda: os.utime(os.__file__) or "changed")
""",
    ),
    Attack(
        "symbolic_links_out",
        "a link leads to the sandbox's own files only",
        """
os.symlink(HOST["secret_file"], "secret")
os.symlink(HOST["witness"], "witness")
os.symlink("/", "root")
os.symlink("/proc/1/root", "root-of-1")
attempt("read by link", lambda: open("secret").read())
attempt("write by link", lambda: open("witness/written", "w").fileno())
attempt("read by link of root", lambda: open("root" + HOST["secret_file"]).read())
attempt("read by process 1", lambda: open("root-of-1" + HOST["secret_file"]).read())
attempt("dot dot", lambda: open("../" * 40 + HOST["secret_file"]).read())
attempt("by the parent", lambda: open(
    "/proc/%d/root%s" % (os.getppid(), HOST["secret_file"])).read())
attempt("by the parent's folder", lambda: os.listdir("/proc/%d/cwd" % os.getppid()) or None)
""",
    ),
    Attack(
        "hard_links_out",
        "no link to a file that is not its own",
        """
attempt("secret", lambda: os.link(HOST["secret_file"], "secret") or "linked")
attempt("interpreter", lambda: os.link(os.path.realpath(sys.executable), "python") or "linked")
attempt("passwd", lambda: os.link("/etc/passwd", "passwd") or "linked")
""",
    ),
    Attack(
        "links_for_the_cleaner",
        "cleaning up follows no link (the witness is looked at from the host)",
        """
for name in ("a", "b/c", "d/e/f"):
    os.makedirs(name, exist_ok=True)
for place in ("a/x", "b/c/x", "d/e/f/x", "x"):
    os.symlink(HOST["witness"], place)
    os.symlink("/usr", place + "usr")
os.symlink(".", "loop")
os.symlink("nowhere", "dangling")
""",
    ),
    Attack(
        "own_folder_replaced",
        "cleaning up follows no link in place of the folder",
        """
here = os.getcwd()
try:
    os.chdir("/")
    os.rename(here, here + "-moved")
    os.symlink("/usr", here)
except OSError as error:
    print(error)
""",
    ),
    Attack(
        "own_folder_removed",
        "the next program gets a new one",
        """
import shutil
here = os.getcwd()
shutil.rmtree(here, ignore_errors=True)
try:
    open(here, "w").close()
except OSError as error:
    print(error)
""",
    ),
    Attack(
        "own_folder_without_permissions",
        "removed all the same",
        """
for name in ("a", "a/b", "a/b/c"):
    os.mkdir(name)
    open(name + "/file", "w").close()
for name in ("a/b/c", "a/b", "a", "."):
    os.chmod(name, 0)
""",
    ),
    Attack(
        "deeper_than_a_path_can_be",
        "removed all the same",
        """
try:
    for _ in range(400):
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
    open("deep", "w").close()
except OSError as error:
    print(error)
""",
    ),
    Attack(
        "deep_and_without_permissions",
        "removed all the same",
        """
held = []
try:
    for _ in range(300):
        os.mkdir("x" * 250)
        held.append(os.open(".", os.O_RDONLY))
        os.chdir("x" * 250)
except OSError as error:
    print(error)
for fd in reversed(held):
    os.fchmod(fd, 0)
""",
    ),
    Attack(
        "names_that_are_not_text",
        "removed all the same",
        """
for name in (b"\\xff\\xfe", b"new\\nline", b"-rf", b"* ?", b"'\\"`$(id)", b" ", b"\\x1b[2J",
             b"\\xed\\xa0\\x80", b"a" * 255, "\\u202e".encode()):
    open(name, "w").close()
    os.mkdir(name + b"d" if len(name) < 255 else b"dd")
""",
    ),
    Attack(
        "fifos_and_sockets_in_place_of_files",
        "nobody opens them: no hang",
        """
for name in ("stdout", "stderr", "result", "result.json", "main.py", "out", "exit_code", "done"):
    if os.path.exists(name):
        os.unlink(name)
    os.mkfifo(name)
socket.socket(socket.AF_UNIX).bind("socket")
for folder in writable_folders():
    try:
        os.mkfifo(os.path.join(folder, "fifo"))
    except OSError:
        pass
""",
    ),
    Attack(
        "device_nodes",
        "no device can be made, and those that are there are harmless",
        """
attempt("memory", lambda: os.mknod("mem", 0o666 | stat.S_IFCHR, os.makedev(1, 1)) or "made")
attempt("disk", lambda: os.mknod("disk", 0o666 | stat.S_IFBLK, os.makedev(254, 0)) or "made")
attempt("devices in /dev", lambda: sorted(set(os.listdir("/dev")) - {
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "shm", "fd",
    "stdin", "stdout", "stderr", "mqueue", "core"}) or None)
""",
    ),
    Attack(
        "setuid",
        "no way up, and nobody special to begin with",
        """
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
attempt("to be root", lambda: os.getuid() == 0 or os.geteuid() == 0 or None)
attempt("to have capabilities", lambda: [status[one] for one in (
    "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb") if int(status[one], 16)] or None)
attempt("to gain privileges", lambda: status["NoNewPrivs"].strip() != "1" or None)
attempt("setuid", lambda: os.setuid(0) or "root")
attempt("setresuid", lambda: os.setresuid(0, 0, 0) or "root")
attempt("setgid", lambda: os.setgid(0) or os.getgid() == 0 and "root")
attempt("setgroups", lambda: os.setgroups([0]) or "root")
""",
    ),
    Attack(
        "setuid_programs",
        "a program with the setuid bit gives nothing",
        """
def effective(path):
    os.execv(path, [path, "-c", "id -u"])
found = []
for folder in ("/bin", "/usr/bin", "/usr/sbin", "/usr/lib/openssh", "/usr/lib/dbus-1.0"):
    if os.path.isdir(folder):
        found += [one.path for one in os.scandir(folder)
                  if one.is_file() and one.stat().st_mode & (stat.S_ISUID | stat.S_ISGID)]
print(len(found))
def root_by_su():
    command = ["su", "root", "-c", "id -u"]
    done = subprocess.run(command, capture_output=True, timeout=1.5, input=b"")
    return done.stdout.strip() == b"0" or None
attempt("su", root_by_su)
def own():
    import shutil
    shutil.copy("/bin/sh", "sh")
    os.chmod("sh", 0o6755)
    done = subprocess.run(["./sh", "-p", "-c", "id -u"], capture_output=True, timeout=1.5)
    return done.stdout.strip() == b"0" or None
attempt("a setuid copy", own)
attempt("a file of root", lambda: os.chown("main.py", 0, 0) or (
    os.stat("main.py").st_uid == 0 and os.getuid() != 0 and "chowned") or None)
""",
    ),
    Attack(
        "plants_for_the_next_program",
        "nothing that was planted is there in the next run",
        """
evil = "print('planted " + HOST["mark"] + "')\\n"
version = "python%d.%d" % sys.version_info[:2]
names = ("sitecustomize.py", "usercustomize.py", "conftest.py", "json.py", "hashlib.py",
         "evil.pth", "pyvenv.cfg", ".bashrc", ".profile", ".pythonrc.py", "python3", "main.py",
         ".local/lib/%s/site-packages/evil.pth" % version,
         ".local/lib/%s/site-packages/sitecustomize.py" % version,
         ".config/planted", "__pycache__/json.cpython-311.pyc", "pytest.ini", "planted")
count = 0
for folder in writable_folders(3):
    for name in names:
        path = os.path.join(folder, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            open(path, "w").write("import sys; " + evil if path.endswith(".pth") else evil)
            os.chmod(path, 0o755)
            count += 1
        except OSError:
            pass
os._exit(0)
""",
        limits=ROOMY,
        ok=None,
    ),
    Attack(
        "plants_in_the_home_of_python",
        "the folders that Python loads code from are not writable",
        """
import site, sysconfig
places = {*sys.path, *sysconfig.get_paths().values(), *site.getsitepackages()}
here = os.getcwd()
def plant():
    planted = []
    for place in sorted(places):
        if place and os.path.realpath(place) != here and not place.startswith(
            (os.path.expanduser("~"), here)):
            try:
                open(os.path.join(place, "evil.pth"), "w").write("import os")
                planted.append(place)
            except OSError:
                pass
    return planted or None
attempt("plant a .pth", plant)
""",
    ),
    Attack(
        "leaves_ipc_behind",
        "System V and POSIX objects are gone in the next run",
        """
def made(name, *arguments):
    try:
        return syscall(name, *arguments)
    except OSError as error:
        print(name, error)
segment = made("shmget", 0x77aa, 1 << 16, 0o1666)
made("msgget", 0x77aa, 0o1666)
made("semget", 0x77aa, 4, 0o1666)
queue = made("mq_open", b"rewardtest", os.O_CREAT | os.O_RDWR, 0o666, 0)
for path in ("/dev/shm/left", "/tmp/left", "/var/tmp/left", "/run/left", "/run/lock/left"):
    try:
        open(path, "w").write("left behind")
    except OSError as error:
        print(error)
os._exit(0)
""",
        ok=None,
    ),
    Attack(
        "finds_ipc_of_another_program",
        "nothing of an earlier or of the host's is found",
        """
attempt("shared memory", lambda: syscall("shmget", 0x77aa, 0, 0) + 1)
attempt("message queue", lambda: syscall("msgget", 0x77aa, 0) + 1)
attempt("semaphores", lambda: syscall("semget", 0x77aa, 0, 0) + 1)
attempt("posix queue", lambda: syscall("mq_open", b"rewardtest", os.O_RDWR, 0, 0))
attempt("files", lambda: [one for one in (
    "/dev/shm/left", "/tmp/left", "/var/tmp/left", "/run/left") if os.path.exists(one)] or None)
attempt("the host's shared memory", lambda: [
    line for line in open("/proc/sysvipc/shm")][1:] or None)
attempt("files in /dev/shm", lambda: os.listdir("/dev/shm") or None)
""",
    ),
    Attack(
        "runs_from_memory",
        "a program without a file has the same limits",
        """
def run():
    fd = os.memfd_create("x", 0)
    os.write(fd, open("/bin/sleep", "rb").read())
    if os.fork() == 0:
        os.setsid()
        os.execve(fd, [HOST["mark"], "600"], {})
try:
    run()
except OSError as error:
    print(error, file=sys.stderr)
print("done")
""",
        shows=b"done\n",
        within_s=15.0,
    ),
    Attack(
        "locks_and_leases",
        "a lock that is held delays nobody",
        """
import fcntl
for path in ("main.py", "/etc/passwd", os.__file__, sys.executable, "/dev/null"):
    try:
        fd = os.open(path, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(fd, 1024, fcntl.F_RDLCK)
    except OSError:
        pass
if os.fork() == 0:
    time.sleep(60)
os._exit(0)
""",
        within_s=15.0,
        limits=ROOMY,
    ),
    Attack(
        "watches_the_folders_of_others",
        "nothing of another program can be seen to happen",
        """
def watch():
    import select
    LIBC.inotify_init1.restype = ctypes.c_int
    fd = LIBC.inotify_init1(os.O_NONBLOCK)
    for folder in ("/tmp", "/", "/dev/shm", "/var/tmp", "/run", os.path.dirname(os.getcwd())):
        LIBC.inotify_add_watch(fd, folder.encode(), 0x300)
    return os.read(fd, 4096) if select.select([fd], [], [], 0.8)[0] else None
attempt("watch", watch)
""",
    ),
    Attack(
        "cannot_be_removed",
        "immutable files need a right that it lacks",
        """
import fcntl
def freeze():
    fd = os.open("main.py", os.O_RDONLY)
    fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x10))
    return "immutable"
attempt("immutable", freeze)
""",
        ends=EXIT | KILLED,
        ok=None,
    ),
)
