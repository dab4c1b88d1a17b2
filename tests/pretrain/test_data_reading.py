"""Damaged archives, wrong encodings, addresses, extraction and languages."""

from __future__ import annotations

import base64
import gzip
import io
import json
import random
import tracemalloc
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from datatrove.data import Document
from fastwarc.warc import WarcRecord, WarcRecordType

from pretrain.data.decoding import DECLARED, DETECTED, REPLACED, UTF8, decode
from pretrain.data.extract import Extract, content
from pretrain.data.language import Language
from pretrain.data.readers import Reader, list_files
from pretrain.data.urls import UrlFilter
from pretrain.data.warc import BROKEN, MAX_PAGE_BYTES, NO_STATUS, TOO_LARGE, read_warc, write_warc
from pretrain.errors import UsageError

EN = "The library was opened in 1912, and most of the books have been there since that time."
DE = "Die Bibliothek wurde im Jahr 1912 eröffnet, und die meisten Bücher sind seither auch dort."
ES = "La biblioteca se abrió en el año 1912 y la mayoría de los libros está allí desde entonces."
MEMBER = b"\x1f\x8b\x08"


def page(number: int) -> tuple[str, bytes, dict[str, str]]:
    body = f"<html><body><p>{EN} {number}</p></body></html>".encode()
    return f"http://example.org/{number}", body, {"Content-Type": "text/html; charset=utf-8"}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("warc") / "a.warc.gz"
    assert write_warc(path, map(page, range(10))) == 10
    return path.read_bytes()


def members(data: bytes) -> list[int]:
    return [i for i in range(len(data)) if data.startswith(MEMBER, i)]


def read(data: bytes) -> tuple[str, int]:
    damage: list[int] = []
    pages = list(read_warc(io.BytesIO(data), damage.append))
    return "".join(page.url[-1] for page in pages), len(damage)


def test_a_whole_archive_is_read_compressed_or_not(archive: bytes) -> None:
    assert read(archive) == ("0123456789", 0)
    assert read(gzip.decompress(archive)) == ("0123456789", 0)


def test_a_damaged_member_costs_itself(archive: bytes) -> None:
    at = members(archive)
    inside = bytearray(archive)
    inside[at[4] + 60 : at[4] + 90] = bytes(30)
    assert read(bytes(inside)) == ("012356789", 1)
    head = bytearray(archive)
    for i in (4, 5, 8):  # two neighbours are one stretch of damage
        head[at[i] : at[i] + 10] = b"x" * 10
    assert read(bytes(head)) == ("0123679", 2)


def test_a_damaged_third_byte_costs_the_first_member(archive: bytes) -> None:
    at = members(archive)
    damaged = archive[:2] + b"\0" + archive[3:]
    assert read(damaged) == ("123456789", 1)
    assert read(damaged[: at[2] - 20]) == ("", 1)
    assert read(damaged[: at[1]]) == ("", 1)
    assert read(damaged[:-20]) == ("12345678", 2)


def test_a_cut_archive_is_read_up_to_the_cut(archive: bytes) -> None:
    at = members(archive)
    assert read(archive[: at[7] + 100]) == ("0123456", 1)
    assert read(archive[: at[3] + 50] + archive[at[5] :]) == ("01256789", 1)
    assert read(gzip.decompress(archive)[:-60]) == ("012345678", 1)
    assert read(b"no archive at all" * 20) == ("", 1)


def test_an_archive_packed_as_one_member_is_read_up_to_the_cut() -> None:
    noise = b"".join(record(EN.encode() + random.Random(i).randbytes(900)) for i in range(8))
    one = gzip.compress(noise)
    damage: list[int] = []
    assert len(list(read_warc(io.BytesIO(one), damage.append))) == 8 and not damage
    pages = list(read_warc(io.BytesIO(one[: len(one) * 2 // 3]), damage.append))
    assert 3 <= len(pages) < 8 and len(damage) == 1
    assert all(page.data.startswith(EN.encode()) for page in pages)


def record(
    body: bytes,
    *headers: str,
    status: str = "200 OK",
    kind: WarcRecordType = WarcRecordType.response,
) -> bytes:
    """An HTTP answer as it stands in an archive."""
    made = WarcRecord()
    made.init_headers(kind)
    made.headers["Content-Type"] = "application/http; msgtype=response"
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/html", *headers, "", ""]
    made.set_bytes_content("\r\n".join(lines).encode() + body)
    out = io.BytesIO()
    made.write(out)
    return out.getvalue()


def chunked(body: bytes, size: int = 100) -> bytes:
    parts = [body[i : i + size] for i in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*parts, b""])


BODY = f"<html><body><p>{EN * 20}</p></body></html>".encode()
GZ = gzip.compress(BODY)
BROTLI = base64.b64decode(
    "G9gGYC0O7LYeX5oi3WSKpq/WLDEydzIHDa54qBLEJ6xc5kAHB+zfT5YmEmWYEAXOsRaWRM+Lpn/Gimm3"
    "FUH1DRM4Zfhvg1gEgEFSlirycwin62iIVQ=="
)  # BODY, as the package brotli packs it
GZIP, CHUNKED = "Content-Encoding: gzip", "Transfer-Encoding: chunked"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ([], BODY),
        ([GZIP], GZ),
        (["Content-Encoding: deflate"], zlib.compress(BODY)),
        (["Content-Encoding: br"], BROTLI),
        ([CHUNKED], chunked(BODY)),
        ([CHUNKED, GZIP], chunked(GZ, 20)),
        # What the crawler has unpacked already, under the server's headers.
        ([GZIP], BODY),
        ([CHUNKED], BODY),
    ],
)
def test_bodies_are_unpacked_in_whole_records_alone(headers: list[str], body: bytes) -> None:
    whole = record(body, *headers)
    behind = record(b"<p>next</p>")
    damage: list[int] = []
    for data in (whole + behind, gzip.compress(whole) + gzip.compress(behind)):
        pages = list(read_warc(io.BytesIO(data), damage.append))
        assert [page.data for page in pages] == [BODY, b"<p>next</p>"] and not damage
    # Cut: its raw size decides, not that of what is unpacked.
    assert not list(read_warc(io.BytesIO(whole[:-30]), damage.append)) and len(damage) == 1


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (record(BODY, status="404 Not Found"), "HTTP 404"),
        (record(BODY, "Location: /", status="301 Moved Permanently"), "HTTP 301"),
        (record(GZ[:40] + bytes(20) + GZ[60:], GZIP), BROKEN),
        (record(chunked(BODY)[:300], CHUNKED), BROKEN),
        (record(GZ, "Content-Encoding: unheard-of"), BROKEN),
        (record(BODY, status=""), NO_STATUS),
        (record(b"a" * (MAX_PAGE_BYTES + 1)), TOO_LARGE),
        (record(b"a" * (MAX_PAGE_BYTES + (1 << 20))), TOO_LARGE),
    ],
)
def test_what_is_no_page_is_counted_by_reason(tmp_path: Path, data: bytes, problem: str) -> None:
    (tmp_path / "a.warc").write_bytes(data + record(BODY))
    reader = Reader(list_files(tmp_path), tmp_path)
    assert [d.text for d in reader.read()] == [BODY.decode()]
    assert reader.counts == {problem: 1}


def test_a_large_page_or_record_is_never_held_whole(tmp_path: Path) -> None:
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(100)) + packer.flush()
    metadata = record(b"a" * 50_000_000, kind=WarcRecordType.metadata)
    file = io.BytesIO(record(bomb, GZIP) + metadata + record(BODY))
    tracemalloc.start()
    (large, page) = read_warc(file, pytest.fail)
    held = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (large.problem, page.data) == (TOO_LARGE, BODY)
    assert held < 3 * MAX_PAGE_BYTES


def test_json_lines_that_are_no_utf8_are_counted(tmp_path: Path) -> None:
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in ("größer", "\ufffd")]
    (tmp_path / "a.jsonl").write_bytes(lines[0].encode("latin-1") + b"\n" + lines[1].encode())
    reader = Reader(list_files(tmp_path), tmp_path)
    assert [d.text for d in reader.read()] == ["gr\ufffd\ufffder", "\ufffd"]
    assert reader.damaged_files == {"encoding replaced": ["a.jsonl"]}
    assert reader.counts == {"encoding replaced": 1}


@pytest.mark.parametrize(
    ("data", "declared", "text", "how"),
    [
        ("größer".encode(), "utf-8", "größer", DECLARED),
        ("größer".encode(), "iso-8859-1", "größer", UTF8),  # the server lies
        ("größer".encode("latin-1"), "iso-8859-1", "größer", DECLARED),
        ("Größe und Übermut tun selten gut".encode("latin-1"), "utf-8", None, DETECTED),
        (b"plain", "iso-8859-1", "plain", DECLARED),
        (b"\xef\xbb\xbfmark", None, "mark", DECLARED),
        (
            "<meta charset=koi8-r>Привет".encode("koi8-r"),
            None,
            "<meta charset=koi8-r>Привет",
            DECLARED,
        ),
        ("word".encode("utf-16-le"), "utf-16le", "word", DECLARED),
    ],
)
def test_encodings(data: bytes, declared: str | None, text: str | None, how: str) -> None:
    expected = text if text is not None else "Größe und Übermut tun selten gut"
    assert decode(data, declared) == (expected, how)


def test_what_nothing_decodes_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    text, how = decode(b"\x81\x8d\xff\xfe\x81" * 3, "shift_jis")
    assert how in (DETECTED, REPLACED)
    assert isinstance(text, str)


def test_every_format_is_read_and_its_damage_named(tmp_path: Path, archive: bytes) -> None:
    (tmp_path / "a.warc.gz").write_bytes(archive[: members(archive)[2] + 40])
    (tmp_path / "b.html").write_bytes(b"<p>" + DE.encode("latin-1"))
    rows = [{"text": EN, "id": "x", "lang": "en"}, {"body": "no text"}]
    lines = "\n".join(map(json.dumps, rows)) + "\n{torn"
    (tmp_path / "c.jsonl").write_text(lines)
    pyarrow.parquet.write_table(pyarrow.table({"text": [ES]}), tmp_path / "d.parquet")
    (tmp_path / "e.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "f.jsonl.gz").write_bytes(gzip.compress(json.dumps({"text": EN}).encode())[:-9])
    reader = Reader(list_files(tmp_path), tmp_path)
    documents = list(reader.read())
    assert [d.id for d in documents if d.metadata["file_path"] != "a.warc.gz"][:3] == [
        *("b.html", "x", "d.parquet/0")
    ]
    assert DE in documents[2].text and documents[2].metadata["html"] is True
    assert documents[3].metadata == {"lang": "en", "file_path": "c.jsonl"}
    assert reader.counts["damaged"] == 3
    assert reader.damaged_files["damaged"][0].startswith("a.warc.gz after ")
    assert reader.damaged_files["damaged"][1:] == ["e.parquet", "f.jsonl.gz"]
    assert reader.damaged_files["line is not JSON"] == ["c.jsonl line 3"]
    assert reader.counts["encoding detected"] == 1
    assert reader.counts['no text in "text"'] == 1


def test_tasks_share_the_files(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.html").write_text(f"<p>{i}")
    ids = [d.id for rank in (0, 1) for d in Reader(list_files(tmp_path), tmp_path).read(rank, 2)]
    assert ids == ["0.html", "2.html", "4.html", "1.html", "3.html"]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("https://www.essex.ac.uk/assassin/analysis", None),
        ("http://free-porn.example/", "adult_url"),
        ("http://shop.example/buy-viagra-now", "spam_url"),
        # Soft words: three, or two of which one is in the host.
        ("http://a.example/cheap/casino/bonus", "soft_url_words"),
        ("http://www.poker-nude.example/", "soft_url_words"),
        ("http://casino.example/cheap", "soft_url_words"),
        ("http://seitensprung-erotik.example/", "soft_url_words"),
        ("http://casino.example/", None),
        ("http://a.example/casino-royale-film", None),
        ("https://health.example/live-well/sex-education/teens", None),
        ("https://shop.example/pharmacy/discount-policy", None),
        ("https://biology.example/xxx-chromosome", None),
        ("https://medicines.example/viagra", None),
        ("https://films.example/judi-dench", None),
        ("http://anything.xxx/page", "adult_url"),
        ("http://kostenlose-sexfilme.example/", "adult_url"),
        ("http://bank.example/kredit-ohne-schufa.html", "spam_url"),
        ("http://pr%C3%A9stamos-r%C3%A1pidos.example/", "spam_url"),
        ("http://sub.blocked.example/page", "blocklist"),
        ("http://notblocked.example/page", None),
        ("https://www.fine.example/bad/page/", "blocklist"),
        ("https://fine.example/bad/other", None),
        ("http://a.example/my-own-words", "url_word"),
        ("http://a.example/caf%C3%A9", "url_word"),
        ("", None),
        ("http://[broken", None),
    ],
)
def test_addresses(tmp_path: Path, address: str, reason: str | None) -> None:
    blocklist = tmp_path / "blocked.txt"
    blocklist.write_text("# ours\nblocked.example\nhttps://fine.example/bad/page\n")
    step = UrlFilter(blocklist=str(blocklist), words=["own-words", "Café"])
    document = Document(text="", id="", metadata={"url": address} if address else {})
    assert step.check(document) == reason


@pytest.mark.parametrize("word", ["порно", "spø", "порно-sex", "--", ""])
def test_a_word_that_is_not_looked_for_is_said(word: str) -> None:
    with pytest.raises(UsageError, match="url word .* has to be of a to z"):
        UrlFilter(words=["fine", word])


def test_a_sharp_s_is_two() -> None:
    step = UrlFilter(words=["spaß"])
    for path, reason in {"spaß": "url_word", "spass": "url_word", "spa": None}.items():
        document = Document(text="", id="", metadata={"url": f"http://a.example/{path}"})
        assert step.check(document) == reason


def test_a_missing_blocklist_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="blocklist"):
        UrlFilter(blocklist=str(tmp_path / "none.txt"))


def test_navigation_goes_and_prose_stays() -> None:
    menu = "".join(f'<li><a href="/{i}">Menu {i}</a></li>' for i in range(20))
    paragraphs = "".join(f"<p>{EN} Paragraph {i}.</p>" for i in range(8))
    text = content(f"<html><body><nav><ul>{menu}</ul></nav><main>{paragraphs}</main></body></html>")
    assert "Menu" not in text
    assert text.count(EN) == 8


def test_prose_that_main_content_loses_is_kept() -> None:
    # A class name that reads as a sidebar's, around half of the text.
    half = "".join(f"<p>{EN} Lost {i}.</p>" for i in range(8))
    kept = "".join(f"<p>{EN} Kept {i}.</p>" for i in range(8))
    html = f'<html><body><main>{kept}</main><div class="sidebar">{half}</div></body></html>'
    text = content(html)
    assert text.count("Kept") == 8 and text.count("Lost") == 8
    assert content(html, max_lost_prose=10).count("Lost") == 0


def test_a_page_without_text_is_dropped_and_text_is_left_alone() -> None:
    step = Extract()
    empty = Document(text="<html><body><script>1</script></body></html>", id="", metadata={})
    empty.metadata["html"] = True
    assert step.check(empty) == "no_text"
    plain = Document(text="a < b", id="", metadata={})
    assert step.check(plain) is None and plain.text == "a < b"


def judge(step: Language, text: str) -> tuple[str | None, str, str]:
    document = Document(text=text, id="", metadata={})
    return step.check(document), document.metadata["language"], document.text


@pytest.mark.parametrize("identifier", ["fasttext", "lingua"])
def test_languages(identifier: str) -> None:
    step = Language(keep=["en", "de"], identifier=identifier)
    assert judge(step, EN) == (None, "en", EN)
    assert judge(step, DE) == (None, "de", DE)
    assert judge(step, ES)[:2] == ("other_language", "es")


def test_paragraphs_of_another_language_go() -> None:
    step = Language(keep=["de", "en"])
    de, es = f"{DE} Und mehr davon.", f"{ES} Y mucho más que eso."
    assert judge(step, f"{de}\n{es}\n{de}\nOK") == (None, "de", f"{de}\n{de}\nOK")
    # The wanted language decides, also where it is the smaller part; none wanted: the larger part.
    assert judge(Language(keep=["es"]), f"{de}\n{es}\n{de}") == (None, "es", es)
    assert judge(Language(), f"{de}\n{es}\n{de}") == (None, "de", f"{de}\n{de}")
    assert judge(Language(keep=["en"]), "47 11 08 15")[0] is not None


def test_the_model_is_checked_before_work_begins(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="model"):
        Language(model=str(tmp_path / "lid.bin"))
    with pytest.raises(UsageError, match="keep is a list"):
        Language(keep="en")
