"""The checkpoint layouts of
docs/algorithms.md#14-checkpoint-layouts: each module has `matches(folder)` and `load(folder) -> Parts`; the first that matches loads."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ray_lir.encoder.layouts import loading, plain, sentence_transformers, stanford
from ray_lir.encoder.layouts.loading import Parts

LAYOUTS = {"sentence_transformers": sentence_transformers, "stanford": stanford, "plain": plain}


def load(path: Path, trust_remote_code: bool = False) -> Parts:
    """The network, tokenizer and conventions of a checkpoint folder (or legacy .dnn file).

    Args:
        trust_remote_code: Run Python code that the checkpoint brings; otherwise a checkpoint that cannot do without is refused.

    Raises:
        ConfigError: if it is in none of the layouts, or incomplete.
    """
    layout = next(layout for layout in LAYOUTS.values() if layout.matches(path))
    return layout.load(path, trust_remote_code)


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of such a checkpoint alone."""
    return loading.load_tokenizer(sentence_transformers.transformer_folder(path), trust_remote_code)
