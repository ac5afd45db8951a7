"""The checkpoint layouts of ALGORITHMS 1.4: each module has `matches(folder)` and `load(folder) -> Parts`; the first that matches loads."""

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from ray_lir.models.layouts import parts, plain, sentence_transformers, stanford
from ray_lir.models.layouts.parts import Parts

LAYOUTS = {"sentence_transformers": sentence_transformers, "stanford": stanford, "plain": plain}


def load(path: Path) -> Parts:
    """The network, tokenizer and conventions of a checkpoint folder (or legacy .dnn file).

    Raises:
        ConfigError: if it is in none of the layouts, or incomplete.
    """
    layout = next(layout for layout in LAYOUTS.values() if layout.matches(path))
    return layout.load(path)


def load_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of such a checkpoint alone."""
    return parts.load_tokenizer(sentence_transformers.transformer_folder(path))
