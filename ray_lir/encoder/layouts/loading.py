"""Functions that the layouts share: load a transformer, its projections and its tokenizer, and check them."""

import string
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import nn

from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.base.forking import fork_safe
from ray_lir.encoder.bert import Bert, load_bert
from ray_lir.encoder.network import Dense, Network
from ray_lir.encoder.tokenizer_file import TokenizerFile

if TYPE_CHECKING:
    from types import SimpleNamespace

    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

    Backbone = PreTrainedModel | Bert
    Tokenizer = PreTrainedTokenizerBase | TokenizerFile
    ModelConfig = PretrainedConfig | SimpleNamespace

ENCODER_ONLY = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
"""Classes of encoder-decoder models that load only the encoder, by model type."""
PARAMETERS_PER_BYTE = 64
"""Parameters that a configuration may describe per byte of weights; more than one is possible because layers may share weights."""
POSITIONS_START_AT_2 = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")
"""Model types with two unused position embeddings."""


@dataclass(frozen=True)
class Parts:
    """A loaded checkpoint, independent of its layout.

    Attributes:
        network: The network, in float32.
        tokenizer: The checkpoint's tokenizer.
        conventions: The fields of EncoderContract that the checkpoint decides.
    """

    network: Network
    tokenizer: "Tokenizer"
    conventions: dict[str, Any]


def read_json(path: Path) -> Any:
    """Return the value of a JSON file; {} if the file does not exist.

    Raises:
        ConfigError: The file is not valid JSON.
    """
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); copy the checkpoint again") from None


def read_json_object(path: Path) -> dict[str, Any]:
    """Return the object of a JSON file; {} if the file does not exist.

    Raises:
        ConfigError: The file does not hold a JSON object.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__} instead of an object; copy the checkpoint again")
    return value


def load_transformer(folder: Path, trust_remote_code: bool = False, light: bool = False) -> "tuple[Backbone, Tokenizer]":
    """Return the transformer in a folder, in float32, and its tokenizer.

    Args:
        folder: Folder with config.json.
        trust_remote_code: Run Python code of the checkpoint.
        light: Load a plain BERT and its tokenizer without transformers, for inference on a CPU.

    Raises:
        ConfigError: Files or weights are missing or damaged.
    """
    if light:
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # transformers reports what is wrong
            if (tokenizer := TokenizerFile.load(folder)) and (model := load_bert(folder)):
                return model, tokenizer
    return load_backbone(folder, trust_remote_code=trust_remote_code), load_tokenizer(folder, trust_remote_code)


def load_config(folder: Path, trust_remote_code: bool = False) -> "PretrainedConfig":
    """Return the configuration of a transformer.

    Raises:
        ConfigError: It cannot be read, needs code of the checkpoint that is not trusted, or describes a model of impossible size.
    """
    from transformers import AutoConfig

    own_code = not trust_remote_code and read_json_object(folder / "config.json").get("auto_map")
    try:
        with loading(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ConfigError as error:
        raise (_untrusted(folder, own_code) if own_code else error) from None
    if not trust_remote_code and "/" in str(config._attn_implementation):  # attention kernels from a repository on the hub
        raise _untrusted(folder, config._attn_implementation)
    _check_sizes(folder, config)
    return config


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in a folder."""
    from transformers import AutoTokenizer

    with loading(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_backbone(folder: Path, state: dict[str, torch.Tensor] | None = None, trust_remote_code: bool = False) -> "PreTrainedModel":
    """Return the transformer in a folder, without a decoder, in float32.

    Args:
        folder: Folder with config.json.
        state: The weights by name; None: read them from the folder.
        trust_remote_code: Run Python code of the checkpoint.

    Raises:
        ConfigError: Files or weights are missing.
    """
    import transformers

    config = load_config(folder, trust_remote_code)
    model_class = getattr(transformers, ENCODER_ONLY.get(config.model_type, "AutoModel"))
    trusted = {"trust_remote_code": trust_remote_code} if model_class is transformers.AutoModel else {}
    with loading(folder):
        if state is None:
            model, info = model_class.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True, **trusted)
            missing = info["missing_keys"]
            copy_weights(model)
        else:
            model = model_class.from_config(config, **trusted).float().eval()
            bare = {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in state.items()}
            missing = model.load_state_dict(bare, strict=False).missing_keys
    tied = model._tied_weights_keys or {}  # other names of the same weights, which would also be reported as missing
    missing = sorted(name for name in missing if "pooler" not in name and name not in tied)
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} weights of its model ({missing[0]}, ...); copy the checkpoint again")
    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # kept for other libraries; its output is not used here
    return model


def copy_weights(model: nn.Module) -> None:
    """Replace a model's weights, which transformers maps from their file, by copies. A file that is overwritten in place would otherwise
    change the vectors, and a file that is cut would end the process."""
    for weight in (*model.parameters(), *model.buffers()):
        weight.data = weight.data.clone()


def _untrusted(folder: Path, code: object) -> ConfigError:
    return ConfigError(
        f"the checkpoint {folder} contains Python code ({code!s:.80}), which is not run; use another checkpoint, or, if you have "
        "read that code and trust it, set trust_remote_code (--encoder.trust_remote_code true)"
    )


def _check_sizes(folder: Path, config: "PretrainedConfig") -> None:
    """Raise ConfigError if a model of this configuration cannot have the weights beside it: creating it would exhaust the memory."""
    hidden, layers, words, inner = (
        getattr(config, name, None) or 0 for name in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    sizes = (hidden, layers, words, inner)
    files = [path for pattern in ("*.safetensors", "*.bin", "*.dnn") for path in folder.glob(pattern)]
    num_bytes = sum(path.stat().st_size for path in files if path.is_file())
    whole = all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= 1 << 32 for size in sizes)
    if not whole or (files and hidden * (words + layers * (4 * hidden + 2 * inner)) > PARAMETERS_PER_BYTE * num_bytes + (1 << 26)):
        raise ConfigError(
            f"{folder}/config.json describes {layers!s:.20} layers of {hidden!s:.20} dimensions and {words!s:.20} words, but the weight "
            "files are too small for that; copy the checkpoint again"
        )
    heads = getattr(config, "num_attention_heads", None)
    if isinstance(heads, int) and heads < 1:
        raise ConfigError(f"{folder}/config.json describes {heads} attention heads; copy the checkpoint again")


def load_dense(folder: Path, default_activation: str) -> Dense:
    """Return a Dense module from config.json and model.safetensors or pytorch_model.bin."""
    config = read_json_object(folder / "config.json")
    state = load_weights(folder)
    weight = state.get("linear.weight")
    if weight is None or weight.ndim != 2:
        raise ConfigError(f"{folder} has no linear.weight that is a matrix; copy the checkpoint again")
    dense = Dense(
        weight.shape[1],
        weight.shape[0],
        bias="linear.bias" in state,
        activation=_activation(config.get("activation_function", default_activation), folder),
        use_residual=bool(config.get("use_residual", False)),
    )
    with loading(folder):
        dense.load_state_dict(state)
    return dense.float()


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of model.safetensors or pytorch_model.bin, by name."""
    with loading(folder):
        if (folder / "model.safetensors").exists():
            return load_file(folder / "model.safetensors")
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)


def default_length(tokenizer: "Tokenizer", config: "ModelConfig", max_seq_length: int | None = None) -> int:
    """Return the maximum number of tokens if a checkpoint names no length for queries or documents.

    Args:
        tokenizer: The tokenizer, with its own limit.
        config: The transformer's configuration, with its number of positions.
        max_seq_length: The limit in sentence-transformers' settings; None: no such limit.

    Raises:
        ConfigError: A limit is not a number.
    """
    limits = [max_seq_length, tokenizer.model_max_length, longest_input(config)]
    for name, limit in zip(("max_seq_length", "model_max_length"), limits, strict=False):
        if limit is not None and (type(limit) not in (int, float) or (limit != int(limit))):
            raise ConfigError(f"the checkpoint has {name} {limit!r}, which is not a whole number; correct its settings")
    limits = [None if limit is None else int(limit) for limit in limits]
    return min([limit for limit in limits if limit and 0 < limit < 10**6], default=512)


def longest_input(config: "ModelConfig") -> int | None:
    """Return the number of positions of a model; None: no limit."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    return positions - 2 if config.model_type in POSITIONS_START_AT_2 else positions


def word_ids(tokenizer: "Tokenizer", words: Iterable[str]) -> tuple[int, ...]:
    """Return the vocabulary ids of words that are tokens. Other words are skipped, because they would map to the unknown token."""
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted({vocabulary[word] for word in words if word in vocabulary}))


def punctuation_ids(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Return the vocabulary ids of ASCII punctuation."""
    return word_ids(tokenizer, string.punctuation)


def expansion_token(tokenizer: "Tokenizer") -> str | None:
    """Return the token that pads queries: mask token, else end of sequence, else padding token (docs/algorithms.md#11-token-sequence)."""
    return tokenizer.mask_token or tokenizer.eos_token or tokenizer.pad_token


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Suppress output in the body, and convert any exception to a ConfigError of one line."""
    with in_one_line(folder), quiet():
        yield


@contextmanager
def in_one_line(folder: Path) -> Iterator[None]:
    """Convert any exception in the body to a ConfigError of one line."""
    try:
        yield
    except RayLirError:
        raise
    except Exception as error:  # damaged files can raise almost any exception
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot load the checkpoint {folder} ({type(error).__name__}: {reason}); copy it again") from None


def _activation(path: object, folder: Path) -> nn.Module:
    path = str(path)
    kind = getattr(nn, path.rpartition(".")[2], None)
    if not path.startswith("torch.nn.") or not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ConfigError(f"{folder} has the activation {path}; only activations of torch.nn are supported: use another checkpoint")
    try:
        return kind()
    except TypeError:
        raise ConfigError(f"{folder} has the activation {path}, which needs arguments; use another checkpoint") from None


_one_at_a_time = fork_safe(threading.RLock())


@contextmanager
def quiet() -> Iterator[None]:
    """Hide transformers' progress bars and load reports, and let only one thread at a time use its loaders.

    transformers replaces functions of torch and of its own while it loads a model. Two threads at once would restore them in the wrong
    order; loads would then fail, later ones too.
    """
    with _one_at_a_time:
        if "transformers" not in sys.modules:
            yield
            return
        from transformers.utils import logging

        verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bars:
                logging.enable_progress_bar()
