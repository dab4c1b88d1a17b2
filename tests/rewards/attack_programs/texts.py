"""Programs and input that are no ordinary text."""

import hashlib

from rewards.sandbox.protocol import Ending, Limits
from tests.rewards.attacks import EXIT, KILLED, Attack

SIGNAL = frozenset({Ending.SIGNAL})
ROOMY = Limits(wall_s=15.0, cpu_s=10.0, output_bytes=1 << 20)
NOISE = bytes(range(256)) * 4096  # 1 MiB
TEN_MB = b"# " + b"x" * 99 + b"\n"

ATTACKS = (
    Attack("empty_program", "does nothing, well", b"", shows=b"", bare=True),
    Attack("blank_program", "does nothing, well", b"\n\r\n \t\n\x0c\n", shows=b"", bare=True),
    Attack(
        "nul_bytes_in_the_program",
        "the interpreter's own error",
        b"print(1)\n\x00\x00\nprint(2)\n",
        ok=None,  # newer interpreters refuse it
        bare=True,
    ),
    Attack("only_nul_bytes", "the interpreter's own error", b"\0" * 5000, bare=True, ok=None),
    Attack(
        "crlf_program", "runs", b"x = 1\r\nif x:\r\n    print('ok')\r\n", shows=b"ok\n", bare=True
    ),
    Attack("old_mac_program", "runs", b"x = 1\rprint('ok')\r", shows=b"ok\n", bare=True),
    Attack("byte_order_mark", "runs", b"\xef\xbb\xbfprint('ok')\n", shows=b"ok\n", bare=True),
    Attack(
        "invalid_utf8_in_the_program",
        "the interpreter's own error",
        b"x = '\xff\xfe\x80'\nprint(1)\n",
        ok=False,
        code=1,
        bare=True,
    ),
    Attack(
        "another_coding",
        "runs as the program says",
        b"# -*- coding: latin-1 -*-\nprint(ascii('\xe9'))\n",
        shows=b"'\\xe9'\n",
        bare=True,
    ),
    Attack(
        "utf16_program",
        "the interpreter's own error",
        "print(1)\n".encode("utf-16"),
        ok=False,
        code=1,
        bare=True,
    ),
    Attack(
        "ten_megabytes",
        "runs",
        TEN_MB * 100_000 + b"print('ok')\n",
        shows=b"ok\n",
        bare=True,
        limits=ROOMY,
    ),
    Attack(
        "one_line_of_megabytes",
        "runs or fails by itself",
        b"x = '" + b"y" * 8_000_000 + b"'; print(len(x))\n",
        shows=b"8000000\n",
        bare=True,
        limits=ROOMY,
    ),
    Attack(
        "nested_too_deep_to_compile",
        "the interpreter's own error",
        b"x = " + b"(" * 50_000 + b")" * 50_000,
        ends=EXIT | KILLED,
        ok=False,
        bare=True,
    ),
    Attack(
        "compiles_for_ever",
        "an expression that the compiler folds is bounded",
        b"x = " + b"+".join([b"1"] * 300_000) + b"\n",
        ends=EXIT | KILLED,
        ok=None,
        bare=True,
        limits=ROOMY,
    ),
    Attack(
        "output_that_is_not_text",
        "kept byte for byte",
        "os.write(1, bytes(range(256)) * 4 + b'\\r\\n\\x00')\n",
        shows=bytes(range(256)) * 4 + b"\r\n\x00",
    ),
    Attack(
        "stdin_at_its_end",
        "input() raises at once, nobody waits",
        "print(sys.stdin.read() == '')\ninput()\n",
        ok=False,
        code=1,
        shows=b"True\n",
        within_s=15.0,
    ),
    Attack(
        "stdin_never_read",
        "a megabyte that nobody reads hangs nobody",
        "print('ok')\n",
        stdin=NOISE,
        shows=b"ok\n",
        within_s=15.0,
    ),
    Attack(
        "stdin_closed_at_once",
        "writing to a closed pipe harms nobody",
        "os.close(0)\ntime.sleep(0.1)\nprint('ok')\n",
        stdin=NOISE * 4,
        shows=b"ok\n",
        within_s=15.0,
    ),
    Attack(
        "stdin_of_any_bytes",
        "arrives byte for byte",
        "import hashlib\nprint(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())\n",
        stdin=NOISE,
        shows=hashlib.sha256(NOISE).hexdigest().encode() + b"\n",
    ),
    Attack(
        "stdin_echoed",
        "reading and writing at once does not lock up",
        "import shutil\nshutil.copyfileobj(sys.stdin.buffer, sys.stdout.buffer, 512)\n",
        stdin=NOISE[: 1 << 19],
        shows=NOISE[: 1 << 19],
        limits=ROOMY,
    ),
    Attack(
        "stdin_of_another",
        "the next program gets its own input, not the rest of this one's",
        "print(os.read(0, 10))\n",
        stdin=b"0123456789" + b"LEFT OVER\n" * 1000,
        shows=b"b'0123456789'\n",
    ),
    Attack(
        "files_that_hide_the_library",
        "modules beside the program are the program's own business",
        "print('never')\n",
        files={"os.py": b"raise SystemExit(3)\n", "json.py": b"raise SystemExit(3)\n"},
        ok=None,
        ends=EXIT | SIGNAL,
    ),
)
