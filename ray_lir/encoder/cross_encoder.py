"""A cross-encoder scores a query and a document read together; it is the teacher for distillation."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.encoder import checkpoint
from ray_lir.encoder.encoder import BATCH_TOKENS, choose_device, choose_dtype
from ray_lir.encoder.layouts.loading import copy_weights, load_config, load_tokenizer, loading
from ray_lir.encoder.torch_threads import spread
from ray_lir.scorers.batches import group_by_length

logger = logging.getLogger(__name__)
GIVE = "give a sequence classifier with one label, such as cross-encoder/ms-marco-MiniLM-L-6-v2"

ENCODER_FILES = {"modules.json", "artifact.metadata"}
"""Files that only encoders of single texts have: sentence-transformers, PyLate and Stanford ColBERT."""


@dataclass(frozen=True)
class PairBatch:
    """Tuples that are scored together.

    Attributes:
        number: Position of the batch among all batches.
        tuples: For each tuple its (query, document) pairs, as texts.
    """

    number: int
    tuples: list[list[tuple[str, str]]]

    @property
    def num_characters(self) -> int:
        """Characters of the documents."""
        return sum(len(document) for pairs in self.tuples for _, document in pairs)


@dataclass(frozen=True)
class BatchScores:
    """The scores of a batch.

    Attributes:
        number: Number of the batch.
        scores: For each tuple the logits of its pairs.
    """

    number: int
    scores: list[list[float]]


class CrossEncoder:
    """Scores pairs of texts; a pair's score does not depend on other pairs.

    Attributes:
        max_length: Tokens of query and document together; the longer text is truncated first.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int):
        self.max_length = max_length
        self._model = model
        self._tokenizer = tokenizer
        self._warned = False

    @classmethod
    def load(
        cls, name: str, max_length: int = 256, device: str = "auto", precision: str = "auto", trust_remote_code: bool = False
    ) -> "CrossEncoder":
        """Return a cross-encoder: a sequence classifier with one label.

        Args:
            name: Folder, URL or Hugging Face name.
            max_length: Tokens of query and document together.
            device: auto, cpu, cuda or cuda:N.
            precision: auto, float32, float16 or bfloat16.
            trust_remote_code: Run Python code of the checkpoint.

        Raises:
            ConfigError: There is no such checkpoint, it is another kind of model, or it has another number of labels.
        """
        folder = checkpoint.find(name, kind="cross-encoder")
        _check_kind(name, folder)
        config = load_config(folder, trust_remote_code)
        tokenizer = load_tokenizer(folder, trust_remote_code)
        place = choose_device(device)
        with loading(folder):
            model, info = AutoModelForSequenceClassification.from_pretrained(
                folder, config=config, dtype=torch.float32, output_loading_info=True, trust_remote_code=trust_remote_code
            )
            copy_weights(model)
        if model.config.num_labels != 1 or info["missing_keys"]:
            missing = f"lacks weights of a classifier ({min(info['missing_keys'])})" if info["missing_keys"] else ""
            found = missing or f"gives {model.config.num_labels} scores per pair"
            raise ConfigError(f"{name} is not a cross-encoder with one label: it {found}; {GIVE}")
        return cls(model.eval().to(place, choose_dtype(precision, place)), tokenizer, max_length)

    def scores(self, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
        """Return the logit of each (query, document) pair, [P] float32; a higher value means more relevant."""
        queries, documents = ([pair[side] for pair in pairs] for side in (0, 1))
        encoded = self._tokenizer(queries, documents, truncation="longest_first", max_length=self.max_length)
        cut = sum(bool(each.overflowing) for each in encoded.encodings)
        if cut and not self._warned:
            self._warned = True
            logger.warning(
                "%d of %d pairs exceed the cross-encoder's max_length %d and are truncated (later ones without a warning)",
                cut,
                len(pairs),
                self.max_length,
            )
        device = self._model.device

        def scored(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            batch = self._tokenizer.pad({name: [values[row] for row in rows] for name, values in encoded.items()}, return_tensors="pt")
            return rows, self._model(**batch.to(device)).logits[:, 0].float().cpu().numpy()

        batch_tokens = 1 if device.type == "cpu" else BATCH_TOKENS.get(device.type, BATCH_TOKENS["cuda"])  # on a CPU, each pair is a batch
        result = np.empty(len(pairs), np.float32)
        for rows, scores in spread(scored, list(group_by_length([len(ids) for ids in encoded["input_ids"]], batch_tokens)), device):
            result[rows] = scores
        return result

    def score(self, batch: PairBatch) -> BatchScores:
        """Return the scores of a batch. Pairs of similar length, of any tuple, are read together."""
        scores = self.scores([pair for pairs in batch.tuples for pair in pairs]).tolist()
        ends = list(itertools.accumulate(map(len, batch.tuples)))
        return BatchScores(batch.number, [scores[end - len(pairs) : end] for pairs, end in zip(batch.tuples, ends, strict=True)])


def _check_kind(name: str, folder: Path) -> None:
    """Raise ConfigError if a checkpoint is an encoder of single texts, or not a checkpoint."""
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if files & ENCODER_FILES and not is_cross_encoder(folder):
        raise ConfigError(f"{name} is an encoder of single texts (it has {min(files & ENCODER_FILES)}), not a cross-encoder; {GIVE}")
    if "config.json" not in files:
        raise ConfigError(f"{name} is not a cross-encoder: it has no config.json; {GIVE}")


def is_cross_encoder(folder: Path) -> bool:
    """Return whether a checkpoint's config.json names a sequence classifier.

    Recent sentence-transformers writes modules.json for cross-encoders too.
    """
    try:
        architectures = parse_json((folder / "config.json").read_text()).get("architectures") or []
    except (OSError, ValueError, AttributeError):
        return False
    return any(str(name).endswith("ForSequenceClassification") for name in architectures)
