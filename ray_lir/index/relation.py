"""PairEncoder: TRIAL's relation encoder as search evaluates it, in factored form and turned as the codec's vectors.

Source: docs/algorithms.md#54-exact-evaluation-in-fewer-steps.

What a document token adds to the hidden layer of a pair depends on the token alone, and what is done with the hidden layer on the query
alone: relation_weight * R_i . Rel(p, j) = products_i . Mish(norm(before p + after j)) + constants_i.
"""

from dataclasses import dataclass

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.parallel import one_blas_thread
from ray_lir.embeddings.relation import EPSILON, Relation

LOWEST = 0.3089
"""Mish is nowhere below minus this."""
CURVED = 0.65
"""The second derivative of Mish is no larger in size."""
LINE = 0.008
"""No line that a kernel has instead of Mish is further from it."""
WORD = 2.0**-12
"""Rounding to 16-bit words moves the hidden layer by less, in units of the largest it can be."""
WIDE = 0.05
"""Bounds of relations that are larger than this are made narrower, since it is then that pairs with many tokens have to be computed."""
GRID = 0.25
"""Between the values of z that a bound looks at."""


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
    @one_blas_thread()
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

    @property
    @derived
    def unit(self) -> float:
        """What both halves and the bias are multiplied with for arithmetic in 16-bit words: no pair's hidden layer is then longer than 2^15
        before its norm."""
        longest = np.sqrt(2) * np.linalg.norm(np.hstack([self.before, self.after]), 2) + np.linalg.norm(self.bias)
        return float(0.95 * 2**15 / longest) if longest > 0 else 1.0

    def terms(self, query_nD: np.ndarray) -> PairTerms:
        """Of a query without masked tokens, whose every token relates to the one before it."""
        dim = query_nD.shape[1]
        query = query_nD.astype(np.float64)
        relations = self.hidden(query[:-1] @ self.before.T.astype(np.float64), query[1:] @ self.after.T.astype(np.float64) + self.bias)
        relations = self.weight * (relations @ self.outer_weight.T.astype(np.float64) + self.outer_bias)
        relations = np.concatenate([np.zeros((min(1, len(query)), dim)), relations])
        products, constants = relations @ self.outer_weight.astype(np.float64), relations @ self.outer_bias.astype(np.float64)
        upper = self._rectified(products)
        wide = upper > WIDE
        upper[wide] = np.minimum(upper[wide], self._dual(products[wide]))
        upper += constants + self._rounding(products)
        return PairTerms(*(np.float32(array) for array in (products, constants, upper)))

    def _rectified(self, products_nD: np.ndarray) -> np.ndarray:
        """[n], which products . hidden layer is not above. The norm's output z has length sqrt(D) at most, and Mish(y) is at most y where
        that is positive, 0 elsewhere and nowhere below -LOWEST, for y = scale z + shift. So it is at most a constant plus the sum over k of
        max(slope_k z_k, 0). The z_k add up to 0, so any number may be taken from all slopes, on both sides of 0."""
        gains = np.maximum(products_nD, 0)
        slopes, taken = self._slopes(products_nD)
        reach = np.sqrt(len(self.bias)) * np.linalg.norm(np.maximum(np.abs(slopes - taken), np.abs(taken)), axis=1)
        return gains @ np.maximum(self.shift, 0) + LOWEST * (gains - products_nD).sum(axis=1) + reach + self._sums(taken)

    def _dual(self, products_nD: np.ndarray) -> np.ndarray:
        """[n], the same but narrower: for any mu and nu it is at most mu D plus the sum over k of the largest value that
        products_k Mish(y_k) - mu z_k^2 - nu z_k has (Lagrange), which is looked for on a grid. With these mu and nu, chosen by experiment,
        it is within a few percent of the least bound there is."""
        slopes, taken = self._slopes(products_nD)
        mu, nu = 0.55 * np.linalg.norm(slopes - taken, axis=1) / np.sqrt(len(self.bias)), 0.85 * taken
        z, hidden = self._grid
        taken_nG = mu[:, None] * z**2 + nu * z
        largest = (np.float32(products_nD)[:, :, None] * hidden - np.float32(taken_nG)[:, None]).max(axis=2).sum(axis=1, dtype=np.float64)
        between = GRID**2 / 8 * (2 * mu * len(self.bias) + CURVED * np.abs(products_nD) @ self.scale.astype(np.float64) ** 2)
        return mu * len(self.bias) + largest + between + self._sums(nu)

    def _slopes(self, products_nD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """[n, D] how much a z can add where Mish rises, and [n, 1] their mean."""
        slopes = np.maximum(products_nD, 0) * self.scale
        return slopes, slopes.mean(axis=1, keepdims=True)

    def _sums(self, factors_n1: np.ndarray) -> np.ndarray:
        """[n], these times the sum of the z_k: 0 but for the whole units that kernels round to what is added up."""
        return np.abs(factors_n1[:, 0]) * (0.1 + 3 * len(self.bias) / (self.unit * np.sqrt(EPSILON)))

    @property
    @derived
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """[G] values of z, past its largest on both sides; [D, G] float32, the hidden layer of each component."""
        steps = int(np.sqrt(len(self.bias)) / GRID) + 1
        z = GRID * np.arange(-steps, steps + 1)
        return z, mish(z * self.scale[:, None].astype(np.float64) + self.shift[:, None]).astype(np.float32)

    def _rounding(self, products_nD: np.ndarray) -> np.ndarray:
        """[n], how far above products . hidden layer kernels may come out that compute in 16 bits and have lines for Mish."""
        largest = (np.sqrt(products_nD.shape[1]) * np.abs(self.scale) + np.abs(self.shift)).max()
        return (LINE + largest * WORD) * np.abs(products_nD).sum(axis=1)

    def hidden(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """[..., D] float64: Mish(norm(.)) of pairs given by their halves, both centred, so that the norm has only to divide."""
        both = before + after
        both = both / np.sqrt(np.square(both).mean(axis=-1, keepdims=True) + EPSILON)
        return mish(both * self.scale + self.shift)


def mish(values: np.ndarray) -> np.ndarray:
    """x tanh(ln(1 + e^x)), with one exponential."""
    exponentials = np.exp(np.minimum(values, 20))
    squares = exponentials * (exponentials + 2)
    return values * squares / (squares + 2)
