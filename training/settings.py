"""Every setting of a training, declared once: default, bounds, label, explanation and group.

The form, the validation, the presets, the command line, copied settings and the README's table all come from here.
A new setting is one declaration plus the line that uses it.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from training import formats
from training.errors import SettingsError, UserError
from training.paths import safe_name

ALL_LINEAR = "all-linear"
MAX_SEED = 2**32 - 1
MAX_CUTOFF = 2**20


class Group(StrEnum):
    """The part of the form in which a setting stands; the value is its heading."""

    MODEL = "Model"
    START = "Start from an earlier LoRA"
    NAME = "Name"
    DATASET = "Formatted dataset"
    RAW_TEXT = "Raw text file"
    EVALUATION = "Evaluation"
    TRAINING = "Training"
    METHOD = "Method"
    TARGETS = "Target modules"
    ADVANCED = "Advanced"
    SAVING = "Saving and stopping"


IfExists = Literal["ask", "new version", "continue", "overwrite"]
Result = Literal["last step", "best evaluation"]
Gpus = Literal["one", "all"]
Precision = Literal["32-bit", "16-bit", "8-bit", "4-bit"]
QuantizationType = Literal["NF4", "FP4"]
Method = Literal[
    "LoRA", "VeRA", "LoHa", "LoKr", "IA3", "prefix tuning", "prompt tuning", "P-tuning", "full fine-tuning"
]
Initialization = Literal["default", "gaussian", "orthogonal", "PiSSA", "OLoRA", "LoftQ", "EVA"]
StartAs = Literal["continue it", "merge it into the base"]
TrainOn = Literal["answers", "last answer", "everything"]
TooLong = Literal["drop the example", "cut its end", "keep the last turns"]
Scheduler = Literal[
    "cosine",
    "linear",
    "constant",
    "constant_with_warmup",
    "cosine_with_restarts",
    "cosine_with_min_lr",
    "cosine_warmup_with_min_lr",
    "polynomial",
    "inverse_sqrt",
    "warmup_stable_decay",
    "reduce_lr_on_plateau",
    "greedy",
]
# Those of transformers that need no further package.
Optimizer = Literal[
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_8bit",
    "paged_adamw_8bit",
    "paged_adamw_32bit",
    "ademamix",
    "ademamix_8bit",
    "paged_ademamix_8bit",
    "paged_ademamix_32bit",
    "lion_8bit",
    "lion_32bit",
    "paged_lion_8bit",
    "paged_lion_32bit",
    "adafactor",
    "rmsprop",
    "rmsprop_bnb",
    "rmsprop_bnb_8bit",
    "rmsprop_bnb_32bit",
    "adagrad",
    "sgd",
]
Checkpointing = Literal["when memory needs it", "always", "never"]
ALWAYS: Checkpointing = "always"
WHEN_NEEDED: Checkpointing = "when memory needs it"
NEVER: Checkpointing = "never"
FOLLOW_EVALUATION: tuple[Scheduler, ...] = ("reduce_lr_on_plateau", "greedy")
LORA: tuple[Method, ...] = ("LoRA",)
_RANKED: tuple[Method, ...] = ("LoRA", "VeRA", "LoHa", "LoKr")
_SCALED: tuple[Method, ...] = ("LoRA", "LoHa", "LoKr")
ON_MODULES: tuple[Method, ...] = (*_RANKED, "IA3")  # the others have no modules to choose
PROMPT_METHODS: tuple[Method, ...] = ("prefix tuning", "prompt tuning", "P-tuning")
FULL: Method = "full fine-tuning"
_MOST_LAYERS = 10_000  # far more than any model has
_LAYERS = re.compile(r"\s*\d+\s*(-\s*\d+\s*)?(,\s*\d+\s*(-\s*\d+\s*)?)*")
_PATTERNS = re.compile(r"\s*[^\s=,]+\s*=\s*0*[1-9]\d*\s*(,\s*[^\s=,]+\s*=\s*0*[1-9]\d*\s*)*")


def setting(
    default: Any,
    label: str,
    help: str,
    group: Group,
    *,
    choices: tuple[str, ...] = (),
    methods: tuple[Method, ...] = (),
    **bounds: Any,
) -> Any:
    """A pydantic field that also says how it is shown.

    `choices` is for values known to another module only; `methods` are those to which the setting means something.
    """
    extra: dict[str, Any] = {"group": group, "choices": list(choices), "methods": list(methods)}
    return Field(default, title=label, description=help, json_schema_extra=extra, **bounds)


class Settings(BaseModel):
    """What a training is asked to do."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_model: str = setting(
        "starter",
        "Base model",
        "A folder in models/, or a Hugging Face name such as org/model, which is downloaded when the training starts.",
        Group.MODEL,
    )
    precision: Precision = setting(
        "16-bit",
        "Load in",
        "4-bit takes about a quarter of the memory of 16-bit and learns nearly as well, a little slower. "
        "A processor without bfloat16 computes 16-bit in 32-bit.",
        Group.MODEL,
    )
    quantization_type: QuantizationType = setting(
        "NF4",
        "4-bit type",
        "NF4 fits the way in which weights are spread and is better for nearly all models (QLoRA).",
        Group.MODEL,
    )
    double_quantization: bool = setting(
        True,
        "Double quantization",
        "Stores the constants of 4-bit loading in 8 bits too: 0.4 bits less for each weight, at no loss worth naming.",
        Group.MODEL,
    )
    trust_remote_code: bool = setting(
        False,
        "Run the model's own code",
        "Some new models bring Python files of their own. They can do anything on this computer: tick this only for a "
        "publisher you trust.",
        Group.MODEL,
    )
    start_from: str = setting(
        "",
        "Start from",
        "An earlier LoRA or one of its checkpoints to train further, on other data if you like. Empty: a new one.",
        Group.START,
    )
    start_as: StartAs = setting(
        "continue it",
        "How it is used",
        "continue it: the same LoRA learns on, at this rank. merge it into the base: the sum is a new base model in "
        "models/, and a new LoRA is trained on it.",
        Group.START,
    )
    name: str = setting("", "Name", "The LoRA is saved under this name in loras/.", Group.NAME)
    if_exists: IfExists = setting(
        "ask",
        "If the name exists",
        "new version: saved as name-2. continue: goes on from the last checkpoint. "
        "overwrite: the old one moves to loras/.replaced/. Nothing is ever lost.",
        Group.NAME,
    )
    dataset: list[str] = setting(
        [],
        "Dataset",
        "Questions and answers or conversations: .json, .jsonl, .csv, .tsv or .parquet files, or folders of them.",
        Group.DATASET,
    )
    data_format: str = setting(
        formats.AUTO,
        "Data format",
        "How a row is read; auto takes the format that fits most rows, or the columns assigned on the Datasets tab.",
        Group.DATASET,
        choices=formats.NAMES,
    )
    chat_template: str = setting(
        "",
        "Chat template",
        "How a conversation is written down for the model. Empty: the model's own, which is right for chat models; "
        "a base model without one gets alpaca.",
        Group.DATASET,
    )
    train_on: TrainOn = setting(
        "answers",
        "Train on",
        "answers: the model learns to write every answer, not the questions. last answer: only the last of each "
        "conversation. everything: the questions too.",
        Group.DATASET,
    )
    too_long: TooLong = setting(
        "drop the example",
        "Rows over the cutoff",
        "A cut answer teaches the model to stop anywhere. keep the last turns: a conversation loses its first turns "
        "until it fits. All is counted and listed.",
        Group.DATASET,
    )
    drop_duplicates: bool = setting(
        False,
        "Drop duplicates",
        "Rows that are the same as an earlier one are left out, so that they do not count twice.",
        Group.DATASET,
    )
    raw_text: list[str] = setting(
        [],
        "Text file",
        "Any text the model should learn to continue: .txt, .md, .docx or .pdf files, or folders of them.",
        Group.RAW_TEXT,
    )
    overlap_length: int = setting(
        128,
        "Overlap",
        "Tokens that each chunk repeats from the one before, so that no passage is only seen torn in two. "
        "A quarter of the cutoff is a good value.",
        Group.RAW_TEXT,
        ge=0,
    )
    prefer_line_cut: int = setting(
        128,
        "Prefer line cut",
        "A chunk may end up to this many tokens early to end with a line, or else with a sentence. 0: cut anywhere.",
        Group.RAW_TEXT,
        ge=0,
    )
    hard_cut_string: str = setting(
        "\\n\\n\\n",
        "Hard-cut string",
        "Where the text is divided into documents that never share a chunk; \\n means a new line. Empty: one document.",
        Group.RAW_TEXT,
    )
    minimum_length: int = setting(
        8,
        "Minimum length",
        "Documents with fewer tokens, such as page numbers and lone headings, are left out and counted.",
        Group.RAW_TEXT,
        ge=0,
    )
    evaluation_file: str = setting(
        "",
        "Evaluation file",
        "Examples that are never trained on, to see whether the model learns or memorises. "
        "Empty: the held-out share is used.",
        Group.EVALUATION,
    )
    held_out_share: float = setting(
        0.1,
        "Held-out share",
        "Part of the training data kept aside for evaluation when there is no evaluation file. 0: none.",
        Group.EVALUATION,
        ge=0,
        le=0.5,
    )
    evaluate_every: int = setting(
        20,
        "Evaluate every n steps",
        "Also done at the start, at the end and with each checkpoint. 0: only at the start and the end.",
        Group.EVALUATION,
        ge=0,
    )
    batch_size: int = setting(
        32,
        "Batch size",
        "Examples per step of the optimizer. Larger is steadier, smaller makes more steps from little data.",
        Group.TRAINING,
        ge=1,
        le=65536,
    )
    micro_batch_size: int = setting(
        4,
        "Micro-batch size",
        "How many of the longest examples, or more short ones, are computed at once. Decides memory, not the result: "
        "lower it when memory runs out.",
        Group.TRAINING,
        ge=1,
        le=65536,
    )
    epochs: float = setting(
        3.0,
        "Epochs",
        "How often all the data is gone through. More learns it better, too many memorise it.",
        Group.TRAINING,
        gt=0,
        le=10_000,
    )
    learning_rate: float = setting(
        3e-4,
        "Learning rate",
        "How far each step goes. 1e-4 to 3e-4 suits LoRA; IA3 and virtual tokens want ten times that, full "
        "fine-tuning a tenth. Lower it when the loss jumps.",
        Group.TRAINING,
        gt=0,
        le=1,
    )
    scheduler: Scheduler = setting(
        "cosine",
        "Scheduler",
        "How the learning rate goes down over the run. reduce_lr_on_plateau lowers it when evaluation stops improving; "
        "greedy raises it as well while that gets better.",
        Group.TRAINING,
    )
    cutoff_length: int = setting(
        512,
        "Cutoff length",
        "The longest example in tokens. Memory grows with it.",
        Group.TRAINING,
        ge=8,
        le=MAX_CUTOFF,
    )
    method: Method = setting(
        "LoRA",
        "Method",
        "LoRA is right for nearly all; the Learn tab explains the others. full fine-tuning changes every weight and "
        "needs many times the memory.",
        Group.METHOD,
    )
    lora_rank: int = setting(
        16,
        "LoRA rank",
        "How much the adapter can learn: 8 to 16 for a style, 64 and more for knowledge. Its size grows with it. "
        "VeRA wants 256 and more.",
        Group.METHOD,
        methods=_RANKED,
        ge=1,
        le=4096,
    )
    lora_alpha: int = setting(
        32,
        "LoRA alpha",
        "The adapter's weight is alpha / rank. Twice the rank is the usual choice.",
        Group.METHOD,
        methods=_SCALED,
        ge=1,
        le=65536,
    )
    lora_dropout: float = setting(
        0.05,
        "LoRA dropout",
        "Share of the adapter's input left out at random, against memorising. 0 to 0.1 is usual.",
        Group.METHOD,
        methods=_RANKED,
        ge=0,
        lt=1,
    )
    rank_stabilized: bool = setting(
        False,
        "Rank-stabilized (rsLoRA)",
        "Weighs the adapter by alpha / √rank, so that high ranks (64 and more) learn as well as they could.",
        Group.METHOD,
        methods=LORA,
    )
    dora: bool = setting(
        False,
        "DoRA",
        "Learns direction and length of the weights apart: a little better at low ranks, and slower.",
        Group.METHOD,
        methods=LORA,
    )
    initialization: Initialization = setting(
        "default",
        "Initialization",
        "What the adapter begins with: PiSSA and OLoRA with the main directions of the weights, EVA with those of your "
        "data, LoftQ with what 4-bit loading lost.",
        Group.METHOD,
        methods=LORA,
    )
    lora_plus_ratio: float = setting(
        1.0,
        "LoRA+ ratio",
        "How many times faster B learns than A. 1: alike. 16 often learns faster; then halve the learning rate.",
        Group.METHOD,
        methods=LORA,
        ge=1,
        le=1000,
    )
    virtual_tokens: int = setting(
        20,
        "Virtual tokens",
        "How many learnt vectors stand before every text. 10 to 100 is usual; each takes room in the context.",
        Group.METHOD,
        methods=PROMPT_METHODS,
        ge=1,
        le=4096,
    )
    target_modules: list[str] = setting(
        [ALL_LINEAR],
        "Target modules",
        "The layers that get an adapter. all-linear learns best; q_proj and v_proj alone need the least memory.",
        Group.TARGETS,
        choices=(ALL_LINEAR, "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        methods=ON_MODULES,
        min_length=1,
    )
    target_pattern: str = setting(
        "",
        "Module pattern",
        "A regular expression for whole module names, such as .*[qv]_proj, in the place of the ticks. "
        "Empty: the ticks count.",
        Group.TARGETS,
        methods=ON_MODULES,
    )
    layer_range: str = setting(
        "",
        "Layers",
        "Only these layers of the model, counted from 0: for example 16-31, or 0-3, 28. Empty: all.",
        Group.TARGETS,
        methods=_RANKED,
    )
    rank_pattern: str = setting(
        "",
        "Ranks of their own",
        "Module names with a rank that differs, for example q_proj=32, layers.0.mlp.up_proj=8.",
        Group.TARGETS,
        methods=_SCALED,
    )
    alpha_pattern: str = setting(
        "",
        "Alphas of their own",
        "Module names with an alpha that differs, for example q_proj=64; a higher rank alone weighs less.",
        Group.TARGETS,
        methods=_SCALED,
    )
    train_fully: list[str] = setting(
        [],
        "Train fully",
        "Modules that are trained whole beside the adapter and saved with it, such as lm_head and embed_tokens. "
        "They are large.",
        Group.TARGETS,
        methods=ON_MODULES,
    )
    new_tokens: list[str] = setting(
        [],
        "New tokens",
        "Tokens that the tokenizer gets in addition, such as <tool>. Embeddings and head are then trained fully.",
        Group.TARGETS,
        methods=(*ON_MODULES, FULL),
    )
    warmup: float = setting(
        0.1,
        "Warm-up",
        "The learning rate rises from 0 at the start. Below 1: a share of all steps; 1 and above: that many steps. "
        "constant, plateau and greedy have none.",
        Group.ADVANCED,
        ge=0,
    )
    optimizer: Optimizer = setting(
        "adamw_torch",
        "Optimizer",
        "adamw_torch is right for nearly all, and is computed in one fused kernel. The 8-bit and paged ones save GPU "
        "memory.",
        Group.ADVANCED,
    )
    weight_decay: float = setting(
        0.0, "Weight decay", "Pulls the adapter towards zero. 0 to 0.1 is usual.", Group.ADVANCED, ge=0, le=1
    )
    max_grad_norm: float = setting(
        1.0,
        "Gradient clipping",
        "The longest a step's gradient may be; it keeps a bad batch from throwing the model off. 0: no clipping.",
        Group.ADVANCED,
        ge=0,
    )
    neftune_noise: float = setting(
        0.0,
        "NEFTune noise",
        "Random noise on the embeddings while training, which makes answers less literal. 5 is usual, 0: none.",
        Group.ADVANCED,
        ge=0,
        le=100,
    )
    label_smoothing: float = setting(
        0.0,
        "Label smoothing",
        "Share of the probability that is asked for all other tokens, against overconfidence. 0.1 is much, 0: none.",
        Group.ADVANCED,
        ge=0,
        lt=1,
    )
    gradient_checkpointing: Checkpointing = setting(
        WHEN_NEEDED,
        "Gradient checkpointing",
        "Needs much less memory, takes about a third more time, learns the same. when memory needs it: only if the "
        "training would not fit otherwise.",
        Group.ADVANCED,
    )
    offload_activations: bool = setting(
        False,
        "Offload activations",
        "What a step keeps for its way back waits in main memory, not on the GPU: less memory there, more time, the "
        "same result. Without a GPU it does nothing.",
        Group.ADVANCED,
    )
    seed: int = setting(
        42, "Seed", "The same seed, data and settings give the same training.", Group.ADVANCED, ge=0, le=MAX_SEED
    )
    retry_smaller: bool = setting(
        True,
        "Retry when memory runs out",
        "Goes on from the last checkpoint with half the micro-batch size, which takes less memory and learns the same.",
        Group.ADVANCED,
    )
    gpus: Gpus = setting(
        "one",
        "GPUs",
        "Where there are several. one: each run has its own, so that several train at once. all: this run uses all.",
        Group.ADVANCED,
    )
    save_every: int = setting(
        50,
        "Save every n steps",
        "A checkpoint to chat with or to continue from. One is always saved at the end and on stop. 0: none by steps.",
        Group.SAVING,
        ge=0,
    )
    save_minutes: float = setting(
        10.0,
        "Save every n minutes",
        "A checkpoint whenever the last is this old, so that a crash costs no more than that. 0: none by time.",
        Group.SAVING,
        ge=0,
        le=100_000,
    )
    keep_last: int = setting(
        3,
        "Keep last n checkpoints",
        "Older ones are deleted, but never the one with the lowest evaluation loss. 0: keep all.",
        Group.SAVING,
        ge=0,
    )
    result: Result = setting(
        "last step",
        "Which one is kept",
        "What the finished LoRA is: as the last step left it, or the checkpoint with the lowest evaluation loss.",
        Group.SAVING,
    )
    patience: int = setting(
        0,
        "Early stopping",
        "Ends the training after this many evaluations on end without a lower evaluation loss. 3 is usual. 0: never.",
        Group.SAVING,
        ge=0,
    )
    stop_at_loss: float = setting(
        0.0,
        "Stop at loss",
        "Ends the training as soon as a step's loss is this low. 0: never.",
        Group.SAVING,
        ge=0,
    )

    @model_validator(mode="before")
    @classmethod
    def _earlier_names(cls, values: Any) -> Any:
        """Settings as earlier versions wrote them."""
        if not isinstance(values, dict):
            return values
        values = dict(values)
        if "train_on_answers_only" in values:
            values.setdefault("train_on", "answers" if values.pop("train_on_answers_only") else "everything")
        if "prefer_newline_cut" in values:
            values.setdefault("prefer_line_cut", values.pop("prefer_newline_cut"))
        if isinstance(ticked := values.get("gradient_checkpointing"), bool):  # it was off unless one knew better
            values["gradient_checkpointing"] = ALWAYS if ticked else WHEN_NEEDED
        for name in ("dataset", "raw_text"):
            if isinstance(value := values.get(name), str):
                values[name] = [value]
        return values

    @field_validator("dataset", "raw_text", "target_modules", "train_fully", "new_tokens")
    @classmethod
    def _no_empty_names(cls, value: list[str]) -> list[str]:
        return [stripped for name in value if (stripped := name.strip())]

    @field_validator("*", mode="before")
    @classmethod
    def _text_is_stripped(cls, value: Any, info: ValidationInfo) -> Any:
        return value.strip() if isinstance(value, str) and info.field_name != "hard_cut_string" else value

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, value: str) -> str:
        return safe_name(value) if value else value

    @field_validator("data_format")
    @classmethod
    def _format_is_known(cls, value: str) -> str:
        if value not in (*formats.NAMES, formats.COLUMNS) and not value.endswith(formats.FORMAT_FILE_SUFFIX):
            raise UserError(f"'{value}' is not one of {', '.join(formats.NAMES)}, {formats.COLUMNS} or a format file.")
        return value

    @field_validator("target_modules")
    @classmethod
    def _all_linear_stands_alone(cls, value: list[str]) -> list[str]:
        if ALL_LINEAR in value and len(value) > 1:
            raise UserError(f"{ALL_LINEAR} already includes the others: untick it, or untick them.")
        return value

    @field_validator("target_pattern")
    @classmethod
    def _is_a_regular_expression(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise UserError(f"'{value}' is not a regular expression ({error}).") from None
        return value

    @field_validator("layer_range")
    @classmethod
    def _names_layers(cls, value: str) -> str:
        ends = [part.split("-") for part in value.split(",")] if _LAYERS.fullmatch(value) else []
        if (value and not all(int(end[0]) <= int(end[-1]) < _MOST_LAYERS for end in ends)) or bool(value) != bool(ends):
            raise UserError(f"'{value}' names no layers: write it like 16-31, or 0-3, 28.")
        return value

    @field_validator("rank_pattern", "alpha_pattern")
    @classmethod
    def _names_modules(cls, value: str) -> str:
        if value and not _PATTERNS.fullmatch(value):
            raise UserError(f"'{value}' cannot be read: write it like q_proj=32, v_proj=8.")
        return value

    @property
    def layers(self) -> list[int] | None:
        """The numbers of the layers that get an adapter, from 0; nothing means all."""
        if not self.layer_range:
            return None
        ends = [part.split("-") for part in self.layer_range.split(",")]
        return sorted({n for end in ends for n in range(int(end[0]), int(end[-1]) + 1)})

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        problems = self._method_problems()
        if self.micro_batch_size > self.batch_size:
            problems["micro_batch_size"] = (
                f"{self.micro_batch_size} is more than the batch size of {self.batch_size}: "
                "lower it, or raise the batch size."
            )
        if self.raw_text and self.overlap_length >= self.cutoff_length:
            problems["overlap_length"] = (
                f"{self.overlap_length} is not below the cutoff length of {self.cutoff_length}: "
                "a quarter of it is good."
            )
        if self.raw_text and self.dataset:
            problems["dataset"] = "choose a dataset or a raw text file, not both."
        evaluated = self.evaluate_every and (self.held_out_share or self.evaluation_file)
        if self.scheduler in FOLLOW_EVALUATION and not evaluated:
            problems["scheduler"] = (
                f"{self.scheduler} follows the evaluation: hold a share out or give a file, and evaluate."
            )
        for name, chosen in (("patience", self.patience > 0), ("result", self.result == "best evaluation")):
            if chosen and not evaluated:
                problems[name] = "this follows the evaluation: hold a share out or give a file, and evaluate."
        if problems:
            raise SettingsError(problems)
        return self

    def _method_problems(self) -> dict[str, str]:
        """What the method cannot be combined with."""
        problems = {}
        if self.method == FULL:
            if self.precision in ("8-bit", "4-bit"):
                problems["precision"] = "full fine-tuning changes the weights themselves: load them in 16-bit."
            if self.start_from and self.start_as == "continue it":
                problems["start_as"] = "full fine-tuning cannot continue an adapter: merge it into the base."
        if self.method == "prefix tuning" and self.gradient_checkpointing == ALWAYS:
            problems["gradient_checkpointing"] = f"prefix tuning does not work with it: choose {WHEN_NEEDED} or never."
        if self.new_tokens and self.method in PROMPT_METHODS:
            problems["new_tokens"] = f"{self.method} trains no embeddings, so they would stay random: leave this empty."
        if self.target_pattern and self.layer_range:
            problems["layer_range"] = "the module pattern names the layers itself: leave one of the two empty."
        if self.method == "LoRA":
            if self.initialization in ("PiSSA", "OLoRA"):
                if self.precision in ("8-bit", "4-bit"):
                    problems["initialization"] = f"{self.initialization} changes the weights: load the model in 16-bit."
                elif self.train_fully or self.new_tokens:
                    problems["initialization"] = f"{self.initialization} cannot be saved beside modules trained fully."
                elif self.rank_stabilized or self.dora or self.rank_pattern or self.alpha_pattern:
                    problems["initialization"] = (
                        f"{self.initialization} works with neither rsLoRA, DoRA nor ranks and alphas of their own."
                    )
            if self.initialization == "LoftQ" and self.precision != "4-bit":
                problems["initialization"] = "LoftQ makes up for what 4-bit loading loses: load the model in 4-bit."
            if self.initialization == "EVA" and self.rank_pattern:
                problems["rank_pattern"] = "EVA gives every module the same rank: leave this empty."
            if self.initialization != "default" and self.start_from and self.start_as == "continue it":
                problems["initialization"] = "an earlier LoRA that is continued has its weights already: take default."
        return problems
