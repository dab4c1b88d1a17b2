"""Extraction, forms of tests, comparison and the typed form of values: no sandbox needed."""

from __future__ import annotations

import json
import math
import time
from collections import Counter, OrderedDict
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import UsageError
from rewards.code import cases, compare, extract
from rewards.code.cases import Call, Hidden, Run
from rewards.code.values import MAX_DEPTH, Opaque, decode, encode, shallow

# extraction


@pytest.mark.parametrize(
    ("response", "language", "code"),
    [
        ("```python\na\n```", None, "a\n"),
        ("```py\na\n```\ntext\n```python3\nb\n```", "python", "b\n"),
        ("```python\na\n```\n```cpp\nb\n```", "python", "a\n"),
        ("```python\na\n```\n```cpp\nb\n```", None, "b\n"),
        ("```\na\n```", "python", "a\n"),
        ("~~~python\n```\nb\n~~~", None, "```\nb\n"),
        ("````python\n```\na\n```\n````", None, "```\na\n```\n"),
        ("   ```python\r\na\r\n   ```", None, "a\n"),
        ("```python\na", None, "a"),
        ("```python title=x\na\n```", "python", "a\n"),
        ("<think>```python\na\n```</think>```python\nb\n```", None, "b\n"),
        ("<think>x</think>\n```python\nb\n```", None, "b\n"),
        ("```python\n\n```", None, "\n"),
    ],
)
def test_the_program_is_the_last_block(response: str, language: str | None, code: str) -> None:
    block = extract.program(response, language)
    assert block is not None and block.code == code


@pytest.mark.parametrize(
    "response",
    [
        "",
        "no code",
        "`a`",
        "    ```python\n    a\n",  # indented by four: not a fence
        "```python\na\n```\n<think>",
        "<think>```python\na\n```",
        "<think>\n```python\na\n```\n</think> I am done.",
    ],
)
def test_no_program(response: str) -> None:
    assert extract.program(response) is None


def test_only_a_bare_response_may_do_without_a_fence() -> None:
    assert extract.program("    return 1\n", bare=True) == extract.Block("", "    return 1\n")
    assert extract.program("  \n", bare=True) is None
    block = extract.program("text\n```python\na\n```", bare=True)
    assert block is not None and block.code == "a\n"
    assert extract.program("```cpp\na\n```", "python", bare=True) is None


def test_a_long_response_is_read_quickly() -> None:
    assert extract.program("```x`" * 2_000_000) is None
    block = extract.program("```python\n" + "x = 1\n" * 500_000 + "`" * 2_000_000 + "x")
    assert block is not None and len(block.code) > 5_000_000


# forms of tests


@pytest.mark.parametrize(
    ("tests", "wanted"),
    [
        ([{"input": "1\n", "output": "2\n"}], [Run("1\n", "2\n")]),
        ({"inputs": ["1"], "outputs": ["2"]}, [Run("1", "2")]),
        ('{"inputs": [["a", "b"]], "outputs": [["c"]]}', [Run("a\nb\n", "c\n")]),
        (
            {"inputs": [[1, 2]], "outputs": [[3]], "fn_name": "f"},
            [Call("f", (1, 2), ([3], 3))],
        ),
        (
            {"fn_name": "f", "inputs": ['[1]\n"x"'], "outputs": ["true"]},
            [Call("f", ([1], "x"), (True,))],
        ),
        (
            [{"fn": "f", "args": [1], "kwargs": {"y": 2}, "expected": None}],
            [Call("f", (1,), (None,), {"y": 2})],
        ),
        ([{"entry_point": "f", "args": [], "expected": "1"}], [Call("f", (), ("1",))]),
        (
            {"test": "def check(c): assert c() == 1", "entry_point": "f", "prompt": "p"},
            Hidden("def check(c): assert c() == 1", "f", "p"),
        ),
        (["assert f() == 1", "assert f() == 2"], Hidden("assert f() == 1\nassert f() == 2")),
        (
            {"test_list": ["assert f()"], "test_setup_code": "import math"},
            Hidden("import math\nassert f()"),
        ),
        ("assert f(1) == 2", Hidden("assert f(1) == 2")),
    ],
)
def test_the_forms_of_tests(tests: Any, wanted: Any) -> None:
    assert cases.read(tests) == wanted


@pytest.mark.parametrize(
    ("tests", "said"),
    [
        ([], "no tests"),
        ("", "no tests"),
        ("[]", "no tests"),
        ({"test": " "}, "no tests"),
        ({"test_list": []}, "no tests"),
        ({"inputs": [], "outputs": []}, "no tests"),
        ([{"input": "1", "output": ""}, {"input": "2", "output": " \n"}], "an empty program"),
        ({"inputs": ["1"], "outputs": []}, "1 inputs, but 0 outputs"),
        (7, "int is no form of tests"),
        ([{"input": "1"}], "test 1: needs an input and an output, has input"),
        ([{"input": "1", "output": "1"}, 5], "test 2: needs an input and an output, got 5"),
        ([{"input": "1", "output": "1"}, {"fn": "f", "args": [], "output": 1}], "1 of the tests"),
    ],
)
def test_tests_that_cannot_work_are_refused(tests: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        cases.read(tests)


def test_a_row_without_tests_is_named() -> None:
    good = {"tests": [{"input": "", "output": "1"}]}
    assert cases.check_rows([good, good]) == 2
    with pytest.raises(UsageError, match="row 2: no tests"):
        cases.check_rows([good, {"tests": []}])
    with pytest.raises(UsageError, match="row 1: no column 'tests'"):
        cases.check_rows([{"prompt": "x"}])
    with pytest.raises(UsageError, match="a test file with no tests"):
        cases.check_rows([])


# comparison


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1 2  \r\n\r\n", "1 2", True),
        ("1  2", "1 2", True),  # words are compared
        ("1\n2", "1 2", False),
        ("", "", True),
        ("", "1", False),
        ("\n1", "1", False),
        ("0.1000000001", "0.1", True),
        ("0.10001", "0.1", False),
        ("1.0", "1", True),
        ("1e3", "1000", True),
        ("7", "007", False),
        ("10000000000000001", "10000000000000000", False),
        ("nan", "nan", True),
        ("1.5", "nan", False),
        ("inf", "1e999", False),
        ("YES", "yes", False),
        ("1." + "0" * 100, "1", False),
        ("1 2 3", "1 2", False),
    ],
)
def test_printed_text(got: str, expected: str, same: bool) -> None:
    assert compare.same_text(got, expected, 1e-6) is same


@pytest.mark.parametrize(
    ("got", "expected", "same"),
    [
        (1, 1, True),
        (True, 1, False),
        (1, True, False),
        (True, True, True),
        (False, None, False),
        (None, None, True),
        ("1", 1, False),
        (2.0, 2, True),
        (10**400, 1.0, False),
        (0.1 + 0.2, 0.3, True),
        (0.3001, 0.3, False),
        (math.nan, math.nan, True),
        (math.inf, math.inf, True),
        (math.inf, 1e308, False),
        ((1, 2), [1, 2], True),
        ([1, 2], (1, 2), False),
        ([1, True], [1, 1], False),
        ([1], [1, 2], False),
        ({"a": 1}, {"a": 1}, True),
        ({1: "a"}, {"1": "a"}, False),
        ({True: "a"}, {1: "a"}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({1, 2}, frozenset({1, 2}), True),
        ({True}, {1}, False),
        ([], {}, False),
        (b"a", "a", False),
        (b"a", b"a", True),
        (1 + 2j, 1 + 2j, True),
        (Decimal("0.1"), Decimal("0.1"), True),
        (Fraction(1, 3), Fraction(1, 3), True),
        (Opaque("X"), Opaque("X"), False),
        (Opaque("X"), 1, False),
        ([Opaque("X")], [1], False),
    ],
)
def test_returned_values(got: Any, expected: Any, same: bool) -> None:
    assert compare.same_value(encode(got), expected, 1e-6) is same


def test_a_list_is_a_list_when_it_is_strict() -> None:
    assert compare.same_value(encode(((1,),)), [(1,)], 0.0)
    assert not compare.same_value(encode(((1,),)), [(1,)], 0.0, strict=True)
    assert compare.same_value(encode([(1,)]), [(1,)], 0.0, strict=True)


@pytest.mark.parametrize(
    "forged",
    [
        {"fraction": [{"int": "f" * 4_000_000}, {"int": "e" * 4_000_001}]},
        {"int": "f" * 8_000_000},
        {"set": [{"int": f"{i * (2**61 - 1):x}"} for i in range(100_000)]},  # all of hash 0
        {"dict": [[{"int": f"{i * (2**61 - 1):x}"}, i] for i in range(100_000)]},
        {"decimal": "sNaN"},
        {"decimal": "1E+999999999"},
        {"float": "x"},
        {"dict": [1]},
        {"tuple": None},
        {"int": None},
        {"a": 1, "b": 2},
        {},
    ],
    ids=range(12),
)
def test_a_forged_form_is_unequal_at_once(forged: Any) -> None:
    start = time.monotonic()
    for value in (1, 1.5, "x", [1], (1,), {1: 2}, {1, 2}, Fraction(1, 3), Decimal("0.1"), None):
        assert not compare.same_value(forged, value, 1e-6)
        assert not compare.same_value([forged], [value], 1e-6)
    assert time.monotonic() - start < 10


def test_json_deeper_than_any_form_is_told() -> None:
    deepest: Any = 1
    for _ in range(MAX_DEPTH - 1):
        deepest = {(1,): deepest}
    assert shallow(encode(deepest))
    form: Any = 1
    for _ in range(4 * MAX_DEPTH):
        form = [form]
    assert not shallow(form)


# values

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.complex_numbers(allow_nan=False),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.integers() | st.text() | st.booleans(), inner, max_size=4)
        | st.sets(st.integers() | st.text(), max_size=4)
        | st.frozensets(st.integers(), max_size=4)
    ),
    max_leaves=20,
)


def shape(value: Any) -> Any:
    """With every type spelt out, so that True and 1 differ."""
    if isinstance(value, list | tuple):
        return (type(value), [shape(one) for one in value])
    if isinstance(value, dict):
        return (dict, [(shape(key), shape(one)) for key, one in value.items()])
    return (type(value), value)


@given(plain)
def test_a_value_survives_json_with_its_type(value: Any) -> None:
    again = decode(json.loads(json.dumps(encode(value))))
    assert shape(again) == shape(value)
    assert compare.same_value(encode(again), value, 0.0, strict=True)


class Point(NamedTuple):
    x: int
    y: int


class Always(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


class Liar(list[int]):
    def __iter__(self) -> Any:
        return iter([42])

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]


def test_overridden_methods_stay_behind() -> None:
    assert (type(decode(encode(Always(3)))), decode(encode(Always(3)))) == (int, 3)
    assert decode(encode(Liar([1, 2]))) == [1, 2]
    assert decode(encode(Point(1, 2))) == (1, 2)
    assert decode(encode(Counter("aab"))) == {"a": 2, "b": 1}
    assert type(decode(encode(OrderedDict(a=1)))) is dict


def test_other_values_have_a_form_or_are_opaque() -> None:
    for value in (range(1, 9, 3), Decimal("1.10"), Fraction(2, 6), bytearray(b"x")):
        again = decode(json.loads(json.dumps(encode(value))))
        assert (type(again), again) == (type(value), value)
    assert list(decode(encode(iter([1, 2])))) == [1, 2]
    assert encode(iter(lambda: 1, 2)) == {"opaque": "an iterator without end"}
    assert encode(object()) == {"opaque": "object"}
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    assert "nested too deeply" in json.dumps(encode(deep))
    cyclic: list[Any] = []
    cyclic.append(cyclic)
    assert "nested too deeply" in json.dumps(encode(cyclic))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "int",
                        "float",
                        "tuple",
                        "dict",
                        "set",
                        "bytes",
                        "complex",
                        "range",
                        "decimal",
                        "fraction",
                        "iterator",
                        "opaque",
                        "x",
                    ]
                )
                | st.text(),
                inner,
            )
        ),
        max_leaves=15,
    )
)
def test_any_json_is_read_or_refused(form: Any) -> None:
    try:
        decode(form)
    except ValueError:
        pass


def test_deep_json_is_refused() -> None:
    form: Any = 1
    for _ in range(500):
        form = {"tuple": [form]}
    with pytest.raises(ValueError, match="nested too deeply"):
        decode(form)
