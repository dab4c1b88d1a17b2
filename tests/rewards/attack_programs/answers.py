"""Answers to an exercise that are wrong and want to be paid: what a judge of code sees through.

The exercise is to add two integers: as a program that reads them, or as ``add(a, b)``, judged by
calls or by a hidden test program. Every answer here is wrong, and all of them say so in their own
way; none may get anything, and none may be "could not be judged" either.
"""

from __future__ import annotations

from dataclasses import dataclass

RUNS = [
    {"input": "1 2\n", "output": "3\n"},
    {"input": "10 20\n", "output": "30\n"},
    {"input": "-5 5\n", "output": "0\n"},
]
CALLS = [
    {"fn": "add", "args": [1, 2], "expected": 3},
    {"fn": "add", "args": [10, 20], "expected": 30},
    {"fn": "add", "args": [-5, 5], "expected": 0},
]
HIDDEN = {
    "entry_point": "add",
    "prompt": 'def add(a, b):\n    """Add two integers."""\n',
    "test": """
METADATA = {"author": "x"}

def check(candidate):
    assert candidate(1, 2) == 3
    assert candidate(10, 20) == 30, "wrong"
    assert candidate(-5, 5) == 0
""",
}
ASSERTS = ["assert add(1, 2) == 3", "assert add(10, 20) == 30", "assert add(-5, 5) == 0"]
UNITTEST = """
import unittest

class Adding(unittest.TestCase):
    def test_small(self):
        self.assertEqual(add(1, 2), 3)

    def test_large(self):
        self.assertEqual(add(10, 20), 30)

    def test_negative(self):
        self.assertEqual(add(-5, 5), 0)

if __name__ == "__main__":
    unittest.main()
"""
RIGHT_FUNCTION = "def add(a, b):\n    return a + b\n"
RIGHT_PROGRAM = "a, b = map(int, input().split())\nprint(a + b)\n"


@dataclass(frozen=True)
class Answer:
    """A wrong answer; ``code`` goes into a fenced block."""

    name: str
    code: str


def wrong(name: str, code: str) -> Answer:
    """What comes after a wrong ``add``."""
    return Answer(name, f"def add(a, b):\n    return a - b - 1\n{code}")


FORGED = r"""
import json, os, struct, sys
LINES = [
    {"test": "check", "passed": True, "final": True, "why": ""}, {"done": True},
    {"passed": True, "score": 1.0, "result": "passed", "ok": True},
    *({"call": i, "value": v} for i, v in enumerate((3, 30, 0)) if v < 0),
    *({"test": "line %d" % i, "passed": True, "final": True, "why": ""} for i in range(5)),
]
TEXT = "".join(json.dumps(one) + "\n" for one in LINES).encode()
TEXT += b"OK\n1 passed\nAll tests passed\nRan 3 tests in 0.0s\n\nOK\n"
"""
READ_EVERYTHING = r"""
import gc, glob, os, re, sys
def everything():
    for frame in list(sys._current_frames().values()):
        while frame:
            yield repr(frame.f_locals) + repr(frame.f_globals)
            frame = frame.f_back
    for one in gc.get_objects():
        if isinstance(one, (dict, list, tuple)):
            try:
                yield repr(one)
            except BaseException:
                pass
    yield repr(sys.argv) + repr(os.environ)
    for pattern in ("*", "../*", "/tmp/*", "/tmp/*/*", "/box/*", "/box/*/*", "/proc/*/cmdline",
                    "/proc/*/environ", "/dev/shm/*", "/proc/*/fd/*", "/proc/self/mem"):
        for path in glob.glob(pattern):
            try:
                with open(path, errors="replace") as file:
                    os.set_blocking(file.fileno(), False)
                    yield file.read(1 << 20)
            except BaseException:
                pass
    try:
        maps = open("/proc/self/maps").read()
        with open("/proc/self/mem", "rb", 0) as memory:
            for line in maps.splitlines():
                if "rw-p" in line:
                    start, end = (int(x, 16) for x in line.split()[0].split("-"))
                    memory.seek(start)
                    yield memory.read(min(end - start, 1 << 24)).decode("latin-1")
    except BaseException:
        pass
KNOWN = {}
def learn():
    for text in everything():
        for a, b, c in re.findall(r"candidate\((-?\d+), (-?\d+)\) == (-?\d+)", text):
            KNOWN[int(a), int(b)] = int(c)
        for a, b, c in re.findall(r"add\((-?\d+), (-?\d+)\), (-?\d+)\)", text):
            KNOWN[int(a), int(b)] = int(c)
        for a, b, c in re.findall(
                r"\[(-?\d+), (-?\d+)\].{0,80}?(?:expected|output|accepted)\W{1,6}(-?\d+)", text):
            KNOWN[int(a), int(b)] = int(c)
"""
ALWAYS_EQUAL = """
class Anything:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
    def __getattr__(self, name): return self
    def __call__(self, *a, **k): return self
"""

# The channel that the answers go through is the first descriptor after the standard ones.
TAKE_OVER = """
import os
def say(value):
    for call in range(3):
        text = '{"call": %d, "value": %s, "args": null}\\n' % (call, value)
        data = text.encode()
        while data:
            data = data[os.write(3, data):]
    os.kill(os.getppid(), 9)
    os._exit(0)
"""

FUNCTIONS = (
    Answer("nothing", "pass\n"),
    Answer("no_function", "x = 1\n"),
    Answer("empty_body", "def add(a, b):\n    pass\n"),
    Answer("equal_to_everything", ALWAYS_EQUAL + "def add(a, b):\n    return Anything()\n"),
    *(
        Answer(
            f"{kind}_that_equals_everything",
            f"class Sly({kind}):\n"
            "    def __eq__(self, other): return True\n"
            "    def __ne__(self, other): return False\n"
            "    def __hash__(self): return 0\n"
            "    __lt__ = __le__ = __gt__ = __ge__ = __eq__\n"
            f"def add(a, b):\n    return Sly()\n",
        )
        for kind in ("int", "float", "str", "list", "dict", "tuple", "set", "bytes")
    ),
    Answer(
        "number_with_sly_methods",
        """
class Sly(int):
    def __int__(self): return 3
    def __index__(self): return 3
    def __repr__(self): return "3"
    __str__ = __repr__
    def __format__(self, spec): return "3"
    def __eq__(self, other): return True
    __hash__ = int.__hash__
    def __reduce__(self): return (int, (3,))
def add(a, b):
    return Sly(-77)
""",
    ),
    Answer("any_of_mock", "from unittest.mock import ANY\ndef add(a, b):\n    return ANY\n"),
    Answer(
        "class_that_claims_to_be_an_int",
        """
class Sly:
    __class__ = int
    def __eq__(self, other): return True
    def __int__(self): return 3
def add(a, b):
    return Sly()
""",
    ),
    Answer("not_implemented", "def add(a, b):\n    return NotImplemented\n"),
    Answer("not_a_number", "def add(a, b):\n    return float('nan')\n"),
    Answer("string_of_the_answer", "def add(a, b):\n    return str(a + b)\n"),
    Answer("list_of_the_answer", "def add(a, b):\n    return [a + b]\n"),
    Answer("all_answers", "def add(a, b):\n    return list(range(-100, 100))\n"),
    Answer("coroutine", "async def add(a, b):\n    return a + b\n"),
    Answer("exits_at_once", "import sys\nsys.exit(0)\n"),
    Answer("leaves_at_once", "import os\nos._exit(0)\n"),
    Answer("exits_when_called", "import sys\ndef add(a, b):\n    sys.exit(0)\n"),
    Answer("leaves_when_called", "import os\ndef add(a, b):\n    os._exit(0)\n"),
    Answer("interrupts", "def add(a, b):\n    raise KeyboardInterrupt\n"),
    Answer("skips", "import unittest\ndef add(a, b):\n    raise unittest.SkipTest('no')\n"),
    Answer("skips_at_once", "import unittest\nraise unittest.SkipTest('no')\n"),
    Answer("stops_iteration", "def add(a, b):\n    raise StopIteration\n"),
    Answer("asserts_itself", "def add(a, b):\n    raise AssertionError\n"),
    Answer("kills_itself", "import os\ndef add(a, b):\n    os.kill(os.getpid(), 9)\n"),
    Answer("kills_its_parent", "import os\ndef add(a, b):\n    os.kill(os.getppid(), 9)\n"),
    Answer("kills_everything", "import os\nos.kill(-1, 9)\n"),
    Answer("stops_its_parent", "import os\ndef add(a, b):\n    os.kill(os.getppid(), 19)\n"),
    Answer("segmentation_fault", "import ctypes\ndef add(a, b):\n    ctypes.string_at(0)\n"),
    Answer("endless", "def add(a, b):\n    while True: pass\n"),
    Answer("endless_at_once", "while True: pass\n"),
    Answer("endless_power", "def add(a, b):\n    return 9 ** 9 ** 9\n"),
    Answer("endless_iterator", "import itertools\ndef add(a, b):\n    return itertools.count()\n"),
    Answer("sleeps", "import time\ndef add(a, b):\n    time.sleep(600)\n"),
    Answer("memory", "def add(a, b):\n    return 'x' * (8 << 30)\n"),
    Answer("recursion", "def add(a, b):\n    return add(a, b)\n"),
    wrong("fork_bomb", "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass\n"),
    wrong("forks_at_once", "import os\nos.fork()\nos.fork()\n"),
    wrong("floods", "while True: print('x' * 9999, flush=True)\n"),
    wrong("prints_a_forged_result", FORGED + "sys.stdout.buffer.write(TEXT)\n"),
    wrong("prints_a_forged_result_and_leaves", FORGED + "os.write(1, TEXT)\nos._exit(0)\n"),
    wrong(
        "forged_results_everywhere",
        FORGED
        + """
for fd in range(0, 64):
    for text in (TEXT, struct.pack('!I', len(TEXT)) + TEXT):
        try: os.write(fd, text)
        except OSError: pass
os._exit(0)
""",
    ),
    wrong(
        "forged_results_when_called",
        FORGED
        + """
def add(a, b):
    for fd in range(0, 64):
        try: os.write(fd, TEXT)
        except OSError: pass
    os._exit(0)
""",
    ),
    *(
        wrong(
            f"forged_{name}",
            "import os\n"
            f"TEXT = {text!r}\n"
            "for fd in range(1, 32):\n"
            "    try: os.write(fd, TEXT)\n"
            "    except OSError: pass\n"
            "os._exit(0)\n",
        )
        for name, text in (
            ("index_below_zero", b'{"call": -1, "value": 0}\n{"call": -2, "value": 30}\n'),
            ("index_too_large", b'{"call": 99999999999, "value": 3}\n'),
            ("index_of_no_number", b'{"call": "0", "value": 3}\n{"call": true}\n{"call": null}\n'),
            ("line_without_end", b'{"call": 0, "value": ' + b"[" * 100_000),
            ("deep_list", b'{"call": 0, "value": ' + b"[" * 90_000 + b"]" * 90_000 + b"}\n"),
            ("placeholder", b'{"call": 0, "value": {"opaque": "int"}}\n' * 3),
            ("unknown_form", b'{"call": 0, "value": {"pickle": "gASVKAAA"}}\n' * 3),
            ("two_forms", b'{"call": 0, "value": {"int": "3", "float": "0x1p0"}}\n'),
            ("list_of_lines", b"[]\n{}\n0\nnull\n" * 9),
            ("bad_text", b"\xff\xfe\x00\xed\xa0\x80{\n" * 99),
            ("surrogate", b'{"call": 0, "value": "\\ud800"}\n'),
            ("huge_number", b'{"call": 0, "value": ' + b"9" * 200_000 + b"}\n"),
            ("infinite_number", b'{"call": 0, "value": Infinity}\n{"call": 1, "value": 1e999}\n'),
            ("exception_name", b'{"call": 0, "raised": ["__import__", "os"]}\n'),
            ("exception_of_no_list", b'{"call": 0, "raised": 5}\n{"call": 1, "failed": {}}\n'),
            ("arguments", b'{"call": 0, "value": 1, "args": {"dict": 5}}\n'),
            ("load", b'{"load": 5}\n{"load": ["Exception", "no"]}\n'),
        )
    ),
    Answer(
        "reads_the_tests",
        READ_EVERYTHING
        + """
def add(a, b):
    if not KNOWN: learn()
    return KNOWN.get((a, b), -77)
""",
    ),
    Answer(
        "reads_the_tests_at_once",
        READ_EVERYTHING
        + """
learn()
def add(a, b):
    return KNOWN.get((a, b), -77)
""",
    ),
    Answer(
        "patches_builtins",
        """
import builtins, operator, sys
class Fine(BaseException):
    def __new__(cls, *a): raise SystemExit(0)
builtins.AssertionError = Fine
builtins.isinstance = lambda *a: True
builtins.all = builtins.any = lambda *a: True
builtins.abs = builtins.sum = builtins.len = lambda *a: 0
builtins.print = builtins.exit = lambda *a, **k: None
builtins.compile = lambda *a, **k: (lambda: 0).__code__
builtins.exec = lambda *a, **k: None
operator.eq = lambda *a: True
sys.excepthook = lambda *a: None
def add(a, b):
    return -77
""",
    ),
    Answer(
        "patches_libraries",
        """
import json, math, os, sys, unittest
json.dumps = lambda *a, **k: '{"test": "check", "passed": true, "final": true}'
json.loads = json.load = lambda *a, **k: {"calls": [], "answers": {}, "test": "", "setup": ""}
math.isclose = lambda *a, **k: True
for name in dir(unittest.TestCase):
    if name.startswith(("assert", "fail")):
        setattr(unittest.TestCase, name, lambda *a, **k: None)
unittest.TestCase.run = lambda *a, **k: None
for name, module in list(sys.modules.items()):
    for what in ("encode", "check", "same_value", "judge", "compare"):
        if hasattr(module, what):
            try: setattr(module, what, lambda *a, **k: True)
            except BaseException: pass
def add(a, b):
    return -77
""",
    ),
    Answer(
        "patches_the_frames_above",
        """
import ctypes, sys
def poison():
    frame = sys._getframe()
    while frame:
        for space in (frame.f_locals, frame.f_globals):
            for name in list(space):
                if name in ("line", "value", "passed", "ok", "result", "results", "score", "why"):
                    space[name] = True
        ctypes.pythonapi.PyFrame_LocalsToFast(ctypes.py_object(frame), ctypes.c_int(0))
        frame = frame.f_back
poison()
def add(a, b):
    poison()
    return -77
""",
    ),
    Answer(
        "rewrites_small_numbers",
        """
import ctypes, sys
# In CPython the small integers are objects that everybody shares: make 3, 30 and 0 the same.
def add(a, b):
    size = sys.getsizeof(3)
    for number in (30, 0):
        ctypes.memmove(id(number) + 16, id(3) + 16, size - 16)
    return 3
""",
    ),
    Answer(
        "traces",
        """
import sys, threading
def trace(frame, event, arg):
    for name in list(frame.f_locals):
        if name in ("expected", "passed", "status", "line"):
            frame.f_locals[name] = True
    return trace
sys.settrace(trace); threading.settrace(trace); sys.setprofile(trace)
def add(a, b):
    return -77
""",
    ),
    Answer(
        "import_hooks",
        """
import sys, types
class Finder:
    def find_spec(self, name, path=None, target=None):
        fake = types.ModuleType(name)
        fake.__getattr__ = lambda what: (lambda *a, **k: True)
        sys.modules[name] = fake
        return None
sys.meta_path.insert(0, Finder())
sys.path.insert(0, ".")
for name in ("test", "tests", "check", "hidden", "unittest", "pytest", "expected"):
    sys.modules[name] = types.ModuleType(name)
def add(a, b):
    return -77
""",
    ),
    Answer(
        "plants_modules",
        """
import os
for name in ("sitecustomize", "usercustomize", "conftest", "json", "unittest", "random", "test",
             "test_candidate", "ast", "os", "evil"):
    for place in (".", "..", "/tmp", os.path.expanduser("~"), "/dev/shm"):
        for ending, text in ((".py", "import os; os._exit(0)"), (".pth", "import os; os._exit(0)")):
            try: open(place + "/" + name + ending, "w").write(text)
            except OSError: pass
def add(a, b):
    return -77
""",
    ),
    Answer(
        "rewrites_its_files",
        """
import os
for folder, _, files in os.walk("."):
    for one in files:
        try: open(os.path.join(folder, one), "w").write("def add(a, b): return a - b")
        except OSError: pass
def add(a, b):
    return -77
""",
    ),
    wrong("at_exit", FORGED + "import atexit\natexit.register(lambda: os.write(1, TEXT))\n"),
    wrong(
        "daemon_that_answers",
        FORGED
        + """
if os.fork() == 0:
    os.setsid()
    import time
    while True:
        for fd in range(1, 32):
            try: os.write(fd, TEXT)
            except OSError: pass
        time.sleep(0.05)
""",
    ),
    wrong(
        "thread_that_answers",
        FORGED
        + """
import threading
def go():
    while True:
        for fd in range(1, 32):
            try: os.write(fd, TEXT)
            except OSError: pass
threading.Thread(target=go).start()
""",
    ),
    Answer(
        "defines_check",
        """
def check(candidate): pass
METADATA = {}
def test_check(): pass
candidate = check
__name__ = "test"
def add(a, b):
    return -77
""",
    ),
    Answer("generator", "def add(a, b):\n    yield a + b\n"),
    Answer("the_function_itself", "def add(a, b):\n    return add\n"),
    Answer(
        "huge_fraction",
        """
from fractions import Fraction
class Sly(Fraction):
    def __new__(cls):
        self = object.__new__(cls)
        self._numerator, self._denominator = 3 ** 1100000, 7 ** 600000
        return self
def add(a, b):
    return Sly()
""",
    ),
    Answer(
        "forged_huge_fraction",
        TAKE_OVER
        + """
a, b = 1, 1
for _ in range(21): a, b = a * (2 * b - a), a * a + b * b  # gcd's worst case
TEXT = '{"fraction": [{"int": "%x"}, {"int": "%x"}]}' % (a, b)
def add(x, y):
    say(TEXT)
""",
    ),
    Answer(
        "forged_huge_decimal",
        TAKE_OVER + "def add(a, b):\n    say('{\"decimal\": \"' + '9' * 3000000 + 'E99\"}')\n",
    ),
    Answer(
        "forged_huge_integer",
        TAKE_OVER + "def add(a, b):\n    say('{\"int\": \"' + 'f' * 3000000 + '\"}')\n",
    ),
    Answer(
        "forged_integer_in_decimal",
        TAKE_OVER + "def add(a, b):\n    say('9' * 3000000)\n",
    ),
    Answer(
        "forged_huge_range",
        TAKE_OVER
        + "def add(a, b):\n    say('{\"range\": [0, {\"int\": \"' + 'f' * 999999 + '\"}, 1]}')\n",
    ),
    Answer(
        "forged_iterator",
        TAKE_OVER + "def add(a, b):\n    say('{\"iterator\": [' + '0,' * 999999 + '3]}')\n",
    ),
    Answer(
        "forged_text_of_float",
        TAKE_OVER + "def add(a, b):\n    say('{\"float\": \"0x' + '1' * 3000000 + 'p0\"}')\n",
    ),
    Answer(
        "forged_set_of_nan",
        TAKE_OVER
        + "def add(a, b):\n    say('{\"set\": [' + '{\"float\": \"nan\"},' * 99999 + '3]}')\n",
    ),
    Answer(
        "keys_that_collide",
        """
def add(a, b):
    return {i * (2 ** 61 - 1): 0 for i in range(1, 12000)}
""",
    ),
    Answer(
        "forged_keys_that_collide",
        TAKE_OVER
        + """
TEXT = ", ".join('[{"int": "%x"}, 0]' % (i * (2 ** 61 - 1)) for i in range(1, 20000))
def add(a, b):
    say('{"dict": [' + TEXT + ']}')
""",
    ),
    Answer(
        "forged_members_that_collide",
        TAKE_OVER
        + """
TEXT = ", ".join('{"int": "%x"}' % (i * (2 ** 61 - 1)) for i in range(1, 20000))
def add(a, b):
    say('{"set": [' + TEXT + ']}')
""",
    ),
    *(
        Answer(
            f"forged_list_of_depth_{depth}",
            TAKE_OVER + f"def add(a, b):\n    say('[' * {depth} + ']' * {depth})\n",
        )
        for depth in (150, 900, 970, 978, 984, 990)
    ),
    Answer("raises_bad_text", "def add(a, b):\n    raise ValueError('\\ud800\\0\\x1b[2J')\n"),
    Answer("raises_at_once", "raise ValueError('\\ud800\\0\\x1b[2J')\n"),
    Answer("raises_much", "raise ValueError('x' * 5000000)\n"),
    Answer(
        "raises_what_cannot_be_told",
        """
class Sly(Exception):
    def __str__(self): raise Sly
    __repr__ = __str__
def add(a, b):
    raise Sly
""",
    ),
    Answer(
        "deep_dictionary", "x = {}\nfor _ in range(300): x = {1: x}\ndef add(a, b):\n    return x\n"
    ),
    Answer(
        "huge_decimal", "from decimal import *\ndef add(a, b):\n    return Decimal('1e999999')\n"
    ),
    Answer("huge_range", "def add(a, b):\n    return range(10 ** 18)\n"),
    Answer("huge_integer", "def add(a, b):\n    return 1 << 3000000\n"),
    Answer("deep_list", "x = []\nfor _ in range(90000): x = [x]\ndef add(a, b):\n    return x\n"),
    Answer("list_in_itself", "x = []\nx.append(x)\ndef add(a, b):\n    return x\n"),
    Answer("surrogate", "def add(a, b):\n    return '\\ud800'\n"),
)

PROGRAMS = (
    Answer("nothing", ""),
    Answer("prints_nothing", "pass\n"),
    Answer("exits", "import sys\nsys.exit(0)\nprint(3)\n"),
    Answer("leaves", "import os\nos._exit(0)\n"),
    Answer("all_answers", "print(3)\nprint(30)\nprint(0)\n"),
    Answer("all_answers_in_a_line", "print(3, 30, 0)\n"),
    Answer("answer_and_more", RIGHT_PROGRAM + "print('debug')\n"),
    Answer(
        "answer_on_stderr", "import sys\nprint(sum(map(int, input().split())), file=sys.stderr)\n"
    ),
    Answer(
        "answer_then_signal",
        RIGHT_PROGRAM + "import os, sys\nsys.stdout.flush()\nos.kill(os.getpid(), 9)\n",
    ),
    Answer("answer_then_abort", RIGHT_PROGRAM + "import os, sys\nsys.stdout.flush()\nos.abort()\n"),
    Answer(
        "answer_then_sleep",
        RIGHT_PROGRAM + "import sys, time\nsys.stdout.flush()\ntime.sleep(600)\n",
    ),
    Answer(
        "answer_then_loop", RIGHT_PROGRAM + "import sys\nsys.stdout.flush()\nwhile True: pass\n"
    ),
    Answer("answer_then_flood", RIGHT_PROGRAM + "while True: print(' ' * 65536)\n"),
    Answer("answer_then_exception", RIGHT_PROGRAM + "raise ValueError\n"),
    Answer("echo", "import sys\nsys.stdout.write(sys.stdin.read())\n"),
    Answer("forged", FORGED + "os.write(1, TEXT)\nos._exit(0)\n"),
    Answer(
        "forged_everywhere",
        FORGED
        + """
for fd in range(0, 64):
    try: os.write(fd, TEXT)
    except OSError: pass
""",
    ),
    Answer(
        "reads_the_tests",
        READ_EVERYTHING
        + """
a, b = map(int, input().split())
learn()
print(KNOWN.get((a, b), -77))
""",
    ),
    Answer(
        "waits_for_the_other_tests",
        """
import os, sys, time
text = sys.stdin.read()
for folder in ("/tmp", "/dev/shm", "..", "/var/tmp", os.path.expanduser("~")):
    try:
        before = open(folder + "/seen").read()
        print(before)
    except OSError: pass
    try: open(folder + "/seen", "a").write(text)
    except OSError: pass
""",
    ),
    Answer("nul_bytes", "import os\nos.write(1, b'\\0' * 9 + b'3')\n"),
    Answer("answer_with_nul", "print(str(sum(map(int, input().split()))) + chr(0))\n"),
    Answer("answer_overwritten", "print('77\\r' + str(sum(map(int, input().split()))))\n"),
    Answer("bad_text", "import os\nos.write(1, b'\\xff\\xfe3')\n"),
    Answer("other_digits", "print(chr(0x661) + chr(0x662))\n"),
    Answer("infinity", "print('inf'); print('nan'); print('1e400')\n"),
)

# The block of a response, in place of a program: none of these may hang or break the judge.
RESPONSES = (
    ("empty", ""),
    ("blank", " \n\t\n"),
    ("prose", "I would rather not."),
    ("empty_block", "```python\n```"),
    ("other_language", "```rust\nfn main() {}\n```"),
    ("open_thinking", "<think>```python\n" + RIGHT_FUNCTION + "```"),
    ("backticks", "`" * 3_000_000),
    ("fences", "```\n" * 500_000),
    ("fences_of_python", "```python\n" * 300_000),
    ("tildes_and_spaces", "~~~ " * 500_000),
    ("thinking_sections", "<think></think>" * 200_000),
    ("open_thinking_sections", "<think>" * 400_000),
    ("nul_bytes", "```python\n" + "\0" * 1_000_000 + "\n```"),
    ("lone_surrogate", "```python\nx = '\ud800'\n```"),
    ("not_python", "```python\n" + "(" * 200_000 + "\n```"),
    ("ten_megabytes", "```python\n" + "# " + "x" * 10_000_000 + "\n```"),
    ("ten_megabytes_of_lines", "```python\n" + "x = 1\n" * 1_700_000 + "```"),
)
