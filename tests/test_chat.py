"""The chat engine with a tiny model of random weights: streaming, stopping, comparing, templates, errors."""

import itertools
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from training.adapters import adapter_folder, base_of
from training.chat import PUT_AWAY, Chat, ChatModel, Reply, checked
from training.errors import UserError
from training.formats import Message
from training.generation import end_tokens
from training.paths import Folders
from training.run_state import Status
from training.runs import Run, find_run
from training.sampling import Sampling, describe_sampling, make_sampling
from training.settings import Precision, Settings

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
HELLO: list[Message] = [{"role": "user", "content": "Hello"}]
GREEDY = Sampling(temperature=0, max_tokens=12)
BASE = ChatModel("tiny", precision="32-bit")


def make_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """One token a byte, plus the three special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[0], additional_special_tokens=special[1:]
    )
    fast.chat_template = template
    return fast


def make_model(hidden_size: int = 64) -> LlamaForCausalLM:
    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=259,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=256,
        initializer_range=0.5,  # wide enough that the answers of two models differ
    )
    return LlamaForCausalLM(config)


def make_lora(base: LlamaForCausalLM, seed: int, *folders: Path) -> None:
    torch.manual_seed(seed)
    lora = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    for folder in folders:
        lora.save_pretrained(str(folder), save_embedding_layers=False)
    lora.unload()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Two base models that do not fit each other's adapters, and three LoRAs."""
    root = tmp_path_factory.mktemp("chat")
    made = Folders(root / "models", root / "datasets", root / "loras", root / "presets")
    made.make()
    for name, size in (("tiny", 64), ("wide", 128)):
        make_model(size).save_pretrained(made.models / name)
        make_tokenizer().save_pretrained(made.models / name)
    base = LlamaForCausalLM.from_pretrained(made.models / "tiny")
    make_lora(base, 1, made.loras / "first", made.loras / "first" / "checkpoint-5")
    make_lora(base, 2, made.loras / "second", made.loras / "first" / "checkpoint-10")
    make_lora(base, 3, made.loras / "running" / "checkpoint-3")
    for name in ("first", "second", "running"):
        Run(made.loras / name).write_settings(Settings(base_model="tiny", name=name))
    return made


@pytest.fixture
def chat(folders: Folders) -> Iterator[Chat]:
    chat = Chat(folders)
    yield chat
    chat.unload()


def answer(chat: Chat, what: ChatModel = BASE, sampling: Sampling = GREEDY, *, with_adapter: bool = True) -> str:
    return list(chat.reply(what, HELLO, sampling, with_adapter=with_adapter))[-1].text


def rows(model: Any) -> int:
    """For how many tokens the model has embeddings."""
    return int(model.get_input_embeddings().weight.shape[0])


def last(replies: Iterator[Reply]) -> Reply:
    return list(replies)[-1]


def test_importing_the_engine_does_not_load_torch() -> None:
    code = (
        "import sys, training.chat, training.sampling;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'peft', 'gradio')))"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0


def test_the_answer_grows_and_says_what_is_done(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.generation._SECONDS_BETWEEN_PIECES", 0)
    replies = list(chat.reply(BASE, HELLO, GREEDY))
    assert replies[0].status == "Loading tiny ..."
    assert len({reply.text for reply in replies}) > 5
    assert all(later.text.startswith(earlier.text) for earlier, later in itertools.pairwise(replies))
    assert "12 tokens" in replies[-1].status and "cut off" in replies[-1].status
    assert not [reply for reply in chat.reply(BASE, HELLO, GREEDY) if "Loading" in reply.status], "it was kept"


def test_temperature_0_is_the_plain_greedy_answer(chat: Chat, folders: Folders) -> None:
    model, tokenizer = LlamaForCausalLM.from_pretrained(folders.models / "tiny"), make_tokenizer()
    text = tokenizer.apply_chat_template(HELLO, tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(GREEDY.max_tokens):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    expected = tokenizer.decode(ids[0, -GREEDY.max_tokens :], skip_special_tokens=True).strip()
    assert answer(chat) == answer(chat, sampling=Sampling(temperature=0, max_tokens=12, seed=5)) == expected


def test_the_same_seed_gives_the_same_answer(chat: Chat) -> None:
    seven = Sampling(temperature=1.5, top_p=1, max_tokens=12, seed=7)
    assert answer(chat, sampling=seven) == answer(chat, sampling=seven)
    assert answer(chat, sampling=seven) != answer(chat, sampling=seven.model_copy(update={"seed": 8}))
    unset = Sampling(temperature=1.5, top_p=1, max_tokens=12)
    assert len({answer(chat, sampling=unset) for _ in range(3)}) > 1
    assert unset.settled().seed >= 0 and seven.settled() is seven


def test_stopping_ends_after_a_token_and_keeps_the_model(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import generation

    stop = threading.Event()
    put = generation._Stream.put

    def put_and_wait(stream: Any, ids: Any) -> None:
        """The model writes no further before the reader has asked it to stop, however fast the machine is."""
        put(stream, ids)
        if stream.text().rstrip("\ufffd"):
            stop.wait(timeout=60)

    monkeypatch.setattr(generation, "_SECONDS_BETWEEN_PIECES", 0)
    monkeypatch.setattr(generation._Stream, "put", put_and_wait)
    replies = chat.reply(BASE, HELLO, Sampling(temperature=0, max_tokens=200), stop_event=stop)
    for reply in replies:
        if reply.text:
            stop.set()
    assert reply.status.startswith("Stopped. ")
    assert int(reply.status.split()[1]) < 150
    assert answer(chat)


def test_stopping_before_the_first_token(chat: Chat) -> None:
    stop = threading.Event()
    stop.set()
    assert last(chat.reply(BASE, HELLO, GREEDY, stop_event=stop)) == Reply("", "Stopped.")


def test_walking_away_from_an_answer_frees_the_model_for_the_next(chat: Chat) -> None:
    replies = chat.reply(BASE, HELLO, Sampling(max_tokens=200))
    next(replies)
    del replies
    assert answer(chat)


def test_a_second_chat_waits_its_turn(chat: Chat) -> None:
    expected = answer(chat)
    chat._lock.acquire()
    replies = chat.reply(BASE, HELLO, GREEDY)
    assert next(replies).status == "Waiting for the answer to another chat ..."
    chat._lock.release()
    assert last(replies).text == expected


def test_every_question_is_answered_by_the_same_thread(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    answered_by = []
    plain = chat._answer
    monkeypatch.setattr(chat, "_answer", lambda job: (answered_by.append(threading.current_thread()), plain(job)))
    for _ in range(3):
        answer(chat)
    assert len(set(answered_by)) == 1 and len(answered_by) == 3


def test_question_stopped_before_its_turn_is_never_answered(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = []
    monkeypatch.setattr(chat, "_answer", lambda job: answered.append(job.stop_event))
    stop = threading.Event()
    with chat._lock:
        waiting = chat.reply(BASE, HELLO, GREEDY, stop_event=stop)
        assert next(waiting).status == "Waiting for the answer to another chat ..."
        stop.set()
        assert [reply.status for reply in waiting] == ["Stopped."]
    second = threading.Event()
    list(chat.reply(BASE, HELLO, GREEDY, stop_event=second))
    assert answered == [second]


def test_nothing_is_loaded_for_a_reader_who_left_before_the_turn_came(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[ChatModel] = []
    plain = chat._models.ready
    monkeypatch.setattr(chat._models, "ready", lambda what, **how: (loaded.append(what), plain(what, **how))[1])
    with chat._lock:
        waiting = chat.reply(BASE, HELLO, GREEDY)
        next(waiting)
        waiting.close()
    assert answer(chat)
    assert len(loaded) == 1


def test_a_training_ends_the_answer_and_takes_the_memory(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import generation

    stop = threading.Event()  # that of the reader, which giving way sets too
    put = generation._Stream.put

    def put_and_wait(stream: Any, ids: Any) -> None:
        """The model writes no further before it has to give way."""
        put(stream, ids)
        if stream.text().rstrip("\ufffd"):
            stop.wait(timeout=60)

    monkeypatch.setattr(generation, "_SECONDS_BETWEEN_PIECES", 0)
    monkeypatch.setattr(generation._Stream, "put", put_and_wait)
    training = threading.Thread(target=chat.give_way)
    for reply in chat.reply(BASE, HELLO, Sampling(temperature=0, max_tokens=200), stop_event=stop):
        if reply.text and not training.ident:
            training.start()
    training.join(60)
    assert reply.status == PUT_AWAY and reply.text
    assert chat._models.loaded is None and chat.put_away
    stop.set()
    assert answer(chat) and not chat.put_away


def test_who_waits_for_a_turn_is_told_of_the_training(chat: Chat) -> None:
    chat._lock.acquire()
    replies = chat.reply(BASE, HELLO, GREEDY)
    assert next(replies).status == "Waiting for the answer to another chat ..."
    training = threading.Thread(target=chat.give_way)
    training.start()
    assert last(replies).status == PUT_AWAY
    chat._lock.release()
    training.join(60)
    assert not chat.put_away, "nothing was loaded"


def test_a_model_loaded_beside_a_training_says_so(chat: Chat, folders: Folders) -> None:
    run = Run(folders.loras / "busy")
    run.folder.mkdir()
    run.write_settings(Settings(name="busy"))
    run.set_state(Status.TRAINING)
    said = "The training of 'busy' shares the memory with the model and is slower meanwhile."
    first = [reply.status for reply in chat.reply(BASE, HELLO, GREEDY)]
    again = [reply.status for reply in chat.reply(BASE, HELLO, GREEDY)]
    shutil.rmtree(run.folder)
    assert first[0].endswith(said) and first[-1].endswith(said)
    assert not any(said in status for status in again), "it is in memory already"


def test_an_adapter_changes_the_answer_and_the_base_side_is_the_base_alone(chat: Chat) -> None:
    alone = answer(chat)
    first = replace(BASE, adapter="first")
    assert answer(chat, first) != alone
    assert answer(chat, first, with_adapter=False) == alone
    assert answer(chat, BASE) == alone, "after the adapter was taken off"


def test_only_the_adapter_is_exchanged(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = {name: answer(chat, replace(BASE, adapter=name)) for name in ("first", "second")}
    assert len({*expected.values(), answer(chat)}) == 3
    monkeypatch.setattr("training.model.load_base", lambda *_: pytest.fail("the base was loaded again"))
    for name in ("first", "second", "first"):
        assert answer(chat, replace(BASE, adapter=name)) == expected[name]
    assert answer(chat, replace(BASE, adapter="first", checkpoint=10)) == expected["second"]
    assert answer(chat, replace(BASE, adapter="first", checkpoint=5)) == expected["first"]


def test_going_back_to_an_adapter_reads_nothing_from_the_disk(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [BASE, replace(BASE, adapter="first"), replace(BASE, adapter="first", checkpoint=10)]
    expected = [answer(chat, what) for what in asked]
    for function in ("load_base", "load_adapter", "load_tokenizer"):
        monkeypatch.setattr(f"training.model.{function}", lambda *_, **__: pytest.fail("it was read again"))
    for what, text in zip(asked, expected, strict=True):
        replies = list(chat.reply(what, HELLO, GREEDY))
        assert replies[-1].text == text
        assert not [reply for reply in replies if "Loading" in reply.status]


def test_both_sides_of_a_comparison_use_one_copy_of_the_weights(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    from training import generation

    places: list[set[int]] = []
    write = generation.write_answer

    def noting(speaker: Any, *rest: Any) -> Any:
        places.append({weight.data_ptr() for weight in speaker.model.parameters()})
        return write(speaker, *rest)

    monkeypatch.setattr(generation, "write_answer", noting)
    first = replace(BASE, adapter="first")
    texts = [answer(chat, first, with_adapter=side) for side in (False, True, False)]
    assert texts[0] == texts[2] != texts[1]
    assert places[0] == places[1] == places[2]


def test_the_base_side_of_an_adapter_that_changes_the_base_is_the_base(chat: Chat, folders: Folders) -> None:
    """As PEFT saves PiSSA: when it is loaded again it takes its beginning out of the base's weights."""
    torch.manual_seed(5)
    base = LlamaForCausalLM.from_pretrained(folders.models / "tiny")
    changed = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights="pissa"))
    for name, parameter in changed.named_parameters():
        if "lora_B" in name:
            parameter.data += torch.randn_like(parameter)
    changed.save_pretrained(str(folders.loras / "pissa"), save_embedding_layers=False)
    alone, pissa = answer(chat), replace(BASE, adapter="pissa")
    tuned = answer(chat, pissa)
    assert tuned != alone
    assert answer(chat, pissa, with_adapter=False) == alone
    assert answer(chat, pissa) == tuned and answer(chat) == alone
    assert answer(chat, replace(BASE, adapter="first")) not in (alone, tuned)
    shutil.rmtree(folders.loras / "pissa")


def test_what_was_kept_for_others_makes_room_before_memory_runs_out(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    from training import generation

    expected = answer(chat)
    write, failures = generation.write_answer, iter([torch.OutOfMemoryError("CUDA")])

    def fails_once(*arguments: Any) -> Any:
        if failure := next(failures, None):
            assert chat._models.loaded and chat._models.loaded.readings._kept
            raise failure
        assert chat._models.loaded and not chat._models.loaded.readings._kept
        return write(*arguments)

    monkeypatch.setattr(generation, "write_answer", fails_once)
    monkeypatch.setattr("training.model.load_base", lambda *_: pytest.fail("the base was loaded again"))
    assert answer(chat) == expected


def test_an_adapter_trained_again_under_its_name_is_read_again(chat: Chat, folders: Folders) -> None:
    make_lora(LlamaForCausalLM.from_pretrained(folders.models / "tiny"), 4, folders.loras / "again")
    before = answer(chat, replace(BASE, adapter="again"))
    make_lora(LlamaForCausalLM.from_pretrained(folders.models / "tiny"), 5, folders.loras / "again")
    assert answer(chat, replace(BASE, adapter="again")) != before


def test_unload_forgets_the_model(chat: Chat) -> None:
    expected = answer(chat)
    assert chat._models.loaded
    chat.unload()
    assert not chat._models.loaded
    assert answer(chat) == expected


def test_whole_model_answers_beside_its_base(chat: Chat, folders: Folders) -> None:
    """What full fine-tuning leaves."""
    trained = make_model()
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for folder in (folders.loras / "whole", folders.loras / "whole" / "checkpoint-2"):
        trained.save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
    Run(folders.loras / "whole").write_settings(Settings(base_model="tiny", name="whole", method="full fine-tuning"))
    alone = answer(chat)
    whole = answer(chat, replace(BASE, adapter="whole"))
    assert whole != alone
    assert answer(chat, replace(BASE, adapter="whole"), with_adapter=False) == alone
    assert answer(chat, replace(BASE, adapter="whole", checkpoint=2)) == whole
    assert answer(chat, replace(BASE, adapter="first")) not in (whole, alone)


@pytest.mark.parametrize(
    "config",
    [
        PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4),
        IA3Config(task_type="CAUSAL_LM", init_ia3_weights=False),
    ],
    ids=lambda config: str(config.peft_type.value),
)
def test_adapters_of_other_kinds_answer_and_give_way(chat: Chat, folders: Folders, config: PeftConfig) -> None:
    torch.manual_seed(5)
    other = get_peft_model(make_model(), config)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data.normal_()
    other.save_pretrained(str(folders.loras / "other"))
    alone = answer(chat)
    assert answer(chat, replace(BASE, adapter="other")) != alone
    assert answer(chat, replace(BASE, adapter="other"), with_adapter=False) == alone
    assert answer(chat) == alone
    assert answer(chat, replace(BASE, adapter="first")) != alone
    shutil.rmtree(folders.loras / "other")


def test_tokens_that_an_adapter_added_are_known_with_it_alone(chat: Chat, folders: Folders) -> None:
    alone = answer(chat)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["<tool>", "<end>"])
    base = make_model()
    base.resize_token_embeddings(len(tokenizer))
    config = LoraConfig(r=2, target_modules="all-linear", modules_to_save=["embed_tokens", "lm_head"])
    get_peft_model(base, config).save_pretrained(str(folders.loras / "grown"), save_embedding_layers=False)
    tokenizer.save_pretrained(folders.loras / "grown")
    answer(chat, replace(BASE, adapter="grown"))
    assert chat._models.loaded and chat._models.loaded.shelf.base.get_input_embeddings().weight.shape[0] == len(
        tokenizer
    )
    assert answer(chat) == alone
    assert chat._models.loaded.shelf.base.get_input_embeddings().weight.shape[0] == 259


@pytest.mark.parametrize("precision", ["8-bit", "4-bit"])
def test_quantized_models_answer_and_take_other_adapters(chat: Chat, precision: Precision) -> None:
    what = replace(BASE, precision=precision)
    alone = answer(chat, what)
    assert answer(chat, replace(what, adapter="first")) != alone
    assert answer(chat, replace(what, adapter="first"), with_adapter=False) == alone == answer(chat, what)


def test_the_template_saved_with_the_adapter_wins_on_both_sides(chat: Chat, folders: Folders) -> None:
    make_lora(LlamaForCausalLM.from_pretrained(folders.models / "tiny"), 1, folders.loras / "own-template")
    make_tokenizer("{% for m in messages %}{{ m['content'] }}{% endfor %}").save_pretrained(
        folders.loras / "own-template"
    )
    own = replace(BASE, adapter="own-template")
    assert answer(chat, own) != answer(chat, replace(BASE, adapter="first")), "the same weights, another template"
    assert answer(chat, own, with_adapter=False) != answer(chat)


def test_a_base_without_a_template_gets_the_one_of_the_training(chat: Chat, folders: Folders) -> None:
    make_model().save_pretrained(folders.models / "bare")
    make_tokenizer(None).save_pretrained(folders.models / "bare")
    answer(chat, ChatModel("bare"))
    assert chat._models.loaded is not None
    assert "### Response:" in str(next(iter(chat._models.loaded.tokenizers.values())).chat_template)


def test_the_end_of_turn_of_the_template_ends_an_answer() -> None:
    assert end_tokens(make_model(), make_tokenizer()) == [256, 258]
    assert end_tokens(make_model(), make_tokenizer("{{ messages[-1]['content'] }}.")) == [256]


def test_an_answer_ends_at_an_end_token(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.generation.end_tokens", lambda *_: list(range(259)))
    assert last(chat.reply(BASE, HELLO, GREEDY)).status.startswith("1 token, ")


def conversation(turns: int, letters: int) -> list[Message]:
    said: list[Message] = [{"role": "system", "content": "Be brief."}]
    for _ in range(turns):
        said += [{"role": "user", "content": "u" * letters}, {"role": "assistant", "content": "a" * letters}]
    return [*said, *HELLO]


def test_the_oldest_turns_make_room_and_it_is_said(chat: Chat) -> None:
    long = last(chat.reply(BASE, conversation(4, 30), GREEDY))
    assert "The model reads 256 tokens at once, so the oldest 2 turns were left out." in long.status
    assert last(chat.reply(BASE, conversation(2, 30), GREEDY)).text == long.text
    assert "left out" not in last(chat.reply(BASE, conversation(1, 30), GREEDY)).status
    assert "so the oldest turn was left out." in last(chat.reply(BASE, conversation(3, 30), GREEDY)).status


def test_an_answer_keeps_within_the_context(chat: Chat) -> None:
    assert int(last(chat.reply(BASE, HELLO, Sampling(temperature=0, max_tokens=4096))).status.split()[0]) < 256


def test_a_message_that_alone_is_too_long_is_refused(chat: Chat) -> None:
    with pytest.raises(UserError, match=r"too long: it makes \d+ tokens, and this model can read 244"):
        list(chat.reply(BASE, [{"role": "user", "content": "x" * 300}], GREEDY))


def test_questions_without_an_answer_are_left_out() -> None:
    said: list[Message] = [
        {"role": "system", "content": " "},
        {"role": "user", "content": "failed"},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "stopped"},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "two"},
    ]
    assert [m["content"] for m in checked(said)] == ["one", "1", "two"]


@pytest.mark.parametrize(
    ("what", "says"),
    [
        (ChatModel("nothing"), "there is no folder 'nothing'"),
        (ChatModel(""), "choose one"),
        (replace(BASE, adapter="gone"), "There is no LoRA called 'gone'"),
        (replace(BASE, adapter="running"), "'running' is not finished: choose a checkpoint"),
        (replace(BASE, adapter="first", checkpoint=7), "no checkpoint of step 7"),
        (ChatModel("wide", adapter="first"), "does not fit this base model"),
    ],
)
def test_what_is_missing_is_said_and_the_next_answer_is_right(
    chat: Chat, folders: Folders, what: ChatModel, says: str
) -> None:
    expected = answer(chat)
    with pytest.raises(UserError, match=says):
        list(chat.reply(what, HELLO, GREEDY))
    assert answer(chat) == expected
    if what.base_model in ("tiny", "wide"):
        assert answer(chat, replace(what, adapter=None, checkpoint=None))


@pytest.mark.parametrize("text", ["", " \n"])
def test_an_empty_message_is_refused(chat: Chat, text: str) -> None:
    with pytest.raises(UserError, match="The message is empty"):
        list(chat.reply(BASE, [{"role": "user", "content": text}], GREEDY))
    with pytest.raises(UserError, match="The message is empty"):
        list(chat.reply(BASE, [], GREEDY))


def test_a_template_that_refuses_is_quoted(chat: Chat, folders: Folders) -> None:
    make_model().save_pretrained(folders.models / "strict")
    make_tokenizer(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    ).save_pretrained(folders.models / "strict")
    with pytest.raises(UserError, match=r"refuses the conversation \(No system role\). Try it without the system"):
        list(chat.reply(ChatModel("strict"), conversation(1, 3), GREEDY))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA"), RuntimeError("can't allocate memory"), MemoryError()]
)
def test_running_out_of_memory_frees_the_model_and_says_what_to_do(
    chat: Chat, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    answer(chat)

    def fails(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("training.generation.write_answer", fails)
        with pytest.raises(UserError, match="Memory ran out: load the model in 4-bit"):
            answer(chat)
    assert not chat._models.loaded
    assert answer(chat)


def test_a_bug_reaches_the_caller_and_does_not_hang(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("training.generation.write_answer", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            answer(chat)
    assert answer(chat)


def test_the_base_of_a_lora_is_told_by_its_settings_or_its_config(folders: Folders) -> None:
    assert base_of(folders, find_run(folders, "first")) == "tiny"
    folder = folders.loras / "foreign"
    folder.mkdir()
    with pytest.raises(UserError, match="does not say on which base model"):
        base_of(folders, Run(folder))
    config = folder / "adapter_config.json"
    for written, expected in {
        str(folders.models / "wide"): "wide",
        "/home/ann/graft/models/wide": "wide",
        "C:\\graft\\models\\wide": "wide",
        "/elsewhere/unknown": "/elsewhere/unknown",
        "org/wide": "org/wide",
    }.items():
        config.write_text(json.dumps({"base_model_name_or_path": written}), encoding="utf-8")
        assert base_of(folders, Run(folder)) == expected
    (folder / "settings.json").write_text("{", encoding="utf-8")
    assert base_of(folders, Run(folder)) == "org/wide"
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match="does not say"):
        base_of(folders, Run(folder))


def test_the_folder_of_an_adapter(folders: Folders) -> None:
    assert adapter_folder(folders, "first", None) == folders.loras / "first"
    assert adapter_folder(folders, "running", 3) == folders.loras / "running" / "checkpoint-3"


def test_sampling_is_described_and_checked() -> None:
    for name, told in describe_sampling().items():
        assert told["title"] and told["description"] and told["minimum"] <= told["default"] <= told["maximum"], name
    assert make_sampling({"temperature": 0, "seed": None}) == Sampling(temperature=0)
    with pytest.raises(UserError, match="Temperature: '3' cannot be used; give a number from 0 to 2"):
        make_sampling({"temperature": 3})
    with pytest.raises(UserError, match=r"Seed: '1.5' cannot be used; give a whole number from -1"):
        make_sampling({"seed": 1.5})
