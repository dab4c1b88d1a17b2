"""Fill-in-the-middle: nothing lost, the two orders, rates, the same for the same seed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.fim import FimSettings, cut, joined, token_ids
from pretrain.errors import UsageError
from pretrain.tokenizer_files import read_tokenizer
from tests.pretrain.token_corpus import tokenizer_folder

ALWAYS = FimSettings(rate=1.0)


@given(st.text(max_size=50), st.integers())
def test_the_parts_are_the_document(text: str, seed: int) -> None:
    found = cut(text, ALWAYS, str(seed))
    assert found is not None
    assert found.prefix + found.middle + found.suffix == text
    assert found == cut(text, ALWAYS, str(seed))


def test_prefix_suffix_middle_and_suffix_prefix_middle() -> None:
    text = "0123456789"
    orders = set()
    for seed in range(20):
        found = cut(text, ALWAYS, str(seed))
        assert found is not None
        ids = joined(found, [[ord(char) for char in part] for part in found.parts], (1, 2, 3))
        said = "".join({1: "<P>", 2: "<S>", 3: "<M>"}.get(i) or chr(i) for i in ids)
        if found.spm:
            assert said == f"<P><S>{found.suffix}<M>{found.prefix}{found.middle}"
        else:
            assert said == f"<P>{found.prefix}<S>{found.suffix}<M>{found.middle}"
        orders.add(found.spm)
    assert orders == {True, False}


def test_rate_and_share_of_spm_and_uniform_cuts() -> None:
    settings = FimSettings(rate=0.7, spm_share=0.25)
    found = [cut("x" * 100, settings, str(n)) for n in range(4000)]
    there = [one for one in found if one]
    assert len(there) / 4000 == pytest.approx(0.7, abs=0.03)  # 4 sigma
    assert sum(one.spm for one in there) / len(there) == pytest.approx(0.25, abs=0.035)
    # two uniform places: each part is a third on average
    for part in ("prefix", "middle", "suffix"):
        mean = sum(len(getattr(one, part)) for one in there) / len(there)
        assert mean == pytest.approx(100 / 3, abs=2)
    assert not any(cut("x", FimSettings(rate=0), str(n)) for n in range(50))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UsageError, match="rate"):
        FimSettings(rate=1.5)
    with pytest.raises(UsageError, match="three different"):
        FimSettings(tokens=("<a>", "<a>", "<b>"))
    with pytest.raises(UsageError, match="'<a>'"):
        token_ids(FimSettings(tokens=("<a>", "<b>", "<c>")), read_tokenizer(tokenizer_folder()))
