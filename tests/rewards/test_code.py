"""The code reward in a real sandbox: verdicts, languages, hidden tests, and HumanEval."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import rewards
import rewards.code
from rewards import Outcome, Score, UsageError
from rewards.code import Policy, scoring
from rewards.code.calling import inside_files
from rewards.sandbox import Ending, Finished, Limits, Program, Sandbox, SandboxError
from rewards.sandbox.bubblewrap import BubblewrapSandbox

REASON = BubblewrapSandbox.available()
pytestmark = pytest.mark.skipif(REASON is not None, reason=str(REASON))

HUMANEVAL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "humaneval.jsonl.gz"
SUMS = [{"input": "3 4\n", "output": "7\n"}, {"input": "-1 1\n", "output": "0"}]
BRIEF = Policy(limits=Limits(wall_s=2.0))


class Recording:
    """A sandbox that keeps what it was given."""

    def __init__(self, inner: Sandbox) -> None:
        self.inner, self.name, self.layers = inner, inner.name, inner.layers
        self.programs: list[Program] = []

    def run(self, program: Program) -> Finished:
        self.programs.append(program)
        return self.inner.run(program)

    def has(self, command: str) -> bool:
        return self.inner.has(command)

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def inner() -> Iterator[Sandbox]:
    opened = BubblewrapSandbox(places=2)
    yield opened
    opened.close()


@pytest.fixture
def sandbox(inner: Sandbox) -> Recording:
    return Recording(inner)


def fenced(code: str, language: str = "python") -> str:
    return f"Here it is.\n```{language}\n{code}\n```\nDone."


def judge(code: str, tests: Any, sandbox: Sandbox, **options: Any) -> Score:
    return rewards.code.score(fenced(code), tests, sandbox=sandbox, **options)


# stdin and stdout

PROGRAMS = {
    "python": "a, b = map(int, input().split())\nprint(a + b)",
    "cpp": "#include <iostream>\nint main() { int a, b; std::cin >> a >> b; std::cout << a + b; }",
    "javascript": "const [a, b] = require('fs').readFileSync(0, 'utf8').split(' ').map(Number);\n"
    "console.log(a + b)",
    "bash": "read a b; echo $((a + b))",
    "java": "import java.util.*;\npublic class Sum { public static void main(String[] a) {\n"
    "Scanner in = new Scanner(System.in); System.out.println(in.nextInt() + in.nextInt()); } }",
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_a_right_and_a_wrong_program_in_each_language(language: str, sandbox: Recording) -> None:
    if not all(map(sandbox.has, rewards.code.languages.LANGUAGES[language].needs)):
        pytest.skip(f"no toolchain for {language}")
    right = PROGRAMS[language]
    score = rewards.code.score(fenced(right, language), SUMS, sandbox=sandbox)
    assert score == Score(1.0, Outcome.CORRECT, {"passed": 2.0, "tests": 2.0})
    wrong = right.replace("+ b", "- b").replace("+ in", "- in")
    score = rewards.code.score(fenced(wrong, language), SUMS, sandbox=sandbox, partial=True)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)


def test_partial_is_the_share_and_otherwise_the_first_failure_ends_it(sandbox: Recording) -> None:
    tests = [{"input": str(i), "output": str(i * i)} for i in range(4)]
    score = judge("print(int(input()) * 2)", tests, sandbox, partial=True)
    assert (score.value, score.parts) == (0.5, {"passed": 2.0, "tests": 4.0})
    assert len(sandbox.programs) == 4
    score = judge("print(int(input()) * 2)", tests, sandbox)
    assert (score.value, score.parts) == (0.0, {"passed": 1.0, "tests": 4.0})
    assert score.detail == "test 2: wrong output '2\\n'"
    assert len(sandbox.programs) == 4 + 2


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("print(7); import sys; sys.exit(1)", "exit code 1"),
        ("print(7); import os; os.kill(os.getpid(), 9)", "signal 9"),
        ("pass", "wrong output ''"),
        ("print(7", "SyntaxError"),
        ("import time; print(7, flush=True); time.sleep(99)", "out of wall time"),
        ("while True: print(7)", "too much output"),
        ("x = b'x' * (1 << 30)", "out of memory"),
    ],
)
def test_what_a_program_does_wrong_is_wrong_and_said(
    code: str, said: str, sandbox: Recording
) -> None:
    score = judge(code, SUMS[:1], sandbox, policy=BRIEF)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)
    assert said in score.detail


def test_a_program_that_does_not_compile_is_wrong(sandbox: Recording) -> None:
    if not sandbox.has("g++"):
        pytest.skip("no g++")
    score = rewards.code.score(fenced("int main() { return }", "c++"), SUMS, sandbox=sandbox)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)
    assert "does not compile" in score.detail


def test_no_program_is_unparseable_and_runs_nothing(sandbox: Recording) -> None:
    for response in ("", "I can't.", "<think>```python\nprint(7)\n```", fenced("x", "cobol")):
        score = rewards.code.score(response, SUMS, sandbox=sandbox)
        assert (score.value, score.outcome) == (0.0, Outcome.UNPARSEABLE)
    assert sandbox.programs == []


def test_expected_outputs_never_enter_the_sandbox(sandbox: Recording) -> None:
    secret = "8317526940"
    judge("print(1)", [{"input": "x", "output": secret}], sandbox)
    judge("def f(x): return 1", [{"fn": "f", "args": ["x"], "expected": secret}], sandbox)
    hidden = judge("def f(x): return 1", [f"assert f('x') == {secret!r}"], sandbox)
    assert hidden.value == 0.0 and len(sandbox.programs) == 5
    with_candidate = [one for one in sandbox.programs if "candidate.py" in one.files]
    assert len(with_candidate) == 3
    for program in with_candidate:
        everything = [*program.files.values(), program.stdin, *map(str.encode, program.argv)]
        assert not any(secret.encode() in one for one in everything)


# calls

CALLS = [{"fn": "add", "args": [1, 2], "expected": 3}, {"fn": "add", "args": [0, 0], "expected": 0}]


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("def add(a, b): return a + b", 1.0),
        ("class Solution:\n    def add(self, a, b): return a + b", 1.0),
        ("def add(a, b): print('noise'); return a + b", 1.0),
        ("def add(a, b): return float(a + b)", 1.0),
        ("def add(a, b): return str(a + b)", 0.0),
        ("def add(a, b): return a - b", 0.5),
        ("def add(a, b): return bool(a + b)", 0.0),
        ("def add(a, b): return 3", 0.5),
        ("def plus(a, b): return a + b", 0.0),
        ("def add(a, b):\n    import os\n    os._exit(0)", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("def add(a, b):\n    if a: raise SystemExit(0)\n    return 0", 0.5),
        ("def add(a, b):\n    while a: pass\n    return 0", 0.5),
        ("calls = []\ndef add(a, b): calls.append(1); return a + b if len(calls) < 2 else 9", 1.0),
        ("class Any:\n  def __eq__(self, other): return True\ndef add(a, b): return Any()", 0.0),
        ("class Any(int):\n  __eq__ = lambda s, o: True\ndef add(a, b): return Any(9)", 0.0),
    ],
)
def test_calls(code: str, value: float, sandbox: Recording) -> None:
    assert judge(code, CALLS, sandbox, partial=True, policy=BRIEF).value == value
    assert len(sandbox.programs) == 1  # all calls share one start


def test_a_candidate_that_answers_twice_or_for_others_gains_nothing(sandbox: Recording) -> None:
    code = """
import json, os
def add(a, b):
    for fd in range(3, 20):  # the runner's own channel, wherever it is
        for path in (f"/proc/{os.getppid()}/fd/{fd}", f"/proc/self/fd/{fd}"):
            try:
                with open(path, "w") as out:
                    for i in range(2):
                        for value in (0, 3):
                            out.write(json.dumps({"call": i, "value": value, "args": None}) + "\\n")
            except OSError:
                pass
    return 9
"""
    score = judge(code, CALLS, sandbox, partial=True)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG)


def test_an_exception_is_wrong_and_said(sandbox: Recording) -> None:
    score = judge("def add(a, b): return a / 0", CALLS, sandbox)
    assert score.detail == "test 1: raised ZeroDivisionError: division by zero"


def test_text_that_cannot_be_written_down_is_cleaned(sandbox: Recording) -> None:
    score = judge(r"def add(a, b): raise ValueError('\ud800')", CALLS, sandbox)
    assert score.detail == "test 1: raised ValueError: ?"


def test_calls_take_a_list_for_a_tuple_only_where_allowed(sandbox: Recording) -> None:
    tests = [{"fn": "f", "args": [], "expected": [1, 2]}]
    assert judge("def f(): return 1, 2", tests, sandbox).value == 1.0
    assert judge("def f(): return 1, 2", tests, sandbox, policy=Policy(strict=True)).value == 0.0


# hidden tests


@pytest.mark.parametrize(
    ("code", "test", "value"),
    [
        ("def f(x): return x + 1", "assert f(1) == 2\nassert f(5) == 6", 1.0),
        ("def f(x): return 2", "assert f(1) == 2\nassert f(5) == 6", 0.5),
        ("def f(x): x.sort()", "a = [2, 1]\nf(a)\nassert a == [1, 2]", 1.0),
        ("def f(x): pass", "a = [2, 1]\nf(a)\nassert a == [1, 2]", 0.0),
        ("def f(x): return {x: (1, {2})}", "assert f('a') == {'a': (1, {2})}", 1.0),
        ("def f(x): return [x]", "assert f(1) == (1,)", 0.0),
        ("def f(x): return (i for i in range(x))", "assert list(f(3)) == [0, 1, 2]", 1.0),
        ("def f(x): return float(x)", "assert abs(f(1) - 1) < 1e-9", 1.0),
        ("def f(n): return n - 1", "x = 9\nwhile x > 0: x = f(x)\nassert x == 0", 1.0),
        ("def f(s): return int(s)", "try:\n  f('x')\nexcept ValueError: pass\nelse: assert 0", 1.0),
        ("def f(s): return 0", "try:\n  f('x')\nexcept ValueError: pass\nelse: assert 0", 0.0),
        ("import os\ndef f(s): os._exit(0)", "try:\n  f(1)\nexcept BaseException: pass", 0.0),
        ("def f(x): return object()", "assert f(1)", 0.0),
        (
            "def f(x): return x",
            "def test_a(): assert f(1) == 1\ndef test_b(): assert f(1) == 2",
            0.5,
        ),
        (
            "def f(x): return x",
            "import unittest\nclass T(unittest.TestCase):\n"
            "  def setUp(self): self.y = 1\n"
            "  def test_a(self): self.assertEqual(f(1), self.y)\n"
            "  def test_b(self): self.assertEqual(f(1), 2)\n"
            "  def test_c(self): self.assertRaises(TypeError, f)\n"
            "if __name__ == '__main__': unittest.main()",
            2 / 3,
        ),
        ("def g(x): return x", "assert f(1) == 1", 0.0),
        ("raise SystemExit", "assert f(1) == 1", 0.0),
        ("def f(", "assert f(1) == 1", 0.0),
    ],
)
def test_hidden_tests(code: str, test: str, value: float, sandbox: Recording) -> None:
    score = judge(code, test, sandbox, partial=True)
    assert score.value == pytest.approx(value), score
    assert score.outcome is (Outcome.CORRECT if value == 1 else Outcome.WRONG)


def test_the_tests_and_the_candidate_are_never_in_one_sandbox(sandbox: Recording) -> None:
    judge("def f(x): return x", "assert f(1) == 1", sandbox)
    ours = set(inside_files())
    runs = [(set(one.files) - ours, one.argv[-1]) for one in sandbox.programs]
    assert runs == [
        ({"work.json"}, "rewards.code.inside_tests"),
        ({"work.json", "candidate.py"}, "rewards.code.inside_calls"),
        ({"work.json"}, "rewards.code.inside_tests"),
    ]
    assert b"assert" not in sandbox.programs[1].files["work.json"]


HACKS = {
    "eq": "class Yes:\n    __eq__ = lambda self, other: True\ndef add(a, b): return Yes()",
    "frames": "import sys, gc\ndef add(a, b):\n"
    "    frame = sys._getframe()\n"
    "    while frame:\n"
    "        for value in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
    "            if isinstance(value, dict) and 'answers' in value: return value['answers']\n"
    "        frame = frame.f_back\n"
    "    return [o for o in gc.get_objects() if isinstance(o, dict) and 'test' in o][:1]",
    "builtins": "import builtins\nbuiltins.AssertionError = type('E', (BaseException,), {})\n"
    "builtins.all = builtins.isinstance = lambda *a: True\ndef add(a, b): return 0",
    "unittest": "import sys, types\nsys.modules['unittest'] = types.ModuleType('unittest')\n"
    "import atexit, os\natexit.register(os._exit, 0)\ndef add(a, b): return 0",
    "verdict": 'import os\nos.write(1, b\'{"test": "check", "passed": true, "final": true, '
    '"why": ""}\\n{"done": true}\\n\')\n'
    "def add(a, b):\n    for fd in range(20):\n        try: os.write(fd, b'{\"done\": true}\\n')\n"
    "        except OSError: pass\n    return 0",
    "read": "import pathlib\ndef add(a, b):\n    text = ''\n"
    "    for path in pathlib.Path('/box').rglob('*'):\n"
    "        if path.is_file(): text += path.read_text(errors='replace')\n"
    "    return eval(text.split('== ')[1].split()[0]) if 'candidate(' in text else 0",
    "exit": "import os\nos._exit(0)",
    "signal": "import os\ndef add(a, b): os.kill(os.getppid(), 9)",
    "args": "def add(a, b):\n    class L(list): pass\n    return L([a, b])",
}


@pytest.mark.parametrize("hack", HACKS)
def test_a_hack_of_hidden_tests_is_wrong(hack: str, sandbox: Recording) -> None:
    tests = {
        "prompt": "def add(a, b):\n    '''Add.'''\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n"
        "    assert candidate(20, 30) == 50\n",
        "entry_point": "add",
    }
    score = judge(HACKS[hack], tests, sandbox, policy=BRIEF)
    assert (score.value, score.outcome) == (0.0, Outcome.WRONG), score


def test_a_test_program_that_fails_by_itself_is_an_error(sandbox: Recording) -> None:
    for test in ("import no_such_module\nassert f(1)", "assert f(1", "x = 1\n", "assert 1 == 2"):
        score = judge("def f(x): return x", test, sandbox)
        assert (score.value, score.outcome) == (None, Outcome.ERROR), (test, score)
        assert "test program is broken" in score.detail


# bad input, and failures of ours


def test_bad_input_is_said_early(sandbox: Recording) -> None:
    with pytest.raises(UsageError, match="no tests"):
        judge("x", [], sandbox)
    with pytest.raises(UsageError, match="Did you mean 'python'"):
        judge("x", SUMS, sandbox, language="pyhton")
    with pytest.raises(UsageError, match="are for python, not cpp"):
        judge("x", CALLS, sandbox, language="c++")
    sandbox.has = lambda command: command != "python3"  # type: ignore[method-assign]
    with pytest.raises(UsageError, match="python need python3, which the sandbox 'bubblewrap'"):
        judge("x", SUMS, sandbox)
    assert sandbox.programs == []


@pytest.mark.parametrize(
    "tests", [SUMS, CALLS, "assert f(1) == 1"], ids=["runs", "calls", "hidden"]
)
def test_a_failure_of_the_sandbox_is_no_verdict(tests: Any, sandbox: Recording) -> None:
    def fails(program: Program) -> Finished:
        raise SandboxError("on fire")

    sandbox.run = fails  # type: ignore[method-assign]
    score = judge("def f(x): return x", tests, sandbox)
    assert (score.value, score.outcome) == (None, Outcome.ERROR)
    assert score.detail == "sandbox bubblewrap: on fire"


def test_an_ending_by_a_limit_is_never_a_pass(sandbox: Recording) -> None:
    run = sandbox.inner.run
    for ending in Ending:
        if ending is Ending.EXIT:
            continue
        sandbox.run = lambda program, ending=ending: replace(  # type: ignore[method-assign, misc]
            run(program), ending=ending, exit_code=None
        )
        assert judge(PROGRAMS["python"], SUMS, sandbox).value == 0.0


def test_the_registered_reward_takes_tests_or_the_answer(
    inner: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_default", [inner])
    reward = rewards.load("code")
    for columns in ({"tests": SUMS}, {"answer": json.dumps(SUMS)}):
        case = rewards.Case("", fenced(PROGRAMS["python"]), **_as_case(columns))
        assert asyncio.run(rewards.apply(reward, case)).value == 1.0
    missing = asyncio.run(rewards.apply(reward, rewards.Case("", "x")))
    assert missing.outcome is Outcome.ERROR and "a column 'tests'" in missing.detail


def _as_case(columns: dict[str, Any]) -> dict[str, Any]:
    answer = columns.pop("answer", None)
    return {"answer": answer, "columns": columns}


# HumanEval


def humaneval() -> list[dict[str, str]]:
    if not HUMANEVAL.exists():
        pytest.skip(f"no {HUMANEVAL.name} beside the repository")
    with gzip.open(HUMANEVAL, "rt") as file:
        return [json.loads(line) for line in file]


def values(rows: Sequence[dict[str, str]], sandbox: Sandbox, solution: str) -> list[float | None]:
    """Of every row's canonical solution, or of the same text for all."""

    def one(row: dict[str, str]) -> float | None:
        tests = {key: row[key] for key in ("prompt", "test", "entry_point")}
        text = row["canonical_solution"] if solution == "canonical" else solution
        if solution == "fenced":
            text = fenced(row["prompt"] + row["canonical_solution"])
        return rewards.code.score(text, tests, sandbox=sandbox).value

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(one, rows))


@pytest.mark.parametrize(("solution", "value"), [("fenced", 1.0), ("    pass\n", 0.0)])
def test_some_of_humaneval(solution: str, value: float, sandbox: Recording) -> None:
    rows = [row for i, row in enumerate(humaneval()) if i % 10 == 2]  # with find_zero, row 32
    assert values(rows, sandbox, solution) == [value] * 17


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solution", "value"),
    [("canonical", 1.0), ("", 0.0), ("    pass\n", 0.0)],
    ids=["canonical", "empty", "pass"],
)
def test_humaneval(solution: str, value: float, sandbox: Recording) -> None:
    assert values(humaneval(), sandbox, solution) == [value] * 164


def test_a_row_without_tests_is_told_when_data_is_loaded():
    import envs

    rows = [
        {"prompt": "add", "tests": [{"input": "1", "output": "1"}]},
        {"prompt": "x", "tests": []},
    ]
    with pytest.raises(UsageError, match=r"row 1.*test"):
        envs.from_tasks(rows, reward="code")
