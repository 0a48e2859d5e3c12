"""The named chat templates in templates/*.jinja, the user's own beside those that ship.

`use_template` puts one on a tokenizer, with which it is saved, so that chat and other programs use the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateSyntaxError

from training.errors import UserError
from training.paths import Folders, lies_in, quoted, safe_name
from training.template_trial import LONGEST, TEMPLATE_ERRORS, check_template, environment

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

OWN = ""  # the base model's own template
FALLBACK = "alpaca"  # asks for no token beyond the model's own end token, so that it fits any base model
_ABOUT = re.compile(r"\s*\{#[-+]?\s*(.*?)\s*[-+]?#\}", re.DOTALL)


# Reads what transformers reads. It stands here so that a list of the templates needs none of that large library.
_CHECKER = environment()


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja chat template under a name; `about` says in a sentence what it is for, empty where its file does not."""

    name: str
    about: str
    source: str


def template_names(folders: Folders) -> list[str]:
    """The names of the templates in their order, without a look into them."""
    return [path.stem for path in _files(folders)]


def load_template(folders: Folders, name: str) -> ChatTemplate:
    """The template called `name`; raises UserError when there is none or its file is damaged."""
    files = {path.stem: path for path in _files(folders)}
    if name not in files:
        known = ", ".join(files) or "none, since the folder is empty"
        raise UserError(
            f"There is no chat template {quoted(name)} in {folders.templates}: choose one that is there ({known})."
        )
    if not lies_in(files[name], folders.templates):
        raise UserError(f"The chat template {quoted(name)} is a link that leads out of {folders.templates}: copy it.")
    return _read(files[name])


def use_template(tokenizer: PreTrainedTokenizerBase, folders: Folders, name: str) -> str:
    """Put the template called `name` on the tokenizer; returns what the user should know about it, or an empty text.

    OWN keeps the model's own and takes FALLBACK where it has none. Raises UserError when the template cannot be used.
    """
    own = _own_template(tokenizer) if name == OWN else None
    note = ""
    if own:
        what = "The base model's own chat template"
        if tokenizer.chat_template != own:
            note = "The base model has several chat templates: its default one is used."
        tokenizer.chat_template = own
    else:
        template = load_template(folders, name or FALLBACK)
        put_template(tokenizer, template)
        what = f"The chat template {template.name}"
        note = f"{what} is used, and saved with the LoRA."
        if name == OWN:
            note = f"The base model has no chat template: the template {FALLBACK} is used, and saved with the LoRA."
    return " ".join(part for part in (note, _note_on_end(tokenizer, what)) if part)


def put_template(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> None:
    """Put the template on the tokenizer, with the start token where the model begins every text with it."""
    tokenizer.chat_template = _with_start(tokenizer, template)


def _files(folders: Folders) -> list[Path]:
    if not folders.templates.is_dir():
        return []
    paths = (p for p in folders.templates.glob("*.jinja") if p.is_file() and not p.name.startswith("."))
    return sorted(paths, key=lambda path: (path.stem.lower(), path.stem))


def _read(path: Path) -> ChatTemplate:
    try:
        safe_name(path.stem, f"The name of the chat template {path.name!r}")
        with path.open(encoding="utf-8-sig") as file:
            source = file.read(LONGEST + 1)
        check_template(source, f"The chat template {path.name}")
        _CHECKER.compile(source)
    except UnicodeDecodeError:
        raise UserError(f"The chat template {path.name} is not UTF-8 text: save it as UTF-8.") from None
    except OSError as error:
        raise UserError(f"The chat template {path.name} cannot be read ({error.strerror}): mend its rights.") from error
    except TemplateSyntaxError as error:
        raise UserError(
            f"The chat template {path.name} has a mistake in line {error.lineno}: {_plain(error)}; mend it there."
        ) from None
    except (RecursionError, SyntaxError):  # what Python makes of the code that Jinja writes
        raise UserError(f"The chat template {path.name} is nested too deeply: simplify it.") from None
    about = _ABOUT.match(source)
    return ChatTemplate(path.stem, " ".join(about[1].split()) if about else "", source)


def _own_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The model's own template, of several the default one."""
    own = tokenizer.chat_template
    if isinstance(own, list):  # how older files keep several
        own = {each["name"]: each["template"] for each in own}
    if not isinstance(own, dict):
        return own
    if own and "default" not in own:
        raise UserError(
            f"The base model has several chat templates ({', '.join(own)}) and none is its default one: "
            "choose one of the named templates."
        )
    return own.get("default")


def check_own_templates(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise UserError for a tokenizer from the folder `name` with a template that would do harm."""
    own = tokenizer.chat_template
    if isinstance(own, list):
        own = {each["name"]: each["template"] for each in own}
    for source in own.values() if isinstance(own, dict) else [own or ""]:
        check_template(source, f"The chat template of {quoted(name)}")


def _with_start(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate) -> str:
    """The template's source, with the start token where the model begins every text with it."""
    if "eos_token" in template.source and tokenizer.eos_token is None:
        raise UserError(
            f"The chat template {template.name} ends answers with the model's end token, and this base model has none: "
            "choose another template, for example chatml."
        )
    # A model that begins every text with a start token does badly without it.
    starts = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id
    has_start = "bos_token" in template.source or (starts and tokenizer.bos_token in template.source)
    return template.source if has_start or not starts else "{{- bos_token -}}" + template.source


def _note_on_end(tokenizer: PreTrainedTokenizerBase, what: str) -> str:
    """A sentence where what the template puts after an answer is no token of its own, so that answers may not end."""
    answer = "Certainly"
    turns = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": answer}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except TEMPLATE_ERRORS as error:
        raise UserError(
            f"{what} cannot write down a question with an answer ({_plain(error)}): mend it or choose another template."
        ) from error
    after = text[text.rfind(answer) + len(answer) :].strip()
    if not after:
        return (
            f"{what} puts nothing after an answer, so training does not teach where to stop; "
            f"the template {FALLBACK} ends with the model's own end token."
        )
    tokens = [token.content for token in tokenizer.added_tokens_decoder.values()]
    if after.startswith((*tokens, *tokenizer.all_special_tokens)):
        return ""
    return (
        f"{what} ends answers with {after.split()[0]}, which is no token of this model, so that it must spell it out "
        f"and may not stop; the template {FALLBACK} ends with the model's own end token."
    )


def _plain(error: Exception) -> str:
    """What the error says as a part of a sentence."""
    return " ".join(str(error).split()).rstrip(".").replace(". ", "; ")
