"""How a program in each language is built and run in a sandbox.

A compiler runs in the sandbox too, on text of the model's, under limits of its own. What it built
comes out through its stdout and goes into the sandbox of each test as a file.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from rewards.errors import UsageError, did_you_mean
from rewards.sandbox.protocol import MEBIBYTE, Finished, Limits, Program, Sandbox

BUILD_LIMITS = Limits(
    wall_s=60.0,
    cpu_s=60.0,
    memory_bytes=1024 * MEBIBYTE,
    output_bytes=32 * MEBIBYTE,
    disk_bytes=128 * MEBIBYTE,
)


@dataclass(frozen=True, slots=True)
class Language:
    name: str
    fences: tuple[str, ...]  # what people write after the backticks
    source: str  # the file that the program goes into
    run: tuple[str, ...]  # {memory} is the limit in MiB
    build: str = ""  # a shell command; what it writes to stdout is the file ``built``
    built: str = "program"
    needs: tuple[str, ...] = ()  # commands of the sandbox
    spare_processes: int = 0  # that the runtime itself has


LANGUAGES = {
    one.name: one
    for one in (
        Language(
            "python",
            ("python", "py", "python3", "py3"),
            "candidate.py",
            ("python3", "candidate.py"),
            needs=("python3",),
        ),
        Language(
            "cpp",
            ("cpp", "c++", "cc", "cxx"),
            "candidate.cpp",
            ("./program",),
            build="g++ -O2 -std=c++17 -pipe -o program candidate.cpp >&2 && cat program",
            needs=("g++", "sh", "cat"),
        ),
        Language(
            "javascript",
            ("javascript", "js", "node"),
            "candidate.js",
            ("node", "--max-old-space-size={memory}", "candidate.js"),
            needs=("node",),
            spare_processes=32,
        ),
        Language(
            "bash",
            ("bash", "sh", "shell"),
            "candidate.sh",
            ("bash", "candidate.sh"),
            needs=("bash",),
        ),
        Language(
            "java",
            ("java",),
            "Main.java",
            ("java", "-XX:+UseSerialGC", "-Xss16m", "-Xmx{memory}m", "-cp", "program.jar", "Main"),
            build="javac -J-XX:+UseSerialGC -d out Main.java >&2 && jar cfe program.jar Main"
            " -C out . >&2 && cat program.jar",
            built="program.jar",
            needs=("java", "javac", "jar", "sh", "cat"),
            spare_processes=64,
        ),
    )
}
_FENCES = {fence: one.name for one in LANGUAGES.values() for fence in one.fences}
_PUBLIC_CLASS = re.compile(r"\bpublic\s+(?:final\s+)?class\s+(\w{1,80})")


def language_of_fence(info: str) -> str:
    """Our name of the language that a fence names; as it is, in lower case, when unknown."""
    words = info.strip().lower().removeprefix("{").removeprefix(".").split()
    word = words[0].rstrip("}") if words else ""
    return _FENCES.get(word, word)


def get(name: str) -> Language:
    """By our name or one of its fences'. Raises UsageError naming the nearest."""
    found = LANGUAGES.get(_FENCES.get(name.lower(), name))
    if found is None:
        raise UsageError(f"unknown language {name!r}.{did_you_mean(name, LANGUAGES)}")
    return found


def check_toolchain(language: Language, sandbox: Sandbox) -> None:
    """Raises UsageError when the sandbox lacks a command."""
    missing = [one for one in language.needs if not sandbox.has(one)]
    if missing:
        raise UsageError(
            f"programs in {language.name} need {', '.join(missing)}, which the sandbox "
            f"{sandbox.name!r} does not have"
        )


def encoded(code: str) -> bytes:
    """As UTF-8. A lone surrogate, which no file and no log can hold, becomes a question mark."""
    return code.encode("utf-8", "replace")


def ready(language: Language, code: str, sandbox: Sandbox, limits: Limits) -> Program | Finished:
    """What to run for each input; or how the build failed, which is the program's fault."""
    source = encoded(code)
    name = language.source
    if language.name == "java" and (match := _PUBLIC_CLASS.search(code)):
        source = re.sub(rb"\b%s\b" % match[1].encode(), b"Main", source)
    memory = str(max(16, limits.memory_bytes // MEBIBYTE * 3 // 4))
    argv = tuple(one.replace("{memory}", memory) for one in language.run)
    limits = replace(limits, processes=limits.processes + language.spare_processes)
    if not language.build:
        return Program(argv, {name: source}, limits=limits)
    processes = BUILD_LIMITS.processes + language.spare_processes
    build_limits = replace(BUILD_LIMITS, processes=processes)
    build = Program(("sh", "-c", language.build), {name: source}, limits=build_limits)
    built = sandbox.run(build)
    if not built.ok or not built.stdout:
        return built
    return Program(argv, {language.built: built.stdout}, limits=limits)
