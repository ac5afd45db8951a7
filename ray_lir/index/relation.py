"""The relation encoder of a scorer in the form that search evaluates: factored, and rotated like the codec's vectors.

The hidden layer of two document tokens p and j depends on the sum of one vector of p and one of j; the rest depends on the query alone:
relation_weight * R_i . Rel(p, j) = products_i . Mish(norm(before p + after j)) + constants_i.

Source: docs/algorithms.md#54-exact-evaluation-in-fewer-steps.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.parallel import one_blas_thread
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.relation import EPSILON, Relation

if TYPE_CHECKING:
    from ray_lir.index.codec import ResidualCodec

LOWEST = 0.3089
"""The minimum of Mish is -LOWEST."""
CURVED = 0.65
"""Largest size of the second derivative of Mish."""
LINE = 0.008
"""Largest distance between Mish and the line segments that kernels use instead."""
WORD = 2.0**-12
"""Bound on the rounding error of the hidden layer in 16-bit words, relative to its largest possible value."""
WIDE = 0.05
"""Relations with a larger bound get a second, narrower bound: a wide bound makes kernels compute many relations."""
SAMPLE = 1024
"""Pairs of centroids from which the mean gradient of the hidden layer is computed."""
LARGEST_RATIO = 2.0
"""Largest weight of a query token relative to that of the token before, in the first-order relations."""
GRID = 0.25
"""Distance between the values of z at which a bound is evaluated."""


@dataclass(frozen=True, eq=False, repr=False)
class QueryRelation(ShortRepr):
    """A query's part of the relation, for n query tokens. The weight of relations is included.

    Attributes:
        products: [n, D] float32; zero for the first token, which has no predecessor.
        constants: [n] float32.
        upper: [n] float32, an upper bound of the relation over all pairs of document tokens.
    """

    products: np.ndarray
    constants: np.ndarray
    upper: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class RelationEncoder(ShortRepr):
    """The relation encoder for vectors that the codec has rotated.

    Attributes:
        before: [D, D] float32, multiplies the first token of a pair; its outputs are centred.
        after: [D, D] float32, multiplies the second token of a pair; its outputs are centred.
        bias: [D] float32, added to the second token's output; centred.
        scale: [D] float32, the norm's weight.
        shift: [D] float32, the norm's bias.
        outer_weight: [D, D] float32.
        outer_bias: [D] float32.
        weight: Weight of a relation relative to a cosine.
        by_cosine: Whether a relation starts from the previous query token's nearest token instead of its match.
        from_first_token: Whether the relation of the second query token starts from the document's first token.
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
    from_first_token: bool = False

    @classmethod
    @one_blas_thread()
    def of(cls, relation: Relation, rotation_DD: np.ndarray | None) -> "RelationEncoder":
        """Return the relation encoder of a scorer, rotated by the codec's rotation [D, D] (None: not rotated)."""
        inner = relation.inner_weight.astype(np.float64)
        inner -= inner.mean(axis=0)
        halves = np.split(inner, 2, axis=1)
        before, after = halves if rotation_DD is None else (half @ rotation_DD.astype(np.float64) for half in halves)
        return cls(
            before=_as_rows(before),
            after=_as_rows(after),
            bias=_as_rows(relation.inner_bias - relation.inner_bias.mean(dtype=np.float64)),
            scale=_as_rows(relation.norm_weight),
            shift=_as_rows(relation.norm_bias),
            outer_weight=_as_rows(relation.outer_weight),
            outer_bias=_as_rows(relation.outer_bias),
            weight=relation.weight,
            by_cosine=relation.alignment == "cosine",
            from_first_token=relation.from_first_token,
        )

    @property
    @derived
    def unit(self) -> float:
        """Factor of both halves and the bias for arithmetic in 16-bit words: hidden layers before the norm are then shorter than 2^15."""
        longest = np.sqrt(2) * np.linalg.norm(np.hstack([self.before, self.after]), 2) + np.linalg.norm(self.bias)
        return float(0.95 * 2**15 / longest) if longest > 0 else 1.0

    def of_query(self, query_nD: np.ndarray, narrow: bool = True) -> QueryRelation:
        """Return the query's part of the relation.

        Args:
            query_nD: [n, D] float32, rotated, without masked tokens. Each token is related to the token before it.
            narrow: Whether to compute the second, narrower bound of relations with a wide one. It takes most of the time, and skips
                few relations if a query token is compared with few document tokens.
        """
        dim = query_nD.shape[1]
        query = query_nD.astype(np.float64)
        relations = self.hidden(query[:-1] @ self.before.T.astype(np.float64), query[1:] @ self.after.T.astype(np.float64) + self.bias)
        relations = self.weight * (relations @ self.outer_weight.T.astype(np.float64) + self.outer_bias)
        relations = np.concatenate([np.zeros((min(1, len(query)), dim)), relations])
        products, constants = relations @ self.outer_weight.astype(np.float64), relations @ self.outer_bias.astype(np.float64)
        upper = self._rectified(products)
        wide = upper > (WIDE if narrow else np.inf)
        upper[wide] = np.minimum(upper[wide], self._dual(products[wide]))
        upper += constants + self._rounding(products)
        return QueryRelation(products.astype(np.float32), constants.astype(np.float32), upper.astype(np.float32))

    def _rectified(self, products_nD: np.ndarray) -> np.ndarray:
        """Return an upper bound of products . hidden layer, [n].

        The norm's output z has a length of at most sqrt(D). For y = scale z + shift, Mish(y) is at most max(y, 0) and at least -LOWEST.
        The bound is therefore a constant plus the sum over k of max(slope_k z_k, 0). The z_k add up to 0, so the same number may be
        subtracted from all slopes, on both sides of 0.
        """
        gains = np.maximum(products_nD, 0)
        slopes, mean = self._slopes(products_nD)
        reach = np.sqrt(len(self.bias)) * np.linalg.norm(np.maximum(np.abs(slopes - mean), np.abs(mean)), axis=1)
        return gains @ np.maximum(self.shift, 0) + LOWEST * (gains - products_nD).sum(axis=1) + reach + self._sums(mean)

    def _dual(self, products_nD: np.ndarray) -> np.ndarray:
        """Return a narrower upper bound of products . hidden layer, [n].

        For any mu and nu (Lagrange), the product is at most mu D plus the sum over k of m_k.
        Here m_k is the largest value of products_k Mish(y_k) - mu z_k^2 - nu z_k, evaluated on a grid.
        These mu and nu were chosen by experiment; the bound is within a few percent of the least possible bound.
        """
        slopes, mean = self._slopes(products_nD)
        mu, nu = 0.55 * np.linalg.norm(slopes - mean, axis=1) / np.sqrt(len(self.bias)), 0.85 * mean
        z, hidden = self._grid
        subtracted_nG = (mu[:, None] * z**2 + nu * z).astype(np.float32)
        values = products_nD.astype(np.float32)[:, :, None] * hidden - subtracted_nG[:, None]
        largest = values.max(axis=2).sum(axis=1, dtype=np.float64)
        between = GRID**2 / 8 * (2 * mu * len(self.bias) + CURVED * np.abs(products_nD) @ self.scale.astype(np.float64) ** 2)
        return mu * len(self.bias) + largest + between + self._sums(nu)

    def _slopes(self, products_nD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return how much each z_k can add where Mish rises, [n, D], and the mean over k, [n, 1]."""
        slopes = np.maximum(products_nD, 0) * self.scale
        return slopes, slopes.mean(axis=1, keepdims=True)

    def _sums(self, factors_n1: np.ndarray) -> np.ndarray:
        """Return factors times the sum of the z_k, [n]; the sum is 0 except for the rounding of kernels to whole units."""
        return np.abs(factors_n1[:, 0]) * (0.1 + 3 * len(self.bias) / (self.unit * np.sqrt(EPSILON)))

    @property
    @derived
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Values of z [G] that cover its range, and the hidden layer of each component there, [D, G] float32."""
        steps = int(np.sqrt(len(self.bias)) / GRID) + 1
        z = GRID * np.arange(-steps, steps + 1)
        return z, mish(z * self.scale[:, None].astype(np.float64) + self.shift[:, None]).astype(np.float32)

    def _rounding(self, products_nD: np.ndarray) -> np.ndarray:
        """Return how far kernels may exceed products . hidden layer, [n]: they compute in 16 bits, with line segments instead of Mish."""
        largest = (np.sqrt(products_nD.shape[1]) * np.abs(self.scale) + np.abs(self.shift)).max()
        return (LINE + largest * WORD) * np.abs(products_nD).sum(axis=1)

    def hidden(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """Return Mish(norm(before + after)), [..., D] float64. Both halves are centred, so the norm only divides."""
        both = before + after
        both = both / np.sqrt(np.square(both).mean(axis=-1, keepdims=True) + EPSILON)
        return mish(both * self.scale + self.shift)


@dataclass(frozen=True, eq=False, repr=False)
class LinearRelation(ShortRepr):
    """A query's relations to first order: up to a constant, relation i of the tokens p and j is `first[i] . p + second[i] . j`.

    Source: docs/algorithms.md#55-limited-relations.

    Attributes:
        first: [n, D] float64.
        second: [n, D] float64.
    """

    first: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, relation: QueryRelation, codec: "ResidualCodec") -> "LinearRelation":
        """Return the relations of a query to first order; `codec` is that of the index, with a relation encoder."""
        first, second = relation.products.astype(np.float64) @ _mean_gradients(codec)
        if relation_of(codec).from_first_token:
            first[1:2] = 0
        return cls(first, second)

    def selectors(self, query_nD: np.ndarray) -> np.ndarray:
        """Return vectors that rank the tokens of a document like similarity plus relation, [n, D] float32.

        The first token of a relation is the same for all tokens that are compared, so it does not change their order.

        Args:
            query_nD: [n, D] float32, rotated, without masked tokens.
        """
        return (query_nD + self.second).astype(np.float32)

    def query_vectors(self, query_nD: np.ndarray, weights_n: np.ndarray) -> np.ndarray:
        """Return query vectors with which MaxSim is TRIAL's score to first order, except for a constant, [n, D] float32.

        The match of query token i is the second token of its own relation and the first token of the next one. Both linear functions are
        therefore added to its query vector.

        Args:
            query_nD: [n, D] float32, rotated, without masked tokens.
            weights_n: [n], the weights of the query tokens.
        """
        weights = weights_n.astype(np.float64)
        ratios = np.divide(
            np.minimum(weights[1:], LARGEST_RATIO * weights[:-1]), weights[:-1], out=np.zeros(len(weights[1:])), where=weights[:-1] > 0
        )
        linear_nD = query_nD + self.second
        linear_nD[:-1] += ratios[:, None] * self.first[1:]
        return linear_nD.astype(np.float32)


@derived
@one_blas_thread()
def _mean_gradients(codec: "ResidualCodec") -> np.ndarray:
    """Return the mean derivatives of hidden values by the first and by the second token, [2, D, D], over pairs of centroids."""
    encoder, rng = relation_of(codec), np.random.default_rng(0)
    first, second = codec.centroids_f32[rng.integers(0, codec.num_centroids, (2, SAMPLE))].astype(np.float64)
    both = first @ encoder.before.T.astype(np.float64) + second @ encoder.after.T.astype(np.float64) + encoder.bias
    inverse = 1 / np.sqrt(np.square(both).mean(axis=1, keepdims=True) + EPSILON)
    normed = both * inverse
    slopes = mish_slope(normed * encoder.scale + encoder.shift) * encoder.scale * inverse
    # The norm divides by the root mean square, which grows with every component.
    gradient = np.diag(slopes.mean(axis=0)) - (slopes * normed).T @ normed / normed.size
    return np.stack([gradient @ half.astype(np.float64) for half in (encoder.before, encoder.after)])


def relation_of(codec: "ResidualCodec") -> RelationEncoder:
    """Return the relation encoder of an index."""
    if not isinstance(codec.scorer_data, RelationEncoder):
        raise TypeError("the codec has no relation encoder; the index is for another scorer")
    return codec.scorer_data


def _as_rows(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)


def mish(values: np.ndarray) -> np.ndarray:
    """Return x tanh(ln(1 + e^x)), computed with one exponential."""
    exponentials = np.exp(np.minimum(values, 20))
    squares = exponentials * (exponentials + 2)
    return values * squares / (squares + 2)


def mish_slope(values: np.ndarray) -> np.ndarray:
    """Return the derivative of Mish."""
    logistic = 1 / (1 + np.exp(-np.clip(values, -30, 30)))
    bounded = np.tanh(np.log1p(np.exp(np.minimum(values, 30))))
    return bounded + values * (1 - bounded**2) * logistic


def align(
    query_nD: np.ndarray,
    relation: QueryRelation,
    vectors_mD: np.ndarray,
    encoder: RelationEncoder,
    nearest_tokens: int | None = None,
    selectors_nD: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find the match of each query token in one document.

    Source: docs/algorithms.md#51-score, docs/algorithms.md#55-limited-relations.

    Args:
        query_nD: [n, D] float32, rotated, without masked tokens.
        relation: `encoder.of_query(query_nD)`.
        vectors_mD: [m, D] float64, the document's tokens.
        encoder: The relation encoder of the index.
        nearest_tokens, selectors_nD: The document tokens that each query token is compared with, as in `compare`.
    Returns:
        Matches [n] int64, and the relation of each match to the previous query token's match, [n] float64.
    """
    cosines_nm, relations_nm = compare(query_nD, relation, vectors_mD, encoder, nearest_tokens, selectors_nD)
    matches = (cosines_nm + relations_nm).argmax(axis=1)
    return matches, relations_nm[np.arange(len(matches)), matches]


def compare(
    query_nD: np.ndarray,
    relation: QueryRelation,
    vectors_mD: np.ndarray,
    encoder: RelationEncoder,
    nearest_tokens: int | None = None,
    selectors_nD: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return cosines and relations of every query token with every token of one document.

    Args:
        query_nD: [n, D] float32, rotated, without masked tokens.
        relation: `encoder.of_query(query_nD)`.
        vectors_mD: [m, D] float64, the document's tokens.
        encoder: The relation encoder of the index.
        nearest_tokens: Document tokens that each query token except the first is compared with: those with the largest dot products with
            its selector. Ties go to the first token. None: all.
        selectors_nD: [n, D] float32, one vector for each query token (`LinearRelation.selectors`). None: the query vectors.
    Returns:
        Cosines [n, m] float64, and the relation of each document token to the previous query token's match, [n, m] float64; -inf for
        tokens that are not compared.
    """
    cosines_nm = query_nD.astype(np.float64) @ vectors_mD.T
    before_mD = vectors_mD @ encoder.before.T.astype(np.float64)
    after_mD = vectors_mD @ encoder.after.T.astype(np.float64) + encoder.bias
    relations_nm = np.zeros_like(cosines_nm)
    if nearest_tokens is not None:
        ranking_nm = cosines_nm if selectors_nD is None else selectors_nD.astype(np.float64) @ vectors_mD.T
        beyond = np.argsort(-ranking_nm[1:], axis=1, kind="stable")[:, nearest_tokens:]
        np.put_along_axis(relations_nm[1:], beyond, -np.inf, axis=1)
    for i in range(1, len(query_nD)):
        deciding_m = cosines_nm[i - 1] if encoder.by_cosine else cosines_nm[i - 1] + relations_nm[i - 1]
        previous = 0 if i == 1 and encoder.from_first_token else deciding_m.argmax()
        relations_nm[i] += encoder.hidden(before_mD[previous], after_mD) @ relation.products[i] + relation.constants[i]
    return cosines_nm, relations_nm
