"""Hundreds of damaged or odd files, made here: each gives its rows or text, or is refused in one clear sentence."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import os
import random
import re
import signal
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import docx
import pyarrow as pa
import pyarrow.parquet as pq
import pypdf
import pytest

from training.data_files import iter_rows, iter_text
from training.errors import UserError

Make = Callable[[Path], object]
ROWS = [
    {"question": f"Wie heißt die {n}. Stadt?", "answer": "Köln 東京 🙂", "n": n, "m": [1.5, None]} for n in range(3)
]
LIST = json.dumps(ROWS, ensure_ascii=False, indent=1)
WRAPPED = json.dumps({"version": 1, "rows": ROWS}, ensure_ascii=False)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'question,answer\n"Wie, bitte?",Köln\n"zwei\nZeilen","er sagt ""ja"""\n'
PROSE = "Schöne Grüße aus München, viele heiße Küsse und Bücher für dich.\n"
RUSSIAN = "Москва — столица России, и сегодня там хорошая погода.\n"
MEGABYTE = 1 << 20


class Case(NamedTuple):
    """A file, and the number of its rows or the pattern of the sentence; None where both are right."""

    name: str
    content: bytes | Make
    expected: int | str | None


def _case(name: str, content: str | bytes | Make, expected: int | str | None) -> Case:
    return Case(name, content.encode() if isinstance(content, str) else content, expected)


def _cuts(text: str, count: int) -> list[int]:
    """Lengths at which to cut a text, spread over it."""
    return sorted({max(1, len(text) * part // count) for part in range(count)})


def _truncated() -> Iterator[Case]:
    for at in _cuts(LIST, 40):
        done = LIST[:at].count("\n }")
        yield _case("list.json", LIST[:at], rf"row ({done}|{done + 1})\b")
    for at in _cuts(WRAPPED, 25):
        done = WRAPPED[:at].count("}")
        yield _case("wrapped.json", WRAPPED[:at], rf"row ({done}|{done + 1})\b|before its first row|holds an object")
    for at in _cuts(LINES, 25):
        done, partial = LINES[: at + 1].count("\n"), LINES[at - 1] not in "\n}"
        yield _case("lines.jsonl", LINES[:at], rf"line {done + 1} (ends in|is not valid)" if partial else done)
    for at in _cuts(TABLE, 15):
        open_quote = TABLE[:at].count('"') % 2
        yield _case("table.csv", TABLE[:at], r"line [23]: the row that begins here" if open_quote else None)
    for suffix, whole in ((".parquet", _parquet()), (".docx", _docx("Eins", "Zwei")), (".pdf", _pdf("Eins"))):
        for share in (0, 0.01, 0.1, 0.3, 0.5, 0.8, 0.95):
            expected = None if suffix == ".pdf" else "damaged one"  # pypdf mends what it can
            yield _case(f"cut{suffix}", whole[: int(len(whole) * share)], expected)


def _encoded() -> Iterator[Case]:
    for codec in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"):
        for name, text, rows in (("a.json", LIST, 3), ("a.jsonl", LINES, 3), ("a.csv", TABLE, 2), ("a.txt", PROSE, 1)):
            yield _case(name, text.encode(codec), rows)
            wide = codec.startswith("utf-16")
            # Cut in the middle of a character, or with one that cannot be.
            yield _case(
                name,
                text.encode(codec) + (b"\x00\xd8" if wide else b"\xff"),
                None if wide else "UTF-8 but for|UTF-(8|32).* is none from byte",
            )
    for codec in ("cp1252", "mac_roman"):
        yield _case("a.txt", PROSE.encode(codec), 1)
        yield _case("a.csv", f"question,answer\n{PROSE.strip().replace(',', '')},x\n".encode(codec), 1)
    for codec in ("cp1251", "koi8_r"):
        yield _case("a.jsonl", f'{{"text": "{RUSSIAN.strip()}"}}'.replace("—", "-").encode(codec), 1)
    yield _case(
        "a.txt",
        PROSE.encode("cp1252") * 30_000 + b"\x81",
        r"Windows-1252 \(detected\) but is none from byte .*line 30,001",
    )
    yield _case(
        "a.txt", codecs.BOM_UTF8 + PROSE.encode("cp1252"), "begins as UTF-8 with BOM but is none from byte 7, line 1"
    )
    yield _case("a.json", codecs.BOM_UTF16_LE + LIST.encode("utf-16-le")[:-1], "UTF-16 but is none from byte")
    yield _case("a.json", codecs.BOM_UTF8 * 2 + LIST.encode(), "line 1, column 1")
    yield _case("a.txt", codecs.BOM_UTF16_BE + PROSE.encode("utf-16-le"), None)


def _not_text() -> Iterator[Case]:
    noise = random.Random(0).randbytes(20_000)
    picture = b"\x89PNG\r\n\x1a\n" + noise
    for name in ("a.txt", "a.md", "a.json", "a.jsonl", "a.csv", "a.tsv"):
        yield _case(name, picture, "is a picture and no text")
        yield _case(name, noise, "is no text, for it holds NUL bytes")
        yield _case(name, noise.replace(b"\0", b""), "is not UTF-8 .*byte .*line|is no text")
        yield _case(name, gzip.compress(LIST.encode()), "is a gzip archive and no text")
        yield _case(name, b"ab\0cd\n" + PROSE.encode(), r"NUL bytes \(the first is byte 3\)")
    yield _case("a.txt", PROSE.encode() + b"\0" * 4096, "NUL bytes")
    yield _case("a.txt", b"\0" * 4096, "NUL bytes")
    yield _case("a.txt", "eins\n\0".encode("utf-16"), r"NUL characters \(the first on line 2\)")
    for name in ("a.parquet", "a.docx", "a.pdf"):
        for content in (b"", b" \n", noise, picture, PROSE.encode(), LIST.encode(), b"\0" * 4096, gzip.compress(noise)):
            yield _case(name, content, "damaged one")
    yield _case("a.docx", _zip({}), "damaged one")
    yield _case("a.docx", _zip({"[Content_Types].xml": b"<a/>"}), "damaged one")
    yield _case("a.docx", _zip({"word/document.xml": b"no xml"}), "damaged one")
    yield _case("a.docx", _docx(), "empty")
    yield _case("a.docx", _docx(" ", ""), "empty")
    yield _case("a.docx", _docx("Eins", "Zwei"), 1)
    yield _case("a.pdf", b"%PDF-1.7\n", "damaged one")
    yield _case("a.pdf", b"%PDF-1.7\n%%EOF\n", "damaged one")
    yield _case("a.pdf", _locked_pdf(), "is locked with a password")
    yield _case("a.pdf", _pdf(""), "scanned pages")
    yield _case("a.pdf", _pdf("Eins"), 1)
    yield _case("a.parquet", _parquet(), 3)
    yield _case("a.parquet", _parquet(0), "no rows")
    yield _case("a.parquet", _parquet()[:-8] + b"\xff\xff\xff\x7fPAR1", "damaged one")
    yield _case("a.txt", _docx("Eins"), "is a zip archive or an office document")
    yield _case("a.csv", _parquet(), "is a parquet file and no text")


def _odd_json() -> Iterator[Case]:
    for name in ("a.json", "a.jsonl", "a.csv", "a.tsv", "a.txt", "a.md"):
        for blank in ("", " ", "\n\n\n", "\ufeff", " \t\r\n" * 999):
            yield _case(name, blank, f"{re.escape(name)} is empty")
    for value in ("7", "-1.5e3", "true", "null", '"text"', "NaN", "{}", '{"a": 1}', '{"a": [], "b": []}'):
        yield _case("a.json", value, "a dataset is a list of rows")
        yield _case("a.jsonl", value, 1 if value[0] == "{" else "line 1: it is")
    for value in ("7", "[]", "null", '"text"', "false", "[{}]", "-Infinity"):
        yield _case("a.json", f'[{{"a": 1}}, {value}]', "row 2: it is")
        yield _case("a.jsonl", f'{{"a": 1}}\n{value}\n', "line 2: it is")
    for value in ("NaN", "Infinity", "-Infinity", "1e999", '"\\ud800"', '"\\u0000"', "1" * 4000, '[[[{"b": []}]]]'):
        yield _case("a.json", f'[{{"a": {value}}}]', 1)
        yield _case("a.jsonl", f'{{"a": {value}}}', 1)
    for value, says in (
        ("1" * 5000, "number too long"),
        ('{"b": 1, "b": 2}', "the key 'b' twice"),
        ("[" * 1000 + "]" * 1000, "nested too deeply"),
        ('{"b":' * 1000 + "1" + "}" * 1000, "nested too deeply"),
        ("[" * 100_000, "nested too deeply"),
        ('{"b":' * 100_000, "nested too deeply"),
        ('"a\tb"', "Invalid control character at"),
        ('"\\x"', "Invalid .*escape"),
        ('"\\u12g4"', "Invalid .*escape"),
        ("'b'", "Expecting value"),
        ("01", "Expecting"),
        ("1,}", "Expecting|Illegal"),
    ):
        yield _case("a.json", f'[{{"a": 1}},\n{{"a": {value}}}]', f"row 2.*{says}|{says}.*line 2.*row 2")
        yield _case("a.jsonl", f'{{"a": 1}}\n{{"a": {value}}}', f"line 2.*{says}")
    for text, expected in (
        ('[{"a": 1} {"a": 2}]', "Expecting ',' or ']' after a row at line 1, column 11"),
        ('[{"a": 1}]]', "Extra data at line 1, column 11"),
        ('[{"a": 1},]', r"Expecting value at line 1, column 11 \(row 2\)"),
        ('[{"a": 1}]\n[{"a": 1}]', "Extra data at line 2, column 1"),
        ('{"a": 1}\n{"a": 2}\n\n{"a": 3}', 3),
        ('{"a": 1},\n{"a": 2}', "holds an object"),
        ('{\n"a": 1\n}\n{\n"a": 2\n}', 2),
        ('{"a": 1}\n7', "holds an object|Extra data"),
        ('{"a": 1}\n{"a": 2}\n7', "row 3: it is a number"),
        ('{"rows": [{"a": 1}], "more": [{"a": 1}]}', "more than one list"),
        ('{"rows": [{"a": 1}], "more": [], "n": 12.5}', 1),
        ('{"rows": [{"a": 1}], "rows": 1}', "key 'rows' twice"),
        ('{"rows": [{"a": 1}, {"b": 1, "b": 2}]}', "row 2 has the key 'b' twice"),
        ('{"rows": [{"a": 1}] "n": 1}', "Expecting ',' or '}' after a value"),
        ('{"rows" [{"a": 1}]}', "Expecting ':'"),
        ("{rows: [{}]}", "Expecting a key in double quotes at line 1, column 2"),
        ("{'rows': [{}]}", "Expecting a key in double quotes"),
        ("question,answer\n1,2", "Expecting value at line 1, column 1"),
        ("// rows\n[{}]", "Expecting value at line 1, column 1"),
        ("[{}, {}, {}]", 3),
    ):
        yield _case("a.json", text, expected)


def _odd_tables() -> Iterator[Case]:
    for text, expected in (
        ("question,answer\n", "holds no rows"),
        ("question,answer\n\n\r\n", "holds no rows"),
        ('question,answer\n"a,b\n', "line 2: the row that begins here has a double quote that is never closed"),
        ('question,answer\n1,2\n\n\n"a\n\n\nb', "line 5: the row that begins here"),
        ('question,answer\n"a"b,c\n', "line 2: a double quote stands inside"),
        ('question,answer\n"a""b",c\n', 1),
        ('question,answer\na"b,c\n', 1),
        ("question,answer\n1,2,3\n", "line 2 has 3 values for 2 columns"),
        ("question,answer\n1\n", 1),
        ("question,question\n1,2\n", "column 'question' stands 2 times"),
        ("question,\n1,2\n", "column 2 has no name"),
        (",question,\n1,2,3\n", "column 3 has no name"),
        ("question;answer\n1;2\n3;4\n", 2),
        ("question|answer\n1|2\n", 1),
        ("question\tanswer\n1\t2\n", 1),
        ("text\nonly one\ncolumn here\n", 2),
        ("text\r1\r2", 2),
        ('text\n"' + "a\n" * 5000 + '"\n', 1),
        ("text\n" + "," * 5000, "line 2 has 5001 values for 1 columns"),
        (",".join(f"c{n}" for n in range(5000)) + "\n1\n", 1),
        ("\n\nquestion,answer\n1,2\n", 1),
        ('"', "line 1: the row that begins here"),
    ):
        yield _case("a.csv", text, expected)
    yield _case("a.tsv", "question\tanswer\na, b; c\td\n", 1)
    yield _case("a.tsv", 'question\tanswer\n"a\td\n', "line 2: the row that begins here")


def _large() -> Iterator[Case]:
    """50 MB each, on one line; where time grew with the square of the size, one would take minutes."""
    x = b"x" * (50 * MEGABYTE)
    yield _case("a.json", b'[{"a": "' + x + b'"}]', 1)
    yield _case("a.json", b'[{"a": "' + x, "in the middle of row 1")
    yield _case("a.json", b'{"rows": [{"a": "' + x + b'"}]}', 1)
    yield _case("a.json", b'[{"a": [' + b"1," * (5 * MEGABYTE) + b"1]}]", 1)
    yield _case("a.json", x, "line 1, column 1")
    yield _case("a.json", b"[" + b" " * len(x) + b"]", "no rows")
    yield _case("a.json", b"[" * len(x), "nested too deeply")
    yield _case("a.json", b'[{"a": "1"}, ' + b'{"a": "2"}, ' * (2 * MEGABYTE // 10) + b"7]", "it is a number")
    yield _case("a.jsonl", b'{"a": "' + x + b'"}\n{}', 2)
    yield _case("a.jsonl", b'{"a": "' + x, "line 1 ends in the middle of a row")
    yield _case("a.csv", b'text\n"' + x + b'"\n', 1)
    yield _case("a.csv", b'text\n"' + x, "line 2: the row that begins here")
    yield _case("a.csv", b"text\n" + x, 1)
    yield _case("a.txt", x, 50)
    yield _case("a.txt", x + b"\xe9", 51)
    yield _case("a.txt", b" " * len(x), "is empty")


def _no_files() -> Iterator[Case]:
    def unreadable(path: Path) -> None:
        path.write_text(LIST)
        path.chmod(0)

    yield _case("a.exe", LIST, "is no dataset")
    for name in ("a.json", "a.jsonl", "a.csv", "a.parquet", "a.txt", "a.docx", "a.pdf"):
        yield _case(name, Path.mkdir, "is a folder")
        yield _case(name, lambda path: None, "cannot be read")
        if os.name == "nt":
            continue  # no pipes in folders, and links need rights
        yield _case(name, lambda path: path.symlink_to("nowhere"), "cannot be read")
        yield _case(name, lambda path: path.symlink_to(path), "cannot be read")
        yield _case(name, os.mkfifo, "is no regular file")
        yield _case(name, lambda path: path.symlink_to("/dev/zero"), "is no regular file")
        yield _case(name, unreadable, None)


def _parquet(rows: int = 3) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"question": [f"Stadt {n}" for n in range(rows)], "n": list(range(rows))}), file)
    return file.getvalue()


def _docx(*paragraphs: str) -> bytes:
    file, document = io.BytesIO(), docx.Document()
    for paragraph in paragraphs:
        document.add_paragraph(paragraph)
    document.save(file)
    return file.getvalue()


def _pdf(text: str) -> bytes:
    writer, file = pypdf.PdfWriter(), io.BytesIO()
    page = writer.add_blank_page(width=200, height=200)
    if text:
        content = pypdf.generic.StreamObject()
        content.set_data(f"BT /F1 12 Tf 20 100 Td ({text}) Tj ET".encode())
        name = pypdf.generic.NameObject
        font = {"/Type": "/Font", "/Subtype": "/Type1", "/BaseFont": "/Helvetica"}
        fonts = pypdf.generic.DictionaryObject(
            {name("/F1"): pypdf.generic.DictionaryObject({name(key): name(value) for key, value in font.items()})}
        )
        page[name("/Resources")] = pypdf.generic.DictionaryObject({name("/Font"): fonts})
        page[name("/Contents")] = writer._add_object(content)
    writer.write(file)
    return file.getvalue()


def _locked_pdf() -> bytes:
    writer, file = pypdf.PdfWriter(io.BytesIO(_pdf("Eins"))), io.BytesIO()
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(file)
    return file.getvalue()


def _zip(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


CASES = [
    case for make in (_truncated, _encoded, _not_text, _odd_json, _odd_tables, _large, _no_files) for case in make()
]


@pytest.fixture(autouse=os.name != "nt")
def _no_hanging() -> Iterator[None]:
    def give_up(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_there_are_enough() -> None:
    assert len(CASES) >= 200


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rows_or_one_sentence(tmp_path: Path, case: Case) -> None:
    path = tmp_path / case.name
    if callable(case.content):
        case.content(path)
    else:
        path.write_bytes(case.content)
    read: Callable[[Path], Iterator[Any]] = iter_text if path.suffix in (".txt", ".md", ".docx", ".pdf") else iter_rows
    try:
        count = sum(1 for _ in read(path))
    except UserError as error:
        message = str(error)
        assert isinstance(case.expected, str | None) and re.search(case.expected or "", message)
        assert message.startswith(case.name) and message.endswith(".") and len(message) < 300
        assert message.isprintable() and not re.search(r"\. [A-Z]", message)
    else:
        assert case.expected in (None, count)
