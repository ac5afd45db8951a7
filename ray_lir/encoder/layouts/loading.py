"""What a checkpoint consists of, and the readers that the layouts share."""

import string
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.forking import fork_safe
from ray_lir.encoder.network import Dense, Network

ENCODER_ONLY = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
PARAMETERS_PER_BYTE = 64
"""Parameters that a configuration may describe for each byte of weights: layers may share theirs."""
POSITIONS_START_AT_2 = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")


@dataclass(frozen=True)
class Parts:
    """A checkpoint in memory, whatever its layout.

    Attributes:
        network: in float32.
        tokenizer: the checkpoint's own.
        conventions: the fields of EncoderContract that the checkpoint decides.
    """

    network: Network
    tokenizer: PreTrainedTokenizerBase
    conventions: dict[str, Any]


def read_json(path: Path) -> Any:
    """A JSON file; {} if there is none."""
    try:
        return parse_json(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); copy the checkpoint again") from None


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object; {} if there is none."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__} instead of an object; copy the checkpoint again")
    return value


def load_config(folder: Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a transformer.

    Raises:
        ConfigError: if it cannot be read, needs code of the checkpoint's own that is not trusted, or describes no model of a possible size.
    """
    own_code = not trust_remote_code and read_object(folder / "config.json").get("auto_map")
    try:
        with loading(folder):
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except ConfigError as error:
        raise (_untrusted(folder, own_code) if own_code else error) from None
    if not trust_remote_code and "/" in str(config._attn_implementation):  # attention kernels of a repository on the hub
        raise _untrusted(folder, config._attn_implementation)
    _check_sizes(folder, config)
    return config


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    with loading(folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def load_backbone(folder: Path, state: dict[str, torch.Tensor] | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The transformer in a folder (with the weights `state`, if given), without a decoder, in float32.

    Raises:
        ConfigError: if files or weights are missing.
    """
    config = load_config(folder, trust_remote_code)
    model_class = getattr(transformers, ENCODER_ONLY.get(config.model_type, "AutoModel"))
    trusted = {"trust_remote_code": trust_remote_code} if model_class is transformers.AutoModel else {}
    with loading(folder):
        if state is None:
            model, info = model_class.from_pretrained(folder, config=config, dtype=torch.float32, output_loading_info=True, **trusted)
            missing = info["missing_keys"]
        else:
            model = model_class.from_config(config, **trusted).float().eval()
            bare = {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in state.items()}
            missing = model.load_state_dict(bare, strict=False).missing_keys
    tied = model._tied_weights_keys or {}  # the weights of another name, which would be missing too
    missing = sorted(name for name in missing if "pooler" not in name and name not in tied)
    if missing:
        raise ConfigError(f"{folder} lacks {len(missing)} weights of its model ({missing[0]}, ...); copy the checkpoint again")
    if getattr(model, "pooler", None) is not None:
        model.pooler.requires_grad_(False)  # kept for who loads the checkpoint elsewhere, but nothing here looks at its output
    return model


def _untrusted(folder: Path, what: Any) -> ConfigError:
    return ConfigError(
        f"the checkpoint {folder} brings Python code of its own ({what!s:.80}), which is not run; use another checkpoint, or, if you have "
        "read that code and trust it, set trust_remote_code (--encoder.trust_remote_code true)"
    )


def _check_sizes(folder: Path, config: PretrainedConfig) -> None:
    """Raises ConfigError if a model of this configuration could never have the weights beside it: building one would fill the memory."""
    hidden, layers, words, inner = (
        getattr(config, name, None) or 0 for name in ("hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    sizes = (hidden, layers, words, inner)
    files = [path for pattern in ("*.safetensors", "*.bin", "*.dnn") for path in folder.glob(pattern)]
    num_bytes = sum(path.stat().st_size for path in files)
    whole = all(isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= 1 << 32 for size in sizes)
    if not whole or (files and hidden * (words + layers * (4 * hidden + 2 * inner)) > PARAMETERS_PER_BYTE * num_bytes + (1 << 26)):
        raise ConfigError(
            f"{folder}/config.json describes {layers!s:.20} layers of {hidden!s:.20} dimensions and {words!s:.20} words, which the weights "
            "beside it do not hold; copy the checkpoint again"
        )


def load_dense(folder: Path, default_activation: str) -> Dense:
    """A Dense module: config.json beside model.safetensors or pytorch_model.bin."""
    config = read_object(folder / "config.json")
    state = load_weights(folder)
    weight = state.get("linear.weight")
    if weight is None:
        raise ConfigError(f"{folder} has no linear.weight; copy the checkpoint again")
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
    """The tensors of model.safetensors or pytorch_model.bin, by name."""
    with loading(folder):
        if (folder / "model.safetensors").exists():
            return load_file(folder / "model.safetensors")
        return torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)


def default_length(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, max_seq_length: int | None = None) -> int:
    """Tokens that a model takes when its checkpoint names no length for queries or documents."""
    limits = [max_seq_length, tokenizer.model_max_length, longest_input(config)]
    return min([limit for limit in limits if limit and limit < 10**6], default=512)


def longest_input(config: PretrainedConfig) -> int | None:
    """Tokens that a model has positions for; None: any number."""
    positions = getattr(config, "max_position_embeddings", None)
    if not positions or positions < 0:
        return None
    return positions - 2 if config.model_type in POSITIONS_START_AT_2 else positions


def word_ids(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> tuple[int, ...]:
    """Vocabulary ids of the words that are tokens; others are left out, because they would stand for every unknown token."""
    vocabulary = tokenizer.get_vocab()
    return tuple(sorted({vocabulary[word] for word in words if word in vocabulary}))


def punctuation_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    return word_ids(tokenizer, string.punctuation)


def expansion_token(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What pads queries: the mask token, else the end of sequence, else the padding token (docs/algorithms.md#11-token-sequence)."""
    return tokenizer.mask_token or tokenizer.eos_token or tokenizer.pad_token


@contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Quiet, and what is raised becomes one line."""
    try:
        with quiet():
            yield
    except Exception as error:  # corrupt files surface as almost any exception
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot load the checkpoint {folder} ({type(error).__name__}: {reason}); copy it again") from None


def _activation(path: str, folder: Path) -> nn.Module:
    kind = getattr(nn, path.rpartition(".")[2], None)
    if not path.startswith("torch.nn.") or not isinstance(kind, type) or not issubclass(kind, nn.Module):
        raise ConfigError(f"{folder} has the activation {path}; only those of torch.nn are loaded")
    return kind()


_one_at_a_time = fork_safe(threading.RLock())


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps transformers' progress bars and load reports off the terminal, and lets one thread at a time use its loaders.

    transformers replaces functions of torch and of its own while it loads a model. Two threads at once restore them in the wrong order:
    loads fail then, and later ones too.
    """
    with _one_at_a_time:
        verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        try:
            yield
        finally:
            transformers_logging.set_verbosity(verbosity)
            if bars:
                transformers_logging.enable_progress_bar()
