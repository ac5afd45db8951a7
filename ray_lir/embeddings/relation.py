"""Relation: a scorer's relation encoder as NumPy arrays, so that search needs no torch (docs/algorithms.md#51-score).

Rel(previous, current) = outer(Mish(norm(inner [previous ; current]))), for unit vectors of D dimensions.
"""

from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.base.short_repr import ShortRepr

Alignment = Literal["combined", "cosine"]
EPSILON = 1e-5
"""Epsilon of the layer norm."""


@dataclass(frozen=True, eq=False, repr=False)
class Relation(ShortRepr):
    """The weights of a relation encoder that search needs. The gate is not included: queries arrive at search with its weights applied.

    Attributes:
        inner_weight: [D, 2 D] float32, for the concatenation [previous ; current].
        inner_bias, norm_weight, norm_bias, outer_bias: [D] float32.
        outer_weight: [D, D] float32.
        weight: Factor of a relation relative to a similarity (lambda); 0 disables relations.
        alignment: How the document token that a relation starts from was chosen: by similarity plus relation ("combined"), or by similarity
            alone ("cosine").
        from_first_token: Whether the relation of the second query token starts from the document's first token, not from the match of the
            first query token.
    """

    inner_weight: np.ndarray
    inner_bias: np.ndarray
    norm_weight: np.ndarray
    norm_bias: np.ndarray
    outer_weight: np.ndarray
    outer_bias: np.ndarray
    weight: float
    alignment: Alignment
    from_first_token: bool = False

    @property
    def dim(self) -> int:
        return len(self.outer_bias)

    def to_bytes(self) -> bytes:
        """Return the content of a safetensors file for `load_relation`."""
        arrays = {field.name: np.ascontiguousarray(getattr(self, field.name), np.float32) for field in fields(self)[:6]}
        arrays |= {"weight": np.array([self.weight]), "by_cosine": np.array([self.alignment == "cosine"])}
        if self.from_first_token:  # older files have no such array
            arrays["from_first_token"] = np.array([True])
        return save(arrays)


def load_relation(url: str, dim: int) -> Relation:
    """Read a file that `Relation.to_bytes` made.

    Args:
        url: Path or URL of the file.
        dim: Expected number of dimensions.

    Raises:
        FormatError: The file has other content, other shapes or values that are not finite.
    """
    fix = "restore the file, or encode the corpus and build the index again"
    try:
        arrays = load(storage.read_bytes(url))
        alignment: Alignment = "cosine" if arrays["by_cosine"][0] else "combined"
        weights = {field.name: arrays[field.name] for field in fields(Relation)[:6]}
        from_first_token = "from_first_token" in arrays and bool(arrays["from_first_token"][0])
        relation = Relation(**weights, weight=float(arrays["weight"][0]), alignment=alignment, from_first_token=from_first_token)
    except (SafetensorError, KeyError, ValueError, TypeError, IndexError, FileNotFoundError) as error:
        raise FormatError(url, "the relation encoder of a checkpoint", f"{error!r:.120}", fix) from None
    if relation.dim != dim:
        raise FormatError(url, f"a relation encoder of {dim} dimensions", f"one of {relation.dim}", fix)
    shapes = ((dim, 2 * dim), (dim,), (dim,), (dim,), (dim, dim), (dim,))
    for field, shape in zip(fields(Relation)[:6], shapes, strict=True):
        array = getattr(relation, field.name)
        if array.shape != shape or array.dtype != np.float32:
            found = f"{field.name} of {array.dtype} {list(array.shape)}"
            raise FormatError(url, f"a relation encoder of {dim} dimensions", found, fix)
        if not np.isfinite(array).all():
            raise FormatError(url, "finite weights", f"{field.name} with NaN or infinite values", fix)
    if not 0 <= relation.weight < np.inf:
        raise FormatError(url, "a finite weight of at least 0", f"{relation.weight}", fix)
    return relation
