"""Checkpoints with modules.json: PyLate, sentence-transformers (plain and MultiVectorEncoder) and XTR.

Source: docs/algorithms.md#14-checkpoint-layouts
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.layouts import plain
from ray_lir.encoder.layouts.loading import (
    ENCODER_ONLY,
    Parts,
    default_length,
    expansion_token,
    load_dense,
    load_transformer,
    punctuation_ids,
    read_json,
    read_json_object,
    word_ids,
)
from ray_lir.encoder.network import Network
from ray_lir.scorers.files import load_scorer
from ray_lir.storage.file_names import check_name

if TYPE_CHECKING:
    from ray_lir.encoder.layouts.loading import Tokenizer

PYLATE_KEYS = {
    "query_prefix",
    "document_prefix",
    "query_length",
    "document_length",
    "do_query_expansion",
    "attend_to_expansion_tokens",
    "skiplist_words",
}
"""Settings that only PyLate writes."""
PYLATE_QUERY_LENGTH, PYLATE_DOCUMENT_LENGTH = 32, 180
XTR_LENGTH = 512  # both sides in the original's notebook (docs/algorithms.md#12-lengths)
IGNORED = {"Pooling", "Normalize", "Dropout", "MultiVectorMask"}
"""Modules that act only on the pooled vector, have no effect at inference, or are read as conventions."""


def matches(path: Path) -> bool:
    """Return whether the folder has a modules.json or a Dense module."""
    return (path / "modules.json").is_file() or any(path.glob("*_Dense/config.json"))


def load(path: Path, trust_remote_code: bool = False, light: bool = False) -> Parts:
    """Return the transformer, projections, scorer, tokenizer and conventions of the folder.

    Args:
        path: The folder.
        trust_remote_code: Run Python code of the checkpoint.
        light: Load a plain BERT and its tokenizer without transformers, for inference on a CPU.

    Raises:
        ConfigError: A file is missing, damaged or describes an unsupported module.
    """
    modules = _modules(path)
    folder = transformer_folder(path)
    backbone, tokenizer = load_transformer(folder, trust_remote_code, light)
    dense = [
        load_dense(path / module["path"], "torch.nn.Identity" if module["type"].startswith("pylate.") else "torch.nn.Tanh")
        for module in modules
        if _kind(module) == "Dense"
    ]
    settings = read_json_object(path / "config_sentence_transformers.json")
    transformer = read_json_object(folder / "sentence_bert_config.json")
    length = default_length(tokenizer, backbone.config, transformer.get("max_seq_length"))
    masks = [read_json_object(path / module["path"] / "config.json") for module in modules if _kind(module) == "MultiVectorMask"]
    if masks or settings.get("model_type") == "MultiVectorEncoder":
        conventions = _native(settings, transformer, masks[0] if masks else {}, tokenizer, length)
        conventions["normalize"] = any(_kind(module) == "Normalize" for module in modules)
    elif PYLATE_KEYS & set(settings):
        conventions = _pylate(settings, tokenizer)
    elif backbone.config.model_type in ENCODER_ONLY and dense:
        conventions = {"query_length": XTR_LENGTH, "document_length": XTR_LENGTH, "lower_case": True}
    else:
        conventions = {**plain.conventions(tokenizer, backbone.config, transformer.get("max_seq_length")), **_prompts(settings)}
    if transformer.get("do_lower_case"):
        conventions["lower_case"] = True
    # checkpoint.save writes an identity if there is no projection
    projections = [layer for layer in dense if not layer.is_identity]
    network = Network(backbone, projections, conventions.get("normalize", True))
    network.scorer = load_scorer(path, network.dim)
    return Parts(network, tokenizer, {**conventions, "scorer": network.scorer.name})


def transformer_folder(path: Path) -> Path:
    """Return the folder of a checkpoint's transformer and tokenizer: the checkpoint itself, or a subfolder such as 0_Transformer."""
    if not matches(path):
        return path.parent if path.suffix == ".dnn" else path
    return path / next((module["path"] for module in _modules(path) if _kind(module) == "Transformer"), "")


def _modules(path: Path) -> list[dict[str, Any]]:
    modules = read_json(path / "modules.json")
    if not modules:  # an XTR folder may come without modules.json
        dense = sorted(folder.parent.name for folder in path.glob("*_Dense/config.json"))
        return [{"path": "", "type": "Transformer"}, *({"path": name, "type": "Dense"} for name in dense)]
    _check_modules(path, modules)
    modules = sorted(modules, key=lambda module: module["idx"])
    unknown = [module["type"] for module in modules if _kind(module) not in IGNORED | {"Transformer", "Dense"}]
    if unknown or _kind(modules[0]) != "Transformer":
        fault = f"names {', '.join(unknown)}" if unknown else "does not begin with a Transformer"
        raise ConfigError(f"{path}/modules.json {fault}; use a checkpoint of Transformer, Dense, {', '.join(sorted(IGNORED))} modules")
    return modules


def _check_modules(path: Path, modules: Any) -> None:
    """Raise ConfigError unless every module has a number, a type, and a folder inside the checkpoint."""
    try:
        for module in modules:
            if not isinstance(module["type"], str) or not isinstance(module["idx"], int):
                raise ValueError("a module needs an integer idx and a type")
            if module["path"]:
                check_name(module["path"])
    except (TypeError, KeyError, ValueError) as error:
        raise ConfigError(f"{path}/modules.json is not a list of modules in this folder ({error}); copy the checkpoint again") from None


def _kind(module: dict[str, Any]) -> str:
    return module["type"].rpartition(".")[2]


def _pylate(settings: dict[str, Any], tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the conventions of PyLate's settings; settings that PyLate did not write have its defaults."""

    def setting(name: str, default: Any) -> Any:
        value = settings.get(name)
        return default if value is None else value

    words = settings.get("skiplist_words")
    expansion = setting("do_query_expansion", True)
    return {
        "query_marker": setting("query_prefix", "[Q] ") or None,
        "document_marker": setting("document_prefix", "[D] ") or None,
        "query_length": setting("query_length", PYLATE_QUERY_LENGTH),
        "document_length": setting("document_length", PYLATE_DOCUMENT_LENGTH),
        "query_expansion": expansion,
        "attend_to_expansion": expansion and setting("attend_to_expansion_tokens", False),
        "expansion_token": expansion_token(tokenizer) if expansion else None,
        "skip_tokens": punctuation_ids(tokenizer) if words is None else word_ids(tokenizer, words),
        **({"document_form": settings["document_form"]} if "document_form" in settings else {}),
        **_prompts(settings),
    }


def _native(
    settings: dict[str, Any], transformer: dict[str, Any], mask: dict[str, Any], tokenizer: "Tokenizer", length: int
) -> dict[str, Any]:
    """Return the conventions of a MultiVectorEncoder, as sentence-transformers 6 saves it."""
    if mask.get("keep_only_token_ids"):
        raise ConfigError("the checkpoint keeps only chosen tokens (keep_only_token_ids), which is not supported; use another checkpoint")
    skip = word_ids(tokenizer, mask.get("skiplist_words") or ())
    sides = mask.get("skiplist_tasks", ["document"])
    expansion = transformer.get("query_expansion") or {}
    query_length = transformer.get("query_length") or length
    conventions: dict[str, Any] = {
        "query_length": query_length,
        "document_length": transformer.get("document_length") or length,
        "skip_tokens": skip if "document" in sides else (),
        "query_skip_tokens": skip if "query" in sides else (),
        **_prompts(settings),
    }
    if expansion:
        fixed = expansion["strategy"] == "fixed"
        conventions |= {
            "query_length": expansion["length"] if fixed else max(query_length, expansion["length"]),
            "query_expansion": True,
            "expansion_length": None if fixed else expansion["length"],
            "attend_to_expansion": bool(expansion.get("attend", False)),
            "expansion_token": expansion.get("token") or expansion_token(tokenizer),
        }
    return conventions


def _prompts(settings: dict[str, Any]) -> dict[str, str]:
    """Return the texts put before queries and documents, without a marker that a PyLate checkpoint repeats there."""
    prompts = settings.get("prompts") or {}
    default = prompts.get(settings.get("default_prompt_name")) or ""
    query = prompts.get("query") or default
    document = next((prompts[name] for name in ("document", "passage", "corpus") if prompts.get(name)), default)
    return {
        "query_prompt": query.removeprefix(settings.get("query_prefix") or ""),
        "document_prompt": document.removeprefix(settings.get("document_prefix") or ""),
    }
