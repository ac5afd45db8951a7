"""The checkpoint layouts of docs/algorithms.md#14-checkpoint-layouts.

Each module has `matches(folder)` and `load(folder) -> Parts`; the first module that matches loads the checkpoint.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from ray_lir.encoder.layouts import loading, plain, sentence_transformers, stanford
from ray_lir.encoder.layouts.loading import Parts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LAYOUTS = {"sentence_transformers": sentence_transformers, "stanford": stanford, "plain": plain}


def load(path: Path, trust_remote_code: bool = False, light: bool = False) -> Parts:
    """Return the network, tokenizer and conventions of a checkpoint folder (or legacy .dnn file).

    Args:
        path: The folder or file.
        trust_remote_code: Run Python code of the checkpoint; otherwise a checkpoint that needs its own code is refused.
        light: Load a plain BERT and its tokenizer without transformers, for inference on a CPU.

    Raises:
        ConfigError: The checkpoint has none of the layouts, or is incomplete.
    """
    with loading.in_one_line(path):  # settings may have any type
        layout = next(layout for layout in LAYOUTS.values() if layout.matches(path))
        return layout.load(path, trust_remote_code, light)


def load_tokenizer(path: Path, trust_remote_code: bool = False) -> "PreTrainedTokenizerBase":
    """Return only the tokenizer of such a checkpoint."""
    return loading.load_tokenizer(sentence_transformers.transformer_folder(path), trust_remote_code)
