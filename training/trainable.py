"""Whether a base model can be trained with what is installed, told from its facts: if not, why, and what to use."""

from __future__ import annotations

import ast
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from training.model_facts import WRITERS, ModelFacts

_CLASSIFIERS = ("Classification", "QuestionAnswering", "RewardModel", "MultipleChoice")
_INSTEAD = "choose a causal language model, one whose config.json names an architecture ending in ForCausalLM"
# What transformers needs besides itself, and the names under which pip has it.
_BACK_ENDS = {"GPTQ": ("optimum", "gptqmodel"), "AWQ": ("gptqmodel",), "bitsandbytes": ("bitsandbytes",)}
_FOR_RUNNING = ("FP8", "MXFP4", "NVFP4")


def why_not(facts: ModelFacts, *, run_code: bool = False) -> str:
    """One sentence on why this model cannot be trained; empty when it can. `run_code`: its own code may run."""
    return _wrong_kind(facts, run_code) or _wrong_packing(facts) or _not_whole(facts)


def why_not_this_kind(facts: ModelFacts, *, run_code: bool = False) -> str:
    """The same from the config alone, for a model whose weights are not there yet."""
    return _wrong_kind(facts, run_code) or _wrong_packing(facts)


@lru_cache(maxsize=1)
def causal_model_types() -> frozenset[str]:
    """The values of model_type for which the installed transformers has a causal language model.

    Read from its source, because importing it takes seconds and brings torch along.
    """
    spec = find_spec("transformers")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("transformers is not installed")
    source = Path(spec.submodule_search_locations[0], "models", "auto", "modeling_auto.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if (
            isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"
            and isinstance(node.value, ast.Call)
        ):
            return frozenset(name for name, _ in ast.literal_eval(node.value.args[0]))
    raise RuntimeError("this transformers keeps its list of causal language models elsewhere")


def _wrong_kind(facts: ModelFacts, run_code: bool) -> str:
    name, architecture = facts.name, facts.architecture
    known = facts.model_type in causal_model_types()
    if facts.code and not known:
        if run_code:
            return ""
        return (
            f"'{name}' runs program code of its own: tick \"Run the model's own code\" if you trust its makers, "
            "or choose another model."
        )
    if facts.encoder_decoder or (architecture.endswith("ForConditionalGeneration") and not known):
        return f"'{name}' is no causal language model ({architecture or facts.model_type}): {_INSTEAD}."
    if architecture and not architecture.endswith(WRITERS):
        return f"'{name}' {_what_it_does(architecture)} ({architecture}), it cannot write: {_INSTEAD}."
    if not facts.model_type and facts.has_weights:
        return f"the config.json of '{name}' does not say what kind of model it is: copy the model again."
    if facts.model_type and not known:
        return (
            f"'{name}' is of a kind ('{facts.model_type}') that the installed transformers cannot write text with: "
            f"{_INSTEAD}, or update Graft."
        )
    return ""


def _what_it_does(architecture: str) -> str:
    if any(word in architecture for word in _CLASSIFIERS):
        return "sorts texts into classes"
    if architecture.endswith(("MaskedLM", "PreTraining")):
        return "is an encoder, which fills gaps in a text"
    return "turns texts into numbers, as for search,"


def _wrong_packing(facts: ModelFacts) -> str:
    method = facts.quantization.split(" ")[0]
    original = "choose the original model and load it in 4-bit"
    if method in _FOR_RUNNING:
        return f"'{facts.name}' is stored in {facts.quantization}, which is for running, not for training: {original}."
    packages = _BACK_ENDS.get(method)
    if method and packages is None:
        return f"'{facts.name}' is stored in {facts.quantization}, which Graft cannot train on: {original}."
    lacking = [package for package in packages or () if find_spec(package) is None]
    if lacking:
        return (
            f"'{facts.name}' is stored in {facts.quantization}, for which {' and '.join(lacking)} "
            f"{'is' if len(lacking) == 1 else 'are'} not installed: {original}."
        )
    return ""


def _not_whole(facts: ModelFacts) -> str:
    name = facts.name
    if not facts.has_weights:
        return (
            f"'{name}' has no .safetensors weights (model.safetensors or its shards): only these are loaded, because "
            "other kinds can run code, so choose a model that has them."
        )
    again = "download or copy it again"
    if facts.missing:
        return f"'{name}' is not whole, because {_some(facts.missing)} missing: {again}."
    if facts.damaged:
        return f"'{name}' is damaged, because {_some(facts.damaged)} cut short or filled with something else: {again}."
    if not facts.has_tokenizer:
        return f"'{name}' has no tokenizer (tokenizer.json, tokenizer.model or vocab.json): {again}, with all files."
    return ""


def _some(files: tuple[str, ...]) -> str:
    if len(files) == 1:
        return f"{files[0]} is"
    return f"{files[0]} and {len(files) - 1} more are"
