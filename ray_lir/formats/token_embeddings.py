"""TokenEmbeddings: a ragged batch of token vectors, the one value that the two towers exchange.

T tokens in all, N documents (or queries), D dimensions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.arguments import id_list
from ray_lir.errors import ConfigError


@dataclass(frozen=True)
class TokenEmbeddings:
    """Token vectors of N texts, one after another.

    Attributes:
        values: [T, D] float16.
        offsets: [N + 1] int64; text i owns rows offsets[i] to offsets[i + 1].
        doc_ids: N strings.
        token_ids: [T] int32 vocabulary ids, if known.
        weights: [T] float32, what the scorer multiplies a token's similarities with, at least 0 (ALGORITHMS 7), if it weighs these texts.

    Raises:
        ConfigError: if the shapes do not fit, or a value is NaN or infinite, or a weight negative.
    """

    values: np.ndarray
    offsets: np.ndarray
    doc_ids: Sequence[str]
    token_ids: np.ndarray | None = None
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.doc_ids, (str, bytes)):
            raise ConfigError(f"doc_ids must be a list of strings, not one {type(self.doc_ids).__name__}; put it in a list")
        if self.values.ndim != 2 or self.values.dtype != np.float16:
            raise ConfigError(
                f"token embeddings must be [tokens, dim] float16, not {self.values.shape} {self.values.dtype}; use TokenEmbeddings.of"
            )
        if len(self.offsets) != len(self.doc_ids) + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ConfigError(
                f"offsets must run from 0 to {len(self.values)} in {len(self.doc_ids) + 1} steps, one more than there are doc_ids"
            )
        if np.any(np.diff(self.offsets) < 0):
            raise ConfigError("offsets must not decrease")
        for name in ("token_ids", "weights"):
            array = getattr(self, name)
            if array is not None and array.shape != (len(self.values),):
                raise ConfigError(f"{name} must have one entry for each of the {len(self.values)} tokens, not shape {array.shape}")
        if not np.isfinite(self.values).all():
            raise ConfigError("token embeddings hold NaN or infinite values; look at the encoder's precision and input")
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ConfigError("token weights must be at least 0 and finite; look at the scorer that made them")

    @classmethod
    def of(cls, matrices: Sequence[np.ndarray], doc_ids: Sequence[str] | None = None) -> "TokenEmbeddings":
        """From one [tokens, D] matrix of any float type for each text; texts are numbered if they have no ids."""
        if isinstance(matrices, (str, bytes, Mapping)) or not isinstance(matrices, Iterable):
            raise ConfigError(f"TokenEmbeddings.of needs a list of [tokens, dim] matrices, not {type(matrices).__name__}")
        matrices = [_matrix(number, matrix) for number, matrix in enumerate(matrices)]
        if not matrices:
            raise ConfigError("TokenEmbeddings.of needs at least one matrix")
        for number, matrix in enumerate(matrices):
            if matrix.shape[1] != matrices[0].shape[1]:
                raise ConfigError(f"matrices[{number}] has {matrix.shape[1]} dimensions and matrices[0] {matrices[0].shape[1]}")
        doc_ids = [str(i) for i in range(len(matrices))] if doc_ids is None else id_list("doc_ids", doc_ids)
        if len(doc_ids) != len(matrices):
            raise ConfigError(f"{len(doc_ids)} doc_ids for {len(matrices)} matrices; give one each")
        offsets = np.concatenate([[0], np.cumsum([len(matrix) for matrix in matrices])]).astype(np.int64)
        return cls(np.concatenate([matrix.astype(np.float16) for matrix in matrices]), offsets, doc_ids)

    def __len__(self) -> int:
        return len(self.doc_ids)

    @property
    def num_tokens(self) -> int:
        return len(self.values)

    @property
    def dim(self) -> int:
        return self.values.shape[1]

    @property
    def lengths(self) -> np.ndarray:
        """[N] int64, tokens of each text."""
        return np.diff(self.offsets)

    def __getitem__(self, number: int) -> np.ndarray:
        """The [tokens, D] vectors of one text."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def slice(self, start: int, stop: int) -> "TokenEmbeddings":
        """Texts `start` to `stop`; arrays are views."""
        if (start, stop) == (0, len(self)):
            return self
        first, last = self.offsets[start], self.offsets[stop]
        return TokenEmbeddings(
            self.values[first:last],
            self.offsets[start : stop + 1] - first,
            self.doc_ids[start:stop],
            None if self.token_ids is None else self.token_ids[first:last],
            None if self.weights is None else self.weights[first:last],
        )


def _matrix(number: int, value: Any) -> np.ndarray:
    try:
        matrix = np.asarray(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"matrices[{number}] is no array: {' '.join(str(error).split()):.120}") from None
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        found = f"an array of shape {matrix.shape} and type {matrix.dtype}"
        raise ConfigError(f"matrices[{number}] is {found}; give one [tokens, dim] matrix of numbers for each text")
    return matrix


def check_embeddings(name: str, value: Any) -> TokenEmbeddings:
    """The value, if it is token embeddings.

    Raises:
        ConfigError: if it is something else, such as the text that is to be encoded first.
    """
    if isinstance(value, TokenEmbeddings):
        return value
    encode = "encode_queries" if name in ("query", "queries") else "encode_documents"
    raise ConfigError(f"{name} must be TokenEmbeddings, not {type(value).__name__}; encode texts with encoder.{encode}([text])")


def concatenate(batches: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
    """One batch of several; optional columns are kept where every batch has them."""

    def column(name: str) -> np.ndarray | None:
        arrays = [getattr(batch, name) for batch in batches]
        return None if any(array is None for array in arrays) else np.concatenate(arrays)

    ends = np.cumsum([batch.num_tokens for batch in batches])
    offsets = [batch.offsets[1:] + end - batch.num_tokens for batch, end in zip(batches, ends, strict=True)]
    return TokenEmbeddings(
        np.concatenate([batch.values for batch in batches]),
        np.concatenate([np.zeros(1, np.int64), *offsets]),
        [doc_id for batch in batches for doc_id in batch.doc_ids],
        column("token_ids"),
        column("weights"),
    )
