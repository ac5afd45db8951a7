"""PairEncoder: TRIAL's relation encoder as search evaluates it, in factored form and turned as the codec's vectors (ALGORITHMS 5.4).

What a document token adds to the hidden layer of a pair depends on the token alone, and what is done with the hidden layer on the query
alone: relation_weight * R_i . Rel(p, j) = products_i . Mish(norm(before p + after j)) + constants_i.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ray_lir.formats.relation import EPSILON, Relation

STEEPEST = 1.0894
"""No two values of Mish are further apart than this times their arguments."""
DIP = 0.0078
"""Mish(y) - y / 2 is nowhere below minus this."""
WORD_BITS = 14
SLACK = 1e-5
"""For the rounding of kernels: bounds are this share of themselves wider than they need to be, and this much."""


@dataclass(frozen=True)
class PairTerms:
    """What a relation needs of a query of n tokens, the weight of relations in it.

    Attributes:
        products: [n, D] float32; zero for the first token, which has no predecessor.
        constants: [n] float32.
        upper: [n] float32, which the relation with no pair of document tokens is above.
    """

    products: np.ndarray
    constants: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True)
class PairEncoder:
    """Of vectors that the codec has turned.

    Attributes:
        before, after: [D, D] float32, what the first and the second of a pair are multiplied with; their outputs are centred.
        bias: [D] float32, added to the second; centred.
        scale, shift: [D] float32, the norm's.
        outer_weight: [D, D], outer_bias: [D].
        weight: of a relation beside a cosine.
        by_cosine: a relation starts from the token of the best cosine, not from the winner.
    """

    before: np.ndarray
    after: np.ndarray
    bias: np.ndarray
    scale: np.ndarray
    shift: np.ndarray
    outer_weight: np.ndarray
    outer_bias: np.ndarray
    weight: float
    by_cosine: bool

    @classmethod
    def of(cls, relation: Relation, rotation_DD: np.ndarray | None) -> "PairEncoder":
        """Args:
        rotation_DD: the codec's; None if it turns nothing.
        """
        inner = relation.inner_weight.astype(np.float64)
        inner -= inner.mean(axis=0)
        halves = np.split(inner, 2, axis=1)
        before, after = halves if rotation_DD is None else (half @ rotation_DD.astype(np.float64) for half in halves)
        bias = relation.inner_bias - relation.inner_bias.mean(dtype=np.float64)
        arrays = (before, after, bias, relation.norm_weight, relation.norm_bias, relation.outer_weight, relation.outer_bias)
        rows = (np.ascontiguousarray(array, np.float32) for array in arrays)
        return cls(*rows, weight=relation.weight, by_cosine=relation.alignment == "cosine")

    @cached_property
    def before_words(self) -> tuple[np.ndarray, np.ndarray]:
        """`before` as `words` has it, for integer arithmetic."""
        return words(self.before)

    @cached_property
    def after_words(self) -> tuple[np.ndarray, np.ndarray]:
        return words(self.after)

    def terms(self, query_nD: np.ndarray) -> PairTerms:
        """Of a query without masked tokens, whose every token relates to the one before it."""
        dim = query_nD.shape[1]
        query = query_nD.astype(np.float64)
        relations = self.hidden(query[:-1] @ self.before.T.astype(np.float64), query[1:] @ self.after.T.astype(np.float64) + self.bias)
        relations = self.weight * (relations @ self.outer_weight.T.astype(np.float64) + self.outer_bias)
        relations = np.concatenate([np.zeros((min(1, len(query)), dim)), relations])
        products, constants = relations @ self.outer_weight.astype(np.float64), relations @ self.outer_bias.astype(np.float64)
        upper = np.minimum(self._steepest(products), self._rectified(products)) + constants
        upper += SLACK * (1 + np.sqrt(dim) * np.linalg.norm(products * self.scale, axis=1) + np.abs(products) @ np.abs(self.shift))
        return PairTerms(*(np.float32(array) for array in (products, constants, upper)))

    def _steepest(self, products_nD: np.ndarray) -> np.ndarray:
        """[n], which products . hidden layer is not above: the norm's output z has length sqrt(D) at most, so the hidden layer is at
        most so far from that of z = 0."""
        reach = STEEPEST * np.sqrt(products_nD.shape[1]) * np.linalg.norm(products_nD * self.scale, axis=1)
        return products_nD @ mish(self.shift.astype(np.float64)) + reach

    def _rectified(self, products_nD: np.ndarray) -> np.ndarray:
        """The same: Mish(y) is y / 2 plus what lies between -DIP and |y| / 2, for y = scale z + shift. So it is at most a constant plus
        the sum over k of a_k z_k + b_k |z_k|. The z_k add up to 0, so any number may be taken from all a_k."""
        gains = np.maximum(products_nD, 0) / 2
        slopes, steeper = products_nD * self.scale / 2, gains * np.abs(self.scale)
        slopes = slopes - (slopes + np.sign(slopes) * steeper).mean(axis=1, keepdims=True)
        reach = np.sqrt(products_nD.shape[1]) * np.linalg.norm(np.abs(slopes) + steeper, axis=1)
        return products_nD @ self.shift / 2 + gains @ np.abs(self.shift) + DIP * np.maximum(-products_nD, 0).sum(axis=1) + reach

    def hidden(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """[..., D] float64: Mish(norm(.)) of pairs given by their halves, both centred, so that the norm has only to divide."""
        both = before + after
        both = both / np.sqrt(np.square(both).mean(axis=-1, keepdims=True) + EPSILON)
        return mish(both * self.scale + self.shift)


def words(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows [R, D] in units in which each has length 2^14, [R, D rounded up to even] int16; what a product with a word row is worth [R]."""
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1)
    scaled = np.round(rows * (2.0**WORD_BITS / np.maximum(lengths, 1e-30))[:, None]).astype(np.int16)
    return np.pad(scaled, ((0, 0), (0, rows.shape[1] % 2))), (lengths / 4.0**WORD_BITS).astype(np.float32)


def mish(values: np.ndarray) -> np.ndarray:
    """x tanh(ln(1 + e^x)), with one exponential."""
    exponentials = np.exp(np.minimum(values, 20))
    squares = exponentials * (exponentials + 2)
    return values * squares / (squares + 2)
