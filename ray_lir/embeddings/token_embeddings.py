"""TokenEmbeddings: a ragged batch of token vectors, the one type that the model layer and the index layer share.

Shapes: T tokens in total, N documents (or queries), D dimensions.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.base.arguments import id_list, text_list
from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr

LARGEST_HALF = float(np.finfo(np.float16).max)
"""Largest float16 value."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenEmbeddings(ShortRepr):
    """Token vectors of N texts in one array.

    Attributes:
        values: [T, D] float16 vectors of any norm. A zero row is padding: queries keep it as a masked token, and an index drops it from
            documents.
        offsets: [N + 1] int64; text i has the rows offsets[i] to offsets[i + 1].
        doc_ids: N strings; integers are converted to decimal text.
        token_ids: [T] int32 vocabulary ids; None: unknown.
        weights: [T] float32 factors, at least 0, for the similarities of each token (docs/algorithms.md#7-one-factored-form); None: the
            scorer does not weight these texts.
        texts: The N texts, which lexical and hybrid search need of queries. `Encoder.encode_queries` sets them. None: unknown.
        attention: [T, 2] float32, of documents under scorer attention: the attention that each token receives, and the number of tokens of
            its text (of its window) that are attended to. Weights for any l follow from both. None for other scorers.

    Raises:
        ConfigError: The shapes do not match, a value is NaN or infinite, or a weight is negative.
    """

    values: np.ndarray
    offsets: np.ndarray
    doc_ids: Sequence[str]
    token_ids: np.ndarray | None = None
    weights: np.ndarray | None = None
    texts: Sequence[str] | None = None
    attention: np.ndarray | None = None

    def __post_init__(self) -> None:
        if isinstance(self.doc_ids, (str, bytes)):
            raise ConfigError(f"doc_ids must be a list of strings, not one {type(self.doc_ids).__name__}; put it in a list")
        if not all(type(doc_id) is str for doc_id in self.doc_ids):
            object.__setattr__(self, "doc_ids", id_list("doc_ids", self.doc_ids))
        if self.values.ndim != 2 or self.values.dtype != np.float16:
            raise ConfigError(
                f"token embeddings must be [tokens, dim] float16, not {self.values.shape} {self.values.dtype}; use TokenEmbeddings.of"
            )
        if len(self.offsets) != len(self.doc_ids) + 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.values):
            raise ConfigError(f"offsets must run from 0 to {len(self.values)} with {len(self.doc_ids) + 1} entries, one more than doc_ids")
        if np.any(np.diff(self.offsets) < 0):
            raise ConfigError("offsets must not decrease; give the cumulative sum of the lengths")
        if self.texts is not None:
            object.__setattr__(self, "texts", text_list("texts", self.texts))
            if len(self.texts) != len(self.doc_ids):
                raise ConfigError(f"{len(self.texts)} texts for {len(self.doc_ids)} token embeddings; give one text for each")
        for name in ("token_ids", "weights"):
            array = getattr(self, name)
            if array is not None and array.shape != (len(self.values),):
                raise ConfigError(f"{name} must have one entry for each of the {len(self.values)} tokens, not shape {array.shape}")
        if self.attention is not None and self.attention.shape != (len(self.values), 2):
            raise ConfigError(
                f"attention must have two numbers for each of the {len(self.values)} tokens, not shape {self.attention.shape}"
            )
        if not _all_finite(self.values):
            row = int(np.flatnonzero(~np.isfinite(self.values).all(axis=1))[0])
            raise ConfigError(
                f"the token embeddings of {self.owner_of(row)!r} hold NaN or infinite values; check the encoder's precision and input"
            )
        if self.weights is not None and not (np.isfinite(self.weights) & (self.weights >= 0)).all():
            raise ConfigError("token weights must be at least 0 and finite; check the scorer that made them")

    @classmethod
    def of(
        cls, matrices: Sequence[np.ndarray], doc_ids: Sequence[str] | None = None, texts: Sequence[str] | None = None
    ) -> "TokenEmbeddings":
        """Return token embeddings made from one matrix per text.

        Args:
            matrices: N matrices [tokens, D] of any float type, with equal D and values in the range of float16. A text without tokens is a
                matrix [0, D].
            doc_ids: N ids; None: the ids are "0", "1", ...
            texts: N texts, for queries that lexical or hybrid search gets; None: unknown.

        Raises:
            ConfigError: A matrix has a wrong shape or type, or a value that is not finite in float16. The message names the text.
        """
        if isinstance(matrices, (str, bytes, Mapping)) or not isinstance(matrices, Iterable):
            raise ConfigError(f"TokenEmbeddings.of needs a list of [tokens, dim] matrices, not {type(matrices).__name__}")
        if isinstance(matrices, np.ndarray) and matrices.ndim == 2:
            raise ConfigError("TokenEmbeddings.of needs a list of matrices, one for each text, not one matrix; use [matrix] for one text")
        matrices = list(matrices)
        if not matrices:
            raise ConfigError("TokenEmbeddings.of needs at least one matrix")
        doc_ids = [str(i) for i in range(len(matrices))] if doc_ids is None else id_list("doc_ids", doc_ids)
        if len(doc_ids) != len(matrices):
            raise ConfigError(f"{len(doc_ids)} doc_ids for {len(matrices)} matrices; give one id for each matrix")
        rows = [_half_precision(matrix, doc_id) for matrix, doc_id in zip(matrices, doc_ids, strict=True)]
        for matrix, doc_id in zip(rows, doc_ids, strict=True):
            if matrix.shape[1] != rows[0].shape[1]:
                raise ConfigError(
                    f"the token embeddings of {doc_id!r} have {matrix.shape[1]} dimensions and those of {doc_ids[0]!r} {rows[0].shape[1]}; "
                    "all need the same number"
                )
        offsets = np.concatenate([[0], np.cumsum([len(matrix) for matrix in rows])]).astype(np.int64)
        return cls(np.concatenate(rows), offsets, doc_ids, texts=texts)

    def owner_of(self, row: int) -> str:
        """Return the id of the text that a row of `values` belongs to."""
        return self.doc_ids[int(np.searchsorted(self.offsets, row, side="right")) - 1]

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
        """[N] int64, the number of tokens of each text."""
        return np.diff(self.offsets)

    def __getitem__(self, number: int) -> np.ndarray:
        """Return the [tokens, D] vectors of one text."""
        return self.values[self.offsets[number] : self.offsets[number + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[number] for number in range(len(self)))

    def slice(self, start: int, stop: int) -> "TokenEmbeddings":
        """Return the texts `start` to `stop` - 1; the arrays are views."""
        if (start, stop) == (0, len(self)):
            return self
        first, last = self.offsets[start], self.offsets[stop]
        return TokenEmbeddings(
            self.values[first:last],
            self.offsets[start : stop + 1] - first,
            self.doc_ids[start:stop],
            None if self.token_ids is None else self.token_ids[first:last],
            None if self.weights is None else self.weights[first:last],
            None if self.texts is None else self.texts[start:stop],
            None if self.attention is None else self.attention[first:last],
        )

    def joined(self, counts: Sequence[int], doc_ids: Sequence[str]) -> "TokenEmbeddings":
        """Return consecutive texts joined into one; the arrays are shared.

        Args:
            counts: For each new text, how many texts of this batch it consists of.
            doc_ids: Ids of the new texts.
        """
        ends = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]).astype(np.int64)
        return TokenEmbeddings(self.values, self.offsets[ends], doc_ids, self.token_ids, self.weights, attention=self.attention)


def _all_finite(halves: np.ndarray) -> bool:
    """Return whether no float16 value is NaN or infinite. Bits are compared as integers, because numpy.isfinite is slow for float16."""
    return bool(halves.view(np.int16).max(initial=0) < 0x7C00 and halves.view(np.uint16).max(initial=0) < 0xFC00)


def _half_precision(matrix: np.ndarray, doc_id: str) -> np.ndarray:
    """Return [tokens, D] float16. Raise ConfigError, which names the text, if float16 cannot hold the matrix."""
    label = f"the token embeddings of {doc_id!r}"
    try:
        array = np.asarray(matrix)
    except (TypeError, ValueError, RuntimeError) as error:  # ragged lists, or tensors that NumPy cannot read
        raise ConfigError(
            f"{label} are not a matrix of floats ({' '.join(str(error).split()):.120}); convert them to float32 on the CPU"
        ) from None
    if array.ndim != 2 or array.shape[1] == 0:
        raise ConfigError(f"{label} must be a matrix [tokens, dim], not of shape {array.shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise ConfigError(f"{label} must be floats, not {array.dtype}; convert them to float32")
    with np.errstate(over="ignore", under="ignore"):
        halves = array.astype(np.float16)
    if np.isinf(halves).any() and np.isfinite(array).all():
        raise ConfigError(
            f"{label} hold values up to {np.abs(array).max():g}, but the largest float16 is {LARGEST_HALF:g}; scale all embeddings down"
        )
    if not np.isfinite(halves).all():
        raise ConfigError(f"{label} hold NaN or infinite values; check the encoder's precision and input")
    return halves


def check_embeddings(name: str, value: Any) -> TokenEmbeddings:
    """Return the value if it is a TokenEmbeddings.

    Args:
        name: Name of the argument, for the message.
        value: The argument.

    Raises:
        ConfigError: The value has another type, such as a text that is not encoded yet.
    """
    if isinstance(value, TokenEmbeddings):
        return value
    encode = "encode_queries" if name in ("query", "queries") else "encode_documents"
    raise ConfigError(f"{name} must be TokenEmbeddings, not {type(value).__name__}; encode texts with encoder.{encode}([text])")


def concatenate(batches: Sequence[TokenEmbeddings]) -> TokenEmbeddings:
    """Return one batch made of several; optional columns are kept if every batch has them."""

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
        None if any(batch.texts is None for batch in batches) else [text for batch in batches for text in batch.texts or ()],
        column("attention"),
    )
