"""Reading data files: what is accepted, in which encodings, and that no more than a piece of a file is held."""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.data_files import facts, iter_rows, iter_text, json_rows, text_encoding
from training.errors import UserError
from training.formats import Row

GERMAN = "Die Mühlen mahlen langsam, und größer wird der Ärger über die Straße.\n"
RUSSIAN = "Сегодня хорошая погода, и мы пойдём гулять в парк.\n"
JAPANESE = "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"
CHINESE = "今天天气很好，我们一起去公园散步。人工智能正在改变世界。\n"  # noqa: RUF001


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.json", '[{"a": "é"}, {"a": 2}]'),
        ("windows.json", b'\xef\xbb\xbf[{"a": "\xc3\xa9"},\r\n {"a": 2}]'),
        ("wrapped.json", '{"version": 1.5, "data": [{"a": "é"}, {"a": 2}], "errors": [], "by": {"b": [1]}}'),
        ("lines.json", '{"a": "é"}\n{"a": 2}\n'),
        ("pretty.json", '{\n "a": "é"\n}\n{\n "a": 2\n}'),
        ("lines.jsonl", '{"a": "é"}\n{"a": 2}'),
        ("LINES.JSONL", '\n{"a": "é"}\r\n\r\n{"a": 2}\n\n'),
    ],
)
def test_rows(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert list(iter_rows(written(tmp_path, name, content))) == [{"a": "é"}, {"a": 2}]


def test_line_separators_inside_text_do_not_end_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": "x\u2028y\u0085z"}\n')
    assert list(iter_rows(path)) == [{"a": "x\u2028y\u0085z"}]


def test_constants_that_json_does_not_know_are_missing_values(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", '[{"a": NaN, "b": -Infinity, "c": "NaN"}]')
    assert list(iter_rows(path)) == [{"a": None, "b": None, "c": "NaN"}]


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), values, max_size=3), min_size=1, max_size=5),
    shape=st.sampled_from(["list", "indented", "wrapped", "lines"]),
    ascii_only=st.booleans(),
    block=st.integers(1, 40),
)
def test_where_a_block_ends_changes_no_row(rows: list[Row], shape: str, ascii_only: bool, block: int) -> None:
    if shape == "lines":
        rows = [*rows, {}]  # one object alone is not a row
        text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    else:
        whole = {"n": 123456.75, "rows": rows, "name": "x"} if shape == "wrapped" else rows
        text = json.dumps(whole, ensure_ascii=ascii_only, indent=2 if shape == "indented" else None)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BLOCK", block)
        if shape == "wrapped":
            patch.setattr(json_rows, "_LONGEST_FIRST_ROW", 1)  # or the whole object would be held at once
        assert list(iter_rows(written(Path(folder), "a.json", text))) == rows


def test_places_in_messages_hold_beyond_the_first_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "BLOCK", 64)
    good = ",\n".join('{"a": "ä"}' for _ in range(500))
    path = written(tmp_path, "a.json", f'[{good},\n  {{"a": x}}]')
    with pytest.raises(UserError, match=r"Expecting value at line 501, column 9 \(row 501\)"):
        list(iter_rows(path))


def test_what_is_read_for_a_long_row_doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading it by equal pieces would take time that grows with the square of its length."""
    monkeypatch.setattr(json_rows, "BLOCK", 64)
    reads = []
    read_more = json_rows._Window._read_more

    def counted(window: Any) -> None:
        reads.append(window)
        read_more(window)

    monkeypatch.setattr(json_rows._Window, "_read_more", counted)
    for content in ('[{"a": "' + "x" * 500_000 + '"}]', '{"rows": [{"a": "' + "x" * 500_000 + '"}]}'):
        reads.clear()
        assert len(list(iter_rows(written(tmp_path, "a.json", content)))) == 1
        assert len(reads) < 40


def _large(path: Path) -> None:
    """About 30 MB of rows or text."""
    row = {"question": "What? " * 40, "answer": "That. " * 40}
    line = json.dumps(row)
    with path.open("w") as file:
        if path.suffix == ".json":
            file.write('{"rows": [' if "wrapped" in path.name else "[")
        if path.suffix == ".csv":
            file.write("question,answer\n")
        for number in range(60_000):
            comma = "," if number and path.suffix == ".json" else ""
            file.write(f"{row['question']},{row['answer']}\n" if path.suffix == ".csv" else f"{comma}{line}\n")
        if path.suffix == ".json":
            file.write("]}" if "wrapped" in path.name else "]")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json", "wrapped.json", "a.txt"])
def test_a_large_file_is_not_held(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json_rows, "_LONGEST_FIRST_ROW", 1 << 20)
    path = tmp_path / name
    _large(path)
    facts(path)
    tracemalloc.start()
    count = sum(1 for _ in (iter_text if name == "a.txt" else iter_rows)(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == (60_000 if name != "a.txt" else -(-path.stat().st_size // text_encoding.BLOCK))
    assert path.stat().st_size > 25_000_000 and peak < 12_000_000


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('a,b\n1,"x, y"\n', [{"a": "1", "b": "x, y"}]),
        ("a;b\n1,5;2\n", [{"a": "1,5", "b": "2"}]),
        ("a\tb\r\n1\t2\r\n", [{"a": "1", "b": "2"}]),
        ("a|b\n1|2\n", [{"a": "1", "b": "2"}]),
        (
            "text, with a comma;b\nx;2\ny;3\n",
            [{"text, with a comma": "x", "b": "2"}, {"text, with a comma": "y", "b": "3"}],
        ),
        ('a,b\n"1\r\n2",""\n', [{"a": "1\n2", "b": ""}]),
        ("a,b,c\n1\n,2\n", [{"a": "1", "b": None, "c": None}, {"a": "", "b": "2", "c": None}]),
        ('\ufeff" a ",b\n007,true\n', [{"a": "007", "b": "true"}]),
        ('a\n"say ""hi"""\n', [{"a": 'say "hi"'}]),
        ("a,b\n,\n", [{"a": "", "b": ""}]),
    ],
)
def test_delimited(tmp_path: Path, content: str, expected: list[Row]) -> None:
    assert list(iter_rows(written(tmp_path, "a.csv", content))) == expected


def test_tab_separated_keeps_commas(tmp_path: Path) -> None:
    assert list(iter_rows(written(tmp_path, "a.tsv", "a, b\tc; d\n1, 2\t3; 4\n"))) == [{"a, b": "1, 2", "c; d": "3; 4"}]


def test_parquet(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Nummer {n}"}], "n": n, "none": None} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(iter_rows(tmp_path / "a.parquet")) == rows


def test_parquet_with_a_column_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"^a\.parquet has the column 'a' more than once"):
        list(iter_rows(tmp_path / "a.parquet"))


def test_text_keeps_its_characters(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf one\r\ntwo \rthree\n\x0c\xe2\x80\xa8"
    assert "".join(iter_text(written(tmp_path, "a.txt", content))) == " one\ntwo \nthree\n\x0c\u2028"


def test_text_comes_in_blocks_and_ends_of_lines_survive_their_borders(tmp_path: Path) -> None:
    text = "x" * (text_encoding.BLOCK - 1) + "\r\n" + "ü\r\n" * text_encoding.BLOCK
    blocks = list(iter_text(written(tmp_path, "a.md", text)))
    assert max(map(len, blocks)) <= text_encoding.BLOCK and len(blocks) == 3
    assert "".join(blocks) == text.replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("text", "codec", "words"),
    [
        ("plain", "ascii", "UTF-8"),
        (GERMAN, "utf-8", "UTF-8"),
        (GERMAN, "utf-8-sig", "UTF-8 with BOM"),
        (GERMAN, "utf-16", "UTF-16"),
        (GERMAN, "utf-16-le", "UTF-16"),
        (GERMAN, "utf-16-be", "UTF-16"),
        (RUSSIAN * 9, "utf-16-le", "UTF-16"),
        (CHINESE * 9, "utf-16-be", "UTF-16"),
        (GERMAN, "utf-32", "UTF-32"),
        (GERMAN, "cp1252", "Windows-1252 (detected)"),
        ("Schöne Grüße.", "cp1252", "Windows-1252 (detected)"),
        ("“It’s a lovely day,” she said – and paid 5 €.", "cp1252", "Windows-1252 (detected)"),  # noqa: RUF001
        ("Perché la città è così bella? Où est l'été, señor?", "cp1252", "Windows-1252 (detected)"),
        (RUSSIAN, "cp1251", "Windows-1251 (detected)"),
        (RUSSIAN, "koi8_r", "KOI8-R (detected)"),
        (JAPANESE, "cp932", "Shift-JIS (detected)"),
        (JAPANESE, "euc_jp", "EUC-JP (detected)"),
        (CHINESE, "gb18030", "GBK (detected)"),
        ("Zażółć gęślą jaźń. Dzieci śpią już od godziny.", "cp1250", "Windows-1250 (detected)"),
        ("오늘은 날씨가 매우 좋아서 우리는 공원에 갔습니다.", "cp949", "Korean (CP949) (detected)"),
        # Where plain English is most of the file, and no line ends.
        ("Nothing odd is in here. " * 20_000 + GERMAN, "cp1252", "Windows-1252 (detected)"),
        ("Nothing odd is in here.\n" * 20_000 + RUSSIAN, "cp1251", "Windows-1251 (detected)"),
        ("x" * 3_000_000 + CHINESE, "gb18030", "GBK (detected)"),
    ],
)
def test_encodings(tmp_path: Path, text: str, codec: str, words: str) -> None:
    path = written(tmp_path, "a.txt", text.encode(codec))
    assert facts(path).encoding == words
    assert "".join(iter_text(path)) == text
    rows = written(tmp_path, "a.json", json.dumps([{"text": text}], ensure_ascii=False).encode(codec))
    assert list(iter_rows(rows)) == [{"text": text}]


def test_broken_utf8_is_not_taken_for_an_old_encoding(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", (GERMAN * 3).encode()[:-10] + b"\xc3(" + GERMAN.encode())
    with pytest.raises(UserError, match=r"^a\.txt is UTF-8 but for a mistake at byte \d+, line 3"):
        facts(path)


def test_characters_over_the_border_of_a_block(tmp_path: Path) -> None:
    before = "a" * (text_encoding.BLOCK - 1)
    for codec in ("utf-8", "utf-16", "cp932"):
        path = written(tmp_path, f"{codec}.txt", (before + JAPANESE * 3).encode(codec))
        assert "".join(iter_text(path)) == before + JAPANESE * 3
    path = written(tmp_path, "a.txt", GERMAN.encode("cp1252") + before.encode() + b"\x81")
    with pytest.raises(UserError, match=f"from byte {len(before) + len(GERMAN) + 1:,}, line 2 on"):
        facts(path)


def test_facts_follow_the_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "a.txt", "one")
    first = facts(path)
    assert first.sha256 == hashlib.sha256(b"one").hexdigest()
    with monkeypatch.context() as patch:
        patch.delattr(text_encoding, "_pass_over")
        assert facts(path) == first  # not read again
    path.write_text("two")
    os.utime(path, ns=(1, 1))
    assert facts(path).sha256 == hashlib.sha256(b"two").hexdigest()
    assert facts(written(tmp_path, "a.parquet", b"\0\xff")).encoding == ""


def test_a_file_that_changes_while_it_is_read_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n' * 100_000)
    rows = iter_rows(path)
    next(rows)
    with path.open("r+b") as file:
        file.seek(500_000)
        file.write(codecs.BOM_UTF16_LE)
    with pytest.raises(UserError, match="changed while it was read"):
        list(rows)


def test_word_document(tmp_path: Path) -> None:
    document = docx.Document()
    document.add_heading("Titel", 1)
    document.add_paragraph("Eins\tzwei\ndrei")
    table = document.add_table(rows=2, cols=2)
    for number, cell in enumerate(cell for row in table.rows for cell in row.cells):
        cell.text = f"Zelle {number}"
    table.cell(1, 0).merge(table.cell(1, 1))
    body = document.add_paragraph("Ende.")._p
    word = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    for tag, text in (("ins", "w:t"), ("del", "w:delText"), ("moveFrom", "w:t")):
        change = f'<w:{tag} {word} w:id="1" w:author="x"><w:r><{text}>[{tag}]</{text}></w:r></w:{tag}>'
        body.append(docx.oxml.parse_xml(change))
    document.save(str(tmp_path / "a.docx"))
    assert "".join(iter_text(tmp_path / "a.docx")) == (
        "Titel\nEins\tzwei\ndrei\nZelle 0\nZelle 1\nZelle 2\nZelle 3\nEnde.[ins]\n"
    )


def test_word_document_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document, file = docx.Document(), io.BytesIO()
    document.save(file)
    monkeypatch.setattr("training.data_files.documents._LARGEST_DOCX", 10_000)
    with pytest.raises(UserError, match=r"^a\.docx unpacks to more than 1 GB"):
        list(iter_text(written(tmp_path, "a.docx", file.getvalue())))


def _pdf(*pages: str) -> bytes:
    """A PDF written by hand, its cross references left to the reader to mend."""
    numbers = [4 + 2 * page for page in range(len(pages))]
    parts = [
        "1 0 obj\n<</Type/Catalog/Pages 2 0 R>>\nendobj",
        f"2 0 obj\n<</Type/Pages/Count {len(pages)}/Kids[{' '.join(f'{n} 0 R' for n in numbers)}]>>\nendobj",
        "3 0 obj\n<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>\nendobj",
    ]
    for number, text in zip(numbers, pages, strict=True):
        stream = f"BT /F 12 Tf 20 100 Td ({text}) Tj ET"
        parts.append(
            f"{number} 0 obj\n<</Type/Page/Parent 2 0 R/MediaBox[0 0 200 200]/Resources<</Font<</F 3 0 R>>>>"
            f"/Contents {number + 1} 0 R>>\nendobj"
        )
        parts.append(f"{number + 1} 0 obj\n<</Length {len(stream)}>>\nstream\n{stream}\nendstream\nendobj")
    return ("%PDF-1.4\n" + "\n".join(parts) + "\ntrailer\n<</Root 1 0 R>>\nstartxref\n0\n%%EOF\n").encode("latin-1")


def test_pdf_pages_are_parted_by_a_blank_line(tmp_path: Path) -> None:
    assert "".join(iter_text(written(tmp_path, "a.pdf", _pdf("Eins", "Zwei")))) == "Eins\n\nZwei"


def test_a_reader_may_stop_early(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", '{"a": 1}\n{"a": ')
    rows: Iterator[Row] = iter_rows(path)
    assert next(rows) == {"a": 1}
    rows.close()  # type: ignore[attr-defined]
    path.unlink()


def test_first_column_without_a_name_is_the_count_that_pandas_writes(tmp_path: Path) -> None:
    path = tmp_path / "frame.csv"
    path.write_text(",question,answer\n0,Why?,Because.\n", encoding="utf-8")
    assert list(iter_rows(path)) == [{"question": "Why?", "answer": "Because."}]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("excel.csv", "sep=;\nquestion;answer\nWhy, oh why?;Because.\n"),
        ("upper.csv", "SEP=|\r\nquestion|answer\r\nWhy, oh why?|Because.\r\n"),
        ("tab.tsv", 'sep=,\nquestion,answer\n"Why, oh why?",Because.\n'),
        ("mark.csv", "\ufeffsep=;\nquestion;answer\nWhy, oh why?;Because.\n"),
        ("end.csv", "question;answer;\nWhy, oh why?;Because.;\n"),
        ("ends.csv", "question;answer;;\nWhy, oh why?;Because.; ;\n"),
        ("short.csv", "question;answer;\nWhy, oh why?;Because.\n"),
    ],
)
def test_what_spreadsheets_add_to_a_table(tmp_path: Path, name: str, text: str) -> None:
    path = written(tmp_path, name, text)
    assert list(iter_rows(path)) == [{"question": "Why, oh why?", "answer": "Because."}]


def test_lines_are_counted_with_the_one_that_declares_the_delimiter(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "sep=;\nquestion;answer\n1;2\n1;2;3\n")
    with pytest.raises(UserError, match=r"^a\.csv, line 4 has 3 values for 2 columns"):
        list(iter_rows(path))


def test_a_value_in_a_column_without_a_name_is_told_with_its_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", "question,answer,\n1,2,\n1,2,x\n")
    with pytest.raises(UserError, match=r"^a\.csv, line 3 has a value in column 3, .* has no name in the first line"):
        list(iter_rows(path))
    with pytest.raises(UserError, match=r"line 2 has 4 values"):
        list(iter_rows(written(tmp_path, "b.csv", "question,answer,\n1,2,,\n")))


TURNS = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.mark.parametrize(
    "row",
    [
        {"messages": TURNS},
        {"id": 1, "messages": TURNS, "tools": [{"name": "add"}]},
        {"Conversations": [{"from": "human", "value": "Q"}]},
        {"conversation": [{"speaker": "bot", "text": "A"}]},
    ],
)
def test_an_object_with_one_conversation_is_a_row(tmp_path: Path, row: Row) -> None:
    assert list(iter_rows(written(tmp_path, "a.json", json.dumps(row)))) == [row]
    assert list(iter_rows(written(tmp_path, "b.json", json.dumps(row) + "\n"))) == [row]
    assert list(iter_rows(written(tmp_path, "c.json", json.dumps([row])))) == [row]
    with pytest.raises(UserError, match="row 2"):
        list(iter_rows(written(tmp_path, "d.json", json.dumps(row) + " x")))


def test_a_list_of_conversations_is_one_of_rows(tmp_path: Path) -> None:
    rows = [{"messages": TURNS}, {"messages": TURNS}]
    assert list(iter_rows(written(tmp_path, "a.json", json.dumps({"conversations": rows})))) == rows


def test_a_key_that_stands_twice_among_many_is_found_in_time(tmp_path: Path) -> None:
    """In time that grows with the square, these 60,000 keys would take half a minute."""
    text = "{" + ", ".join(f'"k{n}": 1' for n in range(60_000)) + ', "k59999": 2}\n'
    started = time.process_time()
    with pytest.raises(UserError, match=r"line 1 has the key 'k59999' twice"):
        list(iter_rows(written(tmp_path, "a.jsonl", text)))
    assert time.process_time() - started < 5
