"""The shipped starter model, the grammar it was made from, and the script that makes it."""

import re
from pathlib import Path
from random import Random

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from starter import build, grammar, words
from starter.words import Message

FOLDER = Path(__file__).resolve().parent.parent / "models" / "starter"
CHAT: list[Message] = [
    {"role": "user", "content": " Hi,\nyou "},
    {"role": "assistant", "content": "  Hello!\n"},
    {"role": "user", "content": "What is a cat?"},
    {"role": "assistant", "content": "A cat is an animal."},
]
TEXTS = (
    "Hello, world!",
    "",
    " ",
    "  two  spaces  ",
    "\n\n\ttab\r\n",
    "12345 + 0.5 = 12345.5",
    "naïve café, žluťoučký kůň",
    "Привет, мир",
    "你好世界",
    "مرحبا שלום",
    "👩‍👩‍👧‍👦🏳️‍🌈",
    "e\u0301 versus \u00e9",
    "\u200b\ufeff\u0000\u0007",
    "don't won't I'm",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a" * 500,
    "\ufb01 \u210c ①",
    "tokens <|endoftext|> inside",
)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(FOLDER, local_files_only=True)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(FOLDER, local_files_only=True).eval()


def reply(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *contents: str) -> str:
    """The greedy answer to alternating user and assistant messages; it must end by itself."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = model.generate(**prompt, do_sample=False, max_new_tokens=150)[0, prompt["input_ids"].shape[1] :]
    assert out[-1] == tokenizer.eos_token_id, "the answer did not end"
    return str(tokenizer.decode(out[:-1]))


def documents(seed: int, count: int) -> list[list[Message] | str]:
    rng = Random(seed)
    return [grammar.document(rng) for _ in range(count)]


def texts(document: list[Message] | str) -> list[str]:
    return [document] if isinstance(document, str) else [message["content"] for message in document]


@pytest.fixture(scope="module")
def corpus() -> list[list[Message] | str]:
    return documents(1, 2000)


def learned(corpus: list[list[Message] | str]) -> list[str]:
    """Everything in the corpus that the model learns to say."""
    chats = [document for document in corpus if isinstance(document, list)]
    prose = [document for document in corpus if isinstance(document, str)]
    return prose + [message["content"] for chat in chats for message in chat if message["role"] == "assistant"]


# --- the files ------------------------------------------------------------------------------------


def test_is_small_and_safe() -> None:
    weights = list(FOLDER.glob("*.safetensors"))
    assert len(weights) == 1
    assert weights[0].stat().st_size <= 16 * 1024 * 1024
    assert not [file for file in FOLDER.iterdir() if file.suffix in {".bin", ".pt", ".py", ".pkl"}]


def test_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer.bos_token is None
    assert tokenizer.unk_token is None
    for token in ("<|im_start|>", "<|im_end|>", "<|endoftext|>"):
        assert len(tokenizer.encode(token)) == 1
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.max_position_embeddings == 2048


# --- the tokenizer and its template ---------------------------------------------------------------


@pytest.mark.parametrize("text", TEXTS)
def test_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_text_comes_back_unchanged(tokenizer: PreTrainedTokenizerBase) -> None:
    rng = Random(3)
    for _ in range(300):
        points = [
            rng.choice([rng.randrange(0x20, 0x7F), rng.randrange(0x800), rng.randrange(0xE000, 0x110000)])
            for _ in range(30)
        ]
        text = "".join(map(chr, points))
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_ordinary_english_takes_few_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    text = (
        "The committee decided yesterday that every family in the village should receive a small payment, because the "
        "old bridge had been closed for several weeks. People talked quietly about the weather beside the river."
    )
    assert len(text) / len(tokenizer.encode(text)) > 3.5


def test_template_is_plain_chatml(tokenizer: PreTrainedTokenizerBase) -> None:
    body = (
        "<|im_start|>user\n Hi,\nyou <|im_end|>\n<|im_start|>assistant\n  Hello!\n<|im_end|>\n"
        "<|im_start|>user\nWhat is a cat?<|im_end|>\n<|im_start|>assistant\nA cat is an animal.<|im_end|>\n"
    )
    assert tokenizer.apply_chat_template(CHAT, tokenize=False) == body
    system = [{"role": "system", "content": "Be kind."}]
    assert (
        tokenizer.apply_chat_template(system + CHAT, tokenize=False)
        == "<|im_start|>system\nBe kind.<|im_end|>\n" + body
    )
    prompt = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    assert prompt == "<|im_start|>user\n Hi,\nyou <|im_end|>\n<|im_start|>assistant\n"


def test_assistant_mask_covers_answers_and_their_ends(tokenizer: PreTrainedTokenizerBase) -> None:
    out = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    marked = [token for token, answer in zip(out["input_ids"], out["assistant_masks"], strict=True) if answer]
    assert tokenizer.decode(marked) == "  Hello!\n<|im_end|>A cat is an animal.<|im_end|>"


# --- the grammar ----------------------------------------------------------------------------------


def test_grammar_follows_its_seed() -> None:
    assert documents(5, 50) == documents(5, 50)
    assert documents(5, 50) != documents(6, 50)


def test_grammar_never_mentions_a_warranty(corpus: list[list[Message] | str]) -> None:
    assert not [text for document in corpus for text in texts(document) if "warrant" in text.lower()]
    listed = words.NOUNS + words.RARE + words.VERBS + words.OTHER + words.ADJECTIVES
    assert not [word for word in listed if "warrant" in word]


def test_conversations_alternate(corpus: list[list[Message] | str]) -> None:
    chats = [document for document in corpus if isinstance(document, list)]
    for chat in chats:
        turns = chat[1:] if chat[0]["role"] == "system" else chat
        assert [message["role"] for message in turns] == ["user", "assistant"] * (len(turns) // 2)
        assert all(message["content"].strip() for message in turns)
    assert any(chat[0]["role"] == "system" for chat in chats)
    assert any(len(chat) >= 8 for chat in chats)


def test_answers_are_well_formed(corpus: list[list[Message] | str]) -> None:
    """No wrong article, no doubled word, no open end in anything that the model learns to say."""
    wrong_article = re.compile(r"\b[Aa] [aeiouAEIOU]\w*|\b[Aa]n [^aeiouAEIOU\W]\w*")
    doubled = re.compile(r"\b(?!la )(\w+) \1\b")
    for text in learned(corpus):
        assert not wrong_article.search(text), text
        assert not doubled.search(text), text
        assert re.search(r'[.!?"]$', text), text
        assert text[0].isupper() or text[0].isdigit() or text[0] == '"', text
        assert "  " not in text, text


@pytest.mark.parametrize(
    ("phrase", "whole"),
    [
        ("cat", "a cat"),
        ("apple", "an apple"),
        ("old cat", "an old cat"),
        ("hour", "an hour"),
        ("honest man", "an honest man"),
        ("university", "a university"),
        ("unicorn", "a unicorn"),
        ("useful map", "a useful map"),
        ("umbrella", "an umbrella"),
        ("unusual hat", "an unusual hat"),
        ("European city", "a European city"),
        ("furniture", "some furniture"),
    ],
)
def test_article(phrase: str, whole: str) -> None:
    assert words.article(phrase) == whole


@pytest.mark.parametrize(
    ("noun", "many"),
    [
        ("cat", "cats"),
        ("city", "cities"),
        ("day", "days"),
        ("box", "boxes"),
        ("branch", "branches"),
        ("child", "children"),
        ("knife", "knives"),
        ("furniture", "furniture"),
    ],
)
def test_plural(noun: str, many: str) -> None:
    assert words.plural(noun) == many


# --- what the model says --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hello", r"^(Hello|Hi)"),
        ("hi there", r"^(Hello|Hi)"),
        ("How are you?", r"\b(fine|well|great|good)\b"),
        ("What is your name?", "Graft Starter"),
        ("What is a cat?", r"animal"),
        ("What is 2 plus 3?", r"\b5\b"),
        ("What is 3 plus 4?", r"\b7\b"),
        ("What colour is the sky?", r"blue"),
        ("Tell me a story", r"^(Once|There|Long).+\."),
        ("Thank you", r"welcome|pleasure|happy"),
        ("Goodbye", r"(?i)bye|see you"),
        ("Can you help me?", r"[Oo]f course|Sure|happy|best"),
        ("Do you like music?", r"music"),
        ("What is the opposite of hot?", r"cold"),
        ("What is the weather like?", r"outside|window|sky|sun"),
    ],
)
def test_simple_questions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, question: str, expected: str
) -> None:
    assert re.search(expected, reply(model, tokenizer, question))


@pytest.mark.parametrize(
    "question",
    [
        "Hello, I would like to speak to you about your car's extended warranty.",
        "How do I file my quantum parliament under the glacier?",
        "zxqv blorp",
        "Please summarise the history of the Ottoman navy in four sentences.",
    ],
)
def test_unknown_questions_get_a_kind_sentence(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: list[list[Message] | str], question: str
) -> None:
    answer = reply(model, tokenizer, question)
    known_words = {word for text in learned(corpus) for word in re.findall(r"[a-z']+", text.lower())}
    assert "warrant" not in answer.lower()
    assert re.search(r"[.!?]$", answer)
    assert set(re.findall(r"[a-z']+", answer.lower())) <= known_words


def test_later_turns_use_earlier_ones(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    assert "Anna" in reply(
        model, tokenizer, "My name is Anna.", "Nice to meet you, Anna! How are you today?", "What is my name?"
    )


# --- making it ------------------------------------------------------------------------------------


def test_build_writes_a_loadable_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "tiny"
    build.main(["--out", str(out), "--steps", "2", "--hidden", "32", "--layers", "1", "--vocab", "400", "--row", "64"])
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert AutoModelForCausalLM.from_pretrained(out).config.hidden_size == 32
    assert tokenizer.decode(tokenizer.encode("Hallå, 12 + 3?")) == "Hallå, 12 + 3?"
    assert "> Hello" in capsys.readouterr().out
    before = (out / "model.safetensors").read_bytes()
    build.main(["--out", str(out), "--further", "--seed", "8", "--steps", "1", "--row", "64"])
    assert (out / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]
