"""Hundreds of names, paths, archives, templates, datasets, models and adapters that somebody made to do harm."""

# What looks like something else is what this is about, and lists of it read better in long lines.
# ruff: noqa: E501, RUF001

from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.tiny import make_folders, make_settings, make_tokenizer
from training.adapters import adapter_folder, check_adapter, earlier_adapter
from training.base_models import locate_base_model
from training.chat_templates import load_template, use_template
from training.dataset_format import format_file
from training.parsing import parse
from training.paths import DATASET_SUFFIXES, TEXT_SUFFIXES, Folders, data_files, safe_name
from training.uploads import store_uploads

SECRET = "the canary sings of what lies outside"
_RANDOM = random.Random(10)


class Yard:
    """Folders as the page has them, a place outside of them with something to steal, and one for what is uploaded."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders: Folders = make_folders(root / "yard")
        self.outside, self.uploads = root / "outside", root / "uploads"
        self.pwned = root / "pwned"  # what a payload makes, once it runs
        self.uploads.mkdir()
        model(self.outside / "model")
        adapter(self.outside / "lora")
        (self.outside / "set").mkdir()
        for name in ("canary.json", "canary.txt", "set/canary.json", "canary.jinja", "canary.jsonl"):
            (self.outside / name).write_text(json.dumps([{"question": SECRET, "answer": SECRET}]))
        folders = self.folders
        (folders.datasets / "own.json").write_text(json.dumps([{"question": "Who?", "answer": "I."}]))
        (folders.datasets / "set").mkdir()
        for link, target in (
            (folders.datasets / "link.json", "canary.json"),
            (folders.datasets / "links", "set"),
            (folders.datasets / "set" / "link.json", "canary.json"),
            (folders.datasets / "loop.json", "../yard/datasets/loop.json"),
            (folders.formats / "link.json", "canary.json"),
            (folders.templates / "link.jinja", "canary.jinja"),
            (folders.models / "link", "model"),
            (folders.loras / "link", "lora"),
        ):
            link.symlink_to(self.outside / target)
        adapter(folders.loras / "own")
        adapter(self.outside / "lora" / "checkpoint-3")
        (folders.loras / "own" / "checkpoint-2").symlink_to(self.outside / "lora" / "checkpoint-3")
        model(folders.models / "own")

    def snapshot(self) -> dict[str, object]:
        """Every file below the root with its size and time, and every folder and link."""
        found: dict[str, object] = {}
        for place, folders, files in os.walk(self.root):
            found |= {os.path.join(place, name): None for name in folders}
            for name in files:
                path = os.path.join(place, name)
                status = os.lstat(path)
                found[path] = status.st_size, status.st_mtime_ns
        return found

    def payload(self) -> bytes:
        """A pickle that makes the file `pwned` when it is loaded."""
        return pickle.dumps(_Payload(str(self.pwned)))


class _Payload:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (self._path,)


@dataclass(frozen=True)
class Case:
    """`make` lays down what the case needs and returns what has to be refused."""

    kind: str
    what: str
    make: Callable[[Yard], Callable[[], object]]

    def __str__(self) -> str:
        return f"{self.kind}: {ascii(self.what)[:60]}"


# Files of models and adapters.


def safetensors(tensors: dict[str, tuple[int, ...]], *, header_length: int | None = None) -> bytes:
    """A file of float32 zeros, or one that lies about the length of its header."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        size = 4
        for length in shape:
            size *= length
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if header_length is None else header_length) + text + b"\0" * end


def model(folder: Path, **config: Any) -> Path:
    """A folder that passes for a small base model."""
    folder.mkdir(parents=True)
    values = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8, "hidden_size": 4}
    (folder / "config.json").write_text(json.dumps(values | config))
    (folder / "model.safetensors").write_bytes(safetensors({"lm_head.weight": (8, 4)}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def adapter(folder: Path, **config: Any) -> Path:
    """A folder that passes for a LoRA."""
    folder.mkdir(parents=True)
    values = {"peft_type": "LORA", "base_model_name_or_path": "own", "r": 4, "lora_alpha": 8, "target_modules": ["q"]}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    (folder / "adapter_model.safetensors").write_bytes(safetensors({"q.lora_A.weight": (4, 4)}))
    return folder


# What is wrong in names.

_BAD = [*'/\\:*?"<>|', "\0", "\n", "\r", "\t", "\x1b", "\x7f", "\x85", "\u2028", "'", "`", "$", "%", ";", "&"]
# They look like slashes, dots and colons, or turn the text around, or cannot be seen.
_ALIKE = [*"∕⁄／＼⧵﹨⧸．․‥…﹒：ː꞉*＊？＂＜＞｜", "\u202e", "\u202d", "\u2066", "\u200b", "\u200d", "\ufeff", "\u00ad"]
_ALIKE.remove("ː")  # a letter of phonetics
_RESERVED = [
    *(
        "con",
        "PRN",
        "aux",
        "NUL",
        "Con.txt",
        "nul.tar.gz",
        "aux .txt",
        "COM1",
        "com9",
        "LPT1.json",
        "lpt¹",
        "COM²",
        "ｃｏｎ",
    ),
]
_WHOLE = [
    "", " ", ".", "..", "...", " . ", "-", "_", ". .", "a.", "a..", ".a", "..a", "./a", "../a", "a/..", "a/../b", "~/a",
    "~root", "/etc/passwd", "//etc/passwd", "C:\\a", "c:a", "C:/Windows/win.ini", "\\\\server\\share\\a", "//server/share",
    "\\\\?\\C:\\a", "\\\\.\\PhysicalDrive0", "file:///etc/passwd", "http://example.org/a", "%2e%2e%2fa", "..%2fa", "..\\a",
    "a\0.json", "a.json\0.txt", "a" * 81, "é" * 41, "a" * 5000, "a/" * 2000 + "a", "$(touch pwned)", "`touch pwned`",
    "; touch pwned", "| touch pwned", "&& touch pwned", "{{7*7}}", "${HOME}", "%PATH%", "a\nb", "--help=1",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\ud800", "a\udcffb", "‮gnp.exe", "a:b", "a:$DATA", "*",
    "?", "[a]", "!", "../../../../../../../../etc/passwd", "....//....//etc/passwd", "..;/a", "/proc/self/environ",
]  # fmt: skip


def bad_names() -> Iterator[str]:
    """Names that no file may have."""
    yield from _WHOLE
    yield from _RESERVED
    for character in (*_BAD, *_ALIKE):
        word = _RANDOM.choice(["lora", "my first", "日本語", "a.b-c"])
        at = _RANDOM.randrange(1, len(word))
        yield word[:at] + character + word[at:]


def paths_outside(yard_outside: str) -> Iterator[str]:
    """Paths to what lies outside; `{outside}` stands for where that is."""
    for name in ("canary.json", "set", "canary.txt", "model", "lora", "nothing.json"):
        for before in (
            "../../outside/",
            "{outside}/",
            "{outside}/../outside/",
            "set/../../../outside/",
            "./../../outside/",
        ):
            yield (before + name).replace("{outside}", yard_outside)
        yield f"..\\..\\outside\\{name}"
        yield f"..∕..∕outside∕{name}"
        yield f"．．/．．/outside/{name}"


def _placed(before: str) -> Iterator[str]:
    return (path.replace("OUTSIDE", "{outside}") for path in paths_outside(before))


def _name_cases() -> Iterator[Case]:
    for name in bad_names():
        if name.strip():  # no name yet is asked for elsewhere
            yield Case("name of a new run", name, lambda _, name=name: lambda: parse({"name": name}))
        if name:  # without one there is no folder
            yield Case("folder of uploads", name, lambda yard, name=name: _upload_into(yard, name))
        yield Case("safe name", name, lambda _, name=name: lambda: safe_name(name))


def _upload_into(yard: Yard, folder: str) -> Callable[[], object]:
    source = yard.uploads / "rows.json"
    source.write_text('[{"question": "a", "answer": "b"}]')
    return lambda: store_uploads(yard.folders, [source], folder=folder)


def _path_cases() -> Iterator[Case]:
    links = ("link.json", "links", "links/", "links/canary.json", "set", "set/", "set/link.json", "loop.json")
    for name in (*links, *_WHOLE, *_RESERVED, *_placed("OUTSIDE")):
        if name not in (".", " . "):  # the folder itself
            yield Case("data file", name, lambda yard, name=name: lambda: _data(yard, name, DATASET_SUFFIXES))
    for name in ("link.json", *_placed("OUTSIDE")):
        yield Case("raw text", name, lambda yard, name=name: lambda: _data(yard, name, TEXT_SUFFIXES))
    for name in ("link", "link/", "./link", "own/../link", *bad_names(), *_placed("OUTSIDE")):
        yield Case("base model", name, lambda yard, name=name: lambda: locate_base_model(yard.folders, _at(yard, name)))
    others = (
        "org/..",
        "../org",
        "org/model/x",
        "оrg/model",
        "org／model",
        "org/mo del",
        "org/model.bin",
        "x.gguf",
        "org/.",
    )
    for name in others:
        yield Case("name on the Hub", name, lambda yard, name=name: lambda: locate_base_model(yard.folders, name))
    for name in ("link", *_placed("OUTSIDE")):
        yield Case("template", name, lambda yard, name=name: lambda: load_template(yard.folders, _at(yard, name)))
        yield Case("LoRA", name, lambda yard, name=name: lambda: adapter_folder(yard.folders, _at(yard, name), None))
        yield Case("start from", name, lambda yard, name=name: lambda: _start_from(yard, name))
    for name in _placed("OUTSIDE"):
        yield Case("format file", name, lambda yard, name=name: lambda: format_file(yard.folders, _at(yard, name)))
    for name in (
        "own/checkpoint-2",
        "own/checkpoint-²",
        "own/checkpoint--1",
        "own/..",
        "own/../link",
        "own/checkpoint-2/..",
    ):
        yield Case("checkpoint", name, lambda yard, name=name: lambda: _start_from(yard, name))


def _at(yard: Yard, name: str) -> str:
    return name.replace("{outside}", str(yard.outside))


def _data(yard: Yard, name: str, suffixes: tuple[str, ...]) -> object:
    return data_files(yard.folders, [_at(yard, name)], suffixes)


def _start_from(yard: Yard, name: str) -> object:
    return earlier_adapter(yard.folders, make_settings(base_model="own", start_from=_at(yard, name)))


# Archives and datasets.


def _docx(document: bytes, declared: int | None = None) -> bytes:
    import docx

    plain, made = io.BytesIO(), io.BytesIO()
    docx.Document().save(plain)
    with zipfile.ZipFile(plain) as before, zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in before.namelist():
            archive.writestr(name, document if name == "word/document.xml" else before.read(name))
    content = made.getvalue()
    return (
        content if declared is None else content.replace(struct.pack("<I", len(document)), struct.pack("<I", declared))
    )


_BODY = b'<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body>%b</w:body></w:document>'
_ENTITIES = b'<!DOCTYPE a [<!ENTITY a "%b">%b]>' % (
    b"ha" * 99,
    b"".join(b'<!ENTITY %c "%b">' % (c, b"&%c;" % (c - 1) * 99) for c in b"bcdefg"),
)
_STEAL = b'<!DOCTYPE a [<!ENTITY a SYSTEM "file:///etc/passwd">]>'


def _parquet() -> bytes:
    column = pa.DictionaryArray.from_arrays(pa.array([0] * 500), pa.array(["a" * (9 << 20)]))
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.table({"text": column}), Path(folder, "a"), compression="zstd")
        return Path(folder, "a").read_bytes()


def _files() -> Iterator[tuple[str, Callable[[Yard], bytes]]]:
    """Files to upload: name and content."""
    fixed: list[tuple[str, bytes]] = [
        ("nested.json", b'[{"a":' + b"[" * (1 << 20)),
        ("nested.jsonl", b'{"a":' * (1 << 18) + b"1" + b"}" * (1 << 18)),
        ("digits.json", b'[{"a": ' + b"9" * 100_000 + b"}]"),
        ("long.json", b'[{"a": "' + b"x" * (70 << 20) + b'"}]'),
        ("long.jsonl", b'{"a": "' + b"x" * (70 << 20) + b'"}'),
        ("long.csv", b"a,b\n" + b"x" * (70 << 20) + b",1\n"),
        ("many.csv", b"a,b\n" + b"x," * (35 << 20) + b"1\n"),
        ("quote.csv", b'a,b\n"' + b"xx\n" * (25 << 20)),
        ("rubbish.parquet", b"PAR1" + os.urandom(100) + b"PAR1"),
        ("lengths.parquet", b"PAR1" + b"\xff" * 100 + b"\xff\xff\xff\x7fPAR1"),
        ("rubbish.docx", b"PK\x03\x04" + os.urandom(100)),
        ("many.docx", _docx(_BODY % (b"<w:p/>" * (1 << 20)))),
        ("entities.docx", _docx(_ENTITIES + _BODY % b"<w:p><w:r><w:t>&g;</w:t></w:r></w:p>")),
        ("steal.docx", _docx(_STEAL + _BODY % b"<w:p><w:r><w:t>&a;</w:t></w:r></w:p>")),
        ("deep.docx", _docx(_BODY % (b"<w:p>" * 100_000 + b"</w:p>" * 100_000))),
        ("lies.docx", _docx(_BODY % (b" " * (1 << 20)), declared=10)),
        ("rubbish.pdf", b"%PDF-1.7\n" + os.urandom(200)),
        ("loop.pdf", b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj 2 0 obj<</Type/Pages/Kids[2 0 R]/Count 9>>endobj\ntrailer<</Root 1 0 R>>"),
        ("nul.txt", b"a\0b" * 1000),
        ("program.exe", b"MZ"),
        ("script.html", b"<script>alert(1)</script>"),
        ("rows.json.exe", b"[]"),
        ("archive.zip", b"PK\x05\x06" + b"\0" * 18),
        ("pickled.pkl", b"\x80\x04."),
        ("weights.bin", b"x"),
        ("code.py", b"import os"),
        (".htaccess", b"x"),
        ("noending", b"x"),
        ("empty.json", b""),
        ("gzip.json", b"\x1f\x8b" + os.urandom(50)),
    ]  # fmt: skip
    for name, content in fixed:
        yield name, lambda _, content=content: content
    yield "bomb.parquet", lambda _: _parquet()
    for suffix in (".json", ".jsonl", ".csv", ".parquet", ".docx", ".pdf", ".txt"):
        yield f"pickle{suffix}", lambda yard: b"\0" + yard.payload()
    yield "format.json", lambda _: json.dumps({"a,b": "User: %c%\nAssistant: %b%"}).encode()


def _upload_cases() -> Iterator[Case]:
    for name, content in _files():

        def make(yard: Yard, name: str = name, content: Callable[[Yard], bytes] = content) -> Callable[[], object]:
            source = yard.uploads / name
            source.write_bytes(content(yard))
            return lambda: store_uploads(yard.folders, [source])

        yield Case("upload", name, make)


# Templates.

_WALKS = [
    "cycler.__init__.__globals__.os.mkdir('{pwned}')",
    "joiner.__init__.__globals__['os'].mkdir('{pwned}')",
    "namespace.__init__.__globals__.__builtins__.open('{pwned}', 'w')",
    "lipsum.__globals__.os.mkdir('{pwned}')",
    "lipsum['__globals__']['os']",
    "''.__class__.__mro__[1].__subclasses__()",
    "''['__class__']['__base__']",
    "''|attr('__class__')|attr('__mro__')",
    "(''|attr('__cl' ~ 'ass__')).mro()",
    "messages.__class__.__base__.__subclasses__()",
    "messages[0].__init__.__func__",
    "messages|map(attribute='__class__')|list",
    "self.__init__.__globals__",
    "self._TemplateReference__context.environment.from_string('x').root_render_func.__globals__",
    "raise_exception.__globals__.__builtins__.__import__('os').mkdir('{pwned}')",
    "strftime_now.__closure__",
    "range.__class__.__call__",
    "'{{0.__class__}}'.format(1)|upper",
    "'%s'.__mod__(1)",
    "[].append.__self__.__class__",
    "messages.append(1)",
    "messages[0].update({{'role': 'x'}})",
    "messages.clear()",
]
_BOMBS = [
    "{{ 'a' * 10**10 }}",
    "{% set n = 10**9 %}{{ 'a' * n * 20 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "{% set x = namespace(a='aaaaaaaa') %}{% for i in range(60) %}{% set x.a = x.a ~ x.a %}{% endfor %}",
    "{{ '%10000000000d' % 1 }}",
    "{{ 'a'.ljust(10**11) }}",
    "{{ 'a'|center(10**10) }}",
    "{% set n = 10**8 %}{% set n = 7**n %}{{ n }}",
    "{% macro a(x) %}{{ a(x) }}{{ a(x) }}{% endmacro %}{{ a(1) }}",
    "{% for a in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaa' }}{% endfor %}",
    "{{ range(10**9)|list }}",
    "{{ range(99999)|list|tojson(indent=99999) }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "{% if 1 %}" * 200 + "{% endif %}" * 200,
    "{% include '/etc/passwd' %}",
    "{% import '../outside/canary.jinja' as x %}",
    "{% extends '/etc/passwd' %}",
    "{{ open('/etc/passwd').read() }}",
    "{{ undefined_thing.x }}",
    "{% while true %}{% endwhile %}",
    "{{ 1 / 0 }}",
    "{{ raise_exception('no') }}",
    "{{",
    "{% for %}",
    "x" * (2 << 20),
]


def _template_cases() -> Iterator[Case]:
    for number, source in enumerate(
        [*(f"{{{{ {walk.replace('{{', '{').replace('}}', '}')} }}}}" for walk in _WALKS), *_BOMBS]
    ):

        def make(yard: Yard, source: str = source, name: str = f"hostile{number}") -> Callable[[], object]:
            text = source.replace("{pwned}", str(yard.pwned))
            (yard.folders.templates / f"{name}.jinja").write_text(text)
            return lambda: use_template(make_tokenizer(None), yard.folders, name)

        yield Case("template", source, make)
    yield Case("template", "no text", lambda yard: _bytes_template(yard, b"\xff\xfe\x00"))


def _bytes_template(yard: Yard, content: bytes) -> Callable[[], object]:
    (yard.folders.templates / "bytes.jinja").write_bytes(content)
    return lambda: use_template(make_tokenizer(None), yard.folders, "bytes")


# Models and adapters.

_Spoil = Callable[[Yard, Path], object]


def _index(*shards: str) -> _Spoil:
    def spoil(yard: Yard, folder: Path) -> None:
        # Where only the name is wrong, the content is right.
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
        weights = {f"w{number}": _at(yard, shard) for number, shard in enumerate(shards)}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))

    return spoil


def _only(name: str) -> _Spoil:
    """The weights under another name, as a pickle."""

    def spoil(yard: Yard, folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            path.unlink()
        (folder / name).write_bytes(yard.payload())

    return spoil


def _writes(name: str, content: bytes) -> _Spoil:
    return lambda _, folder: (folder / name).write_bytes(content)


def _config(**values: Any) -> _Spoil:
    def spoil(_: Yard, folder: Path) -> None:
        path = next(folder.glob("*config.json"))
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


_WEIGHTS = "model.safetensors"
_BAD_WEIGHTS: list[tuple[str, bytes]] = [
    ("empty", b""),
    ("cut", safetensors({"a": (4, 4)})[:-8]),
    ("header of 2**63", safetensors({"a": (1,)}, header_length=2**63)),
    ("header beyond the end", safetensors({"a": (1,)}, header_length=10**6)),
    ("header of 0", safetensors({"a": (1,)}, header_length=0)),
    ("nested header", struct.pack("<Q", 20_000) + b"[" * 20_000),
    ("negative offsets", struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}'.ljust(60)),
    ("a huge shape", struct.pack("<Q", 80) + b'{"a":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}'.ljust(80) + b"\0" * 4),
    ("zip", b"PK\x03\x04" + b"\0" * 100),
]  # fmt: skip

_MODELS: list[tuple[str, _Spoil]] = [
    *((f"only {name}", _only(name)) for name in ("pytorch_model.bin", "model.pt", "model.ckpt", "model.pth", "weights.pkl")),
    ("a pickle called safetensors", lambda yard, folder: (folder / _WEIGHTS).write_bytes(yard.payload())),
    *((f"weights: {what}", _writes(_WEIGHTS, content)) for what, content in _BAD_WEIGHTS),
    *(
        (f"shard {shard!r}", _index(shard))
        for shard in (
            "../../../outside/model/model.safetensors", "{outside}/model/model.safetensors", "/etc/passwd", "pytorch_model.bin", "a/../b.safetensors", "", "..", "a\0.safetensors",
            "C:\\a.safetensors", "\\\\server\\a.safetensors", "https://example.org/a.safetensors", "model.safetensors.bin", "．．/a.safetensors",
            ".hidden.safetensors", "gone.safetensors",
        )
    ),
    ("an index of numbers", lambda _, f: ((f / _WEIGHTS).unlink(), (f / f"{_WEIGHTS}.index.json").write_text('{"weight_map": {"a": 1}}'))),
    ("a nested index", lambda _, f: ((f / _WEIGHTS).unlink(), (f / f"{_WEIGHTS}.index.json").write_text('{"weight_map":' * 50_000))),
    ("code", _config(auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil")),
    ("code elsewhere", _config(auto_map={"AutoConfig": "evil/model--code.Config"}, model_type="own-kind")),
    ("nested config", _writes("config.json", b'{"a":' * 100_000)),
    ("digits in the config", _writes("config.json", b'{"hidden_size": ' + b"9" * 10_000 + b"}")),
    ("a list for a config", _writes("config.json", b"[]")),
    ("no UTF-8", _writes("config.json", b"\xff\xff")),
    ("markup", _config(model_type="<script>alert(1)</script>", architectures=["<img src=x onerror=alert(1)>"])),
    ("lines", _config(model_type="a\nb. C" * 1000)),
    ("no kind", _config(model_type=7, architectures={"a": 1})),
    ("packed in an unknown way", _config(quantization_config={"quant_method": "evil\nx"})),
    ("no tokenizer", lambda _, folder: (folder / "tokenizer.json").unlink()),
    ("an adapter", lambda _, folder: (folder / "config.json").rename(folder / "adapter_config.json")),
    ("GGUF", lambda _, folder: (folder / "config.json").rename(folder / "a.gguf")),
]  # fmt: skip


def _model_cases() -> Iterator[Case]:
    for number, (what, spoil) in enumerate(_MODELS):

        def make(yard: Yard, spoil: _Spoil = spoil, name: str = f"model{number}") -> Callable[[], object]:
            spoil(yard, model(yard.folders.models / name))
            return lambda: locate_base_model(yard.folders, name)

        yield Case("model", what, make)


_ADAPTERS: list[tuple[str, _Spoil]] = [
    *((f"only {name}", _only(name)) for name in ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")),
    *((f"r is {value!r}", _config(r=value)) for value in (0, -1, 10**9, 1.5, "8", True, [8], {"a": 1}, 10**400)),
    *((f"alpha is {value!r}", _config(lora_alpha=value)) for value in (float("nan"), float("inf"), "x", [1])),
    *((f"rank pattern {value!r}", _config(rank_pattern=value)) for value in ({"q": 10**9}, {"q": -1}, {"q": "x"}, [1], "x")),
    *((f"kind {value!r}", _config(peft_type=value)) for value in ("XLORA", "MULTITASK_PROMPT_TUNING", "evil", None, 7, "", ["LORA"])),
    *((f"modules {value!r}"[:40], _config(target_modules=value)) for value in (7, {"a": 1}, [7], "(a+)+" * 1000, [["q"]])),
    *((f"saved {value!r}"[:40], _config(modules_to_save=value)) for value in (7, {"a": 1}, [7], "x" * 5000)),
    ("Megatron", _config(megatron_config={"a": 1}, megatron_core="loras.own.evil")),
    ("repeated layers", _config(layer_replication=[[0, 2]] * 100_000)),
    ("CorDA", _config(corda_config={"cache_file": "/etc/passwd"})),
    ("arguments of a tokenizer", _config(peft_type="PROMPT_TUNING", tokenizer_kwargs={"trust_remote_code": True})),
    ("virtual tokens", _config(peft_type="PROMPT_TUNING", num_virtual_tokens=10**9)),
    ("nested", _writes("adapter_config.json", b'{"a":' * 100_000)),
    ("a list", _writes("adapter_config.json", b"[]")),
    ("no JSON", _writes("adapter_config.json", b"\xff")),
    ("digits", _writes("adapter_config.json", b'{"r": ' + b"9" * 10_000 + b"}")),
]  # fmt: skip


def _adapter_cases() -> Iterator[Case]:
    for number, (what, spoil) in enumerate(_ADAPTERS):

        def make(yard: Yard, spoil: _Spoil = spoil, name: str = f"lora{number}") -> Callable[[], object]:
            folder = adapter(yard.folders.loras / name)
            spoil(yard, folder)
            return lambda: check_adapter(folder)

        yield Case("adapter", what, make)


def cases() -> list[Case]:
    """All of them, the same at every run."""
    kinds = (_name_cases, _path_cases, _upload_cases, _template_cases, _model_cases, _adapter_cases)
    return [case for kind in kinds for case in kind()]
