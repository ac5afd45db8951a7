"""TRIAL: relations between neighboring tokens and gates that weight tokens, in the factored form (docs/algorithms.md#5-trial).

Shapes: B queries of n tokens, N documents of m tokens, D dimensions.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.base.config import TrialConfig
from ray_lir.embeddings import relation as formats
from ray_lir.scorers import maxsim
from ray_lir.scorers.batches import EmbeddedTexts, apply_with_padded_rows
from ray_lir.scorers.interaction import document_chunks, gather_tokens, similarities, sum_over_query_tokens, weighted_cosines
from ray_lir.scorers.received_attention import ReceivedAttention
from ray_lir.scorers.scorer import Scorer

QUERY_LENGTH = 32
"""Training scores are scaled to a query of this many tokens (docs/algorithms.md#51-score, length normalisation; 10, 10)."""
FIRST_OUTPUT = 0.1
"""Factor for the initial weights of a relation encoder's last layer, so that initial relations are small beside similarities (at most
1)."""


class Relation(nn.Module):
    """The relation encoder: Rel(previous, current) = outer(Mish(norm(inner[previous ; current]))), for unit vectors.

    Source: docs/algorithms.md#51-score
    """

    def __init__(self, dim: int):
        super().__init__()
        self.inner = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.outer = nn.Linear(dim, dim)
        with torch.no_grad():
            self.outer.weight *= FIRST_OUTPUT
            self.outer.bias.zero_()

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        """Return the relation of each pair, [..., D]."""
        return self.outer(self.hidden(*self.halves(previous, current)))

    def halves(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """Return each token's centered contribution to the hidden layer, as the first and as the second token of a pair."""
        first, second = self.inner.weight.chunk(2, dim=1)
        before, after = functional.linear(previous, first), functional.linear(current, second, self.inner.bias)
        return before - before.mean(-1, keepdim=True), after - after.mean(-1, keepdim=True)

    def hidden(self, before: Tensor, after: Tensor) -> Tensor:
        """Return Mish(norm(.)) of pairs, [..., D], from their halves. Both halves are centered, so the norm only has to divide."""
        both = before + after
        scale = torch.rsqrt(both.square().mean(-1, keepdim=True) + self.norm.eps)
        return functional.mish(both * scale * self.norm.weight + self.norm.bias)


class Gate(nn.Module):
    """The importance of a token: ReLU(outer(Mish(norm(inner(x))))), or a sigmoid, for vectors before normalization. An untrained
    gate gives about 1, or about 0.73 with a sigmoid."""

    def __init__(self, dim: int, activation: Literal["relu", "sigmoid"] = "relu"):
        super().__init__()
        self.activation = functional.relu if activation == "relu" else torch.sigmoid
        self.inner = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.outer = nn.Linear(dim, 1)
        nn.init.ones_(self.outer.bias)

    def forward(self, projected: Tensor) -> Tensor:
        """Return the importance of each token, [...], from [..., D]."""
        return self.activation(self.outer(functional.mish(self.norm(self.inner(projected)))).squeeze(-1))


SIDES: dict[str, tuple[Literal["queries", "documents"], ...]] = {
    "queries": ("queries",),
    "documents": ("documents",),
    "both": ("queries", "documents"),
    "none": (),
}
"""Sides with a gate, by `TrialConfig.sides`."""


class Trial(Scorer):
    """TRIAL's scorer, with the heads `relation`, `gate` (of queries) and `document_gate`. A side without weights has no gate."""

    name = "trial"
    Settings = TrialConfig
    penalizes_query_weights = True

    settings: TrialConfig

    def __init__(self, dim: int, settings: TrialConfig):
        super().__init__(dim, settings)
        self.relation = Relation(dim)
        if "queries" in self.weighs:
            self.gate = Gate(dim, settings.gate)
        if "documents" in self.weighs:
            self.document_gate = Gate(dim, settings.gate)

    @property
    def weighs(self) -> tuple[Literal["queries", "documents"], ...]:
        return SIDES[self.settings.sides]

    def to_arrays(self) -> formats.Relation:
        """Return the relation encoder as NumPy arrays for search."""
        modules = {"inner": self.relation.inner, "norm": self.relation.norm, "outer": self.relation.outer}
        arrays = {
            f"{name}_{kind}": getattr(module, kind).detach().float().cpu().numpy()
            for name, module in modules.items()
            for kind in ("weight", "bias")
        }
        settings = self.settings
        return formats.Relation(
            **arrays,
            weight=settings.relation_weight,
            alignment=settings.alignment,
            from_first_token=settings.first_match == "first_token",
        )

    def query_weights(self, projected_BnD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return the gate's importance of the query tokens, [B, n]; None without that gate."""
        return apply_with_padded_rows(self.gate, projected_BnD) if "queries" in self.weighs else None

    def document_weights(self, projected_NmD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return the gate's importance of the document tokens, [N, m]; None without that gate."""
        return apply_with_padded_rows(self.document_gate, projected_NmD) if "documents" in self.weighs else None

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """Return TRIAL scores, [B, N]."""
        if self.settings.relation_weight == 0:
            return maxsim.scores(queries, documents)
        settings, candidates = self.settings, self.settings.training_candidates if self.training else None
        return scores(queries, documents, self.relation, settings.relation_weight, settings.alignment, settings.first_match, candidates)

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        """Return the scores scaled to a query of QUERY_LENGTH tokens."""
        return [self(queries, documents) * (QUERY_LENGTH / queries.mask.sum(-1, keepdim=True).clamp(min=1))]


class QueryTerms(NamedTuple):
    """The query's part of relations. For query token i, its predecessor and any document pair: R_i . Rel(..) = g_i . hidden + c_i.

    Attributes:
        weights: g, [B, n, D]; zero for the first token, which has no predecessor.
        constants: c, [B, n].
    """

    weights: Tensor
    constants: Tensor


def scores(
    queries: EmbeddedTexts,
    documents: EmbeddedTexts,
    relation: Relation,
    relation_weight: float,
    alignment: str,
    first_match: str = "best",
    candidates: int | None = None,
) -> Tensor:
    """Return the TRIAL scores of all pairs, [B, N]; differentiable.

    Query token i adds w_i max_j (similarity + relation_weight * R_i . Rel(d_p, d_j)). Here d_p is the document token that query token i - 1
    was aligned to: the token of its maximum, or, with alignment "cosine", the token of its highest similarity. Masked query tokens are
    removed first, so the predecessor is the last kept token. Masked document tokens never match. The weight of a document token multiplies
    the similarity, but neither the choice of the token nor the relation.

    Args:
        queries: B queries.
        documents: N documents.
        relation: The relation encoder.
        relation_weight: Factor of a relation relative to a similarity (lambda).
        alignment: "combined" or "cosine".
        first_match: The token that the first query token counts as aligned to: "best", its match, or "first_token", the document's first.
        candidates: As in `align_tokens`.

    Source: docs/algorithms.md#51-score
    """
    queries = _without_gaps(queries)
    best, previous = align_tokens(queries, documents, relation, relation_weight, alignment, first_match, candidates)
    before, after = relation.halves(documents.vectors, documents.vectors)
    terms = _query_terms(queries, relation)
    hidden = relation.hidden(gather_tokens(before, previous), gather_tokens(after, best))
    related = torch.einsum("bnid,bid->bni", hidden, terms.weights) + terms.constants[:, None, :]
    return sum_over_query_tokens(weighted_cosines(queries, documents, best) + relation_weight * related, queries, documents)


def _without_gaps(queries: EmbeddedTexts) -> EmbeddedTexts:
    """Return the queries with their masked tokens moved to the end."""
    order = (~queries.mask).int().argsort(dim=1, stable=True)
    vectors = queries.vectors.gather(1, order[..., None].expand_as(queries.vectors))
    weights = None if queries.weights is None else queries.weights.gather(1, order)
    return EmbeddedTexts(vectors, queries.mask.gather(1, order), weights)


def _query_terms(queries: EmbeddedTexts, relation: Relation) -> QueryTerms:
    related = relation(queries.vectors[:, :-1], queries.vectors[:, 1:])
    related = functional.pad(related, (0, 0, 1, 0))
    return QueryTerms(related @ relation.outer.weight, related @ relation.outer.bias)


@torch.no_grad()
def align_tokens(
    queries: EmbeddedTexts,
    documents: EmbeddedTexts,
    relation: Relation,
    relation_weight: float,
    alignment: str,
    first_match: str = "best",
    candidates: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the best document token of each query token, and the token that its predecessor was aligned to; each [B, N, n] int64.

    Masked tokens of the queries must be at the end. The predecessor's token is 0 for the first query token. Ties go to the first token.
    The first kept token of a document is its first token.

    Args:
        queries: B queries.
        documents: N documents.
        relation: The relation encoder.
        relation_weight: Factor of a relation relative to a similarity (lambda).
        alignment: "combined" or "cosine".
        first_match: As in `scores`.
        candidates: Document tokens with the highest similarities among which the best one is searched for each query token after the first;
            None: all tokens.
    """
    num_queries, num_tokens, dim = queries.vectors.shape
    terms = _query_terms(queries, relation)
    parts = []
    length = documents.mask.shape[1]
    related = -(-dim * min(candidates or length, length) // length)  # values of the hidden layer for each document token
    for chunk in document_chunks(documents, num_queries * max(related, num_tokens)):
        before, after = relation.halves(documents.vectors[chunk], documents.vectors[chunk])
        cosine = similarities(queries, documents, chunk)
        best = [cosine[:, :, 0].argmax(-1)]
        aligned = list(best)
        if first_match == "first_token":
            aligned = [documents.mask[chunk].int().argmax(-1).expand_as(best[0])]
        for i in range(1, num_tokens):
            similarity, current, chosen = cosine[:, :, i], after, None
            if candidates and candidates < similarity.shape[-1]:
                chosen = similarity.topk(candidates).indices.sort(-1).values
                similarity, current = similarity.gather(-1, chosen), gather_tokens(after, chosen)
            hidden = relation.hidden(gather_tokens(before, aligned[-1][..., None]), current)
            value = similarity + relation_weight * torch.einsum("bnjd,bd->bnj", hidden, terms.weights[:, i])
            place = value.argmax(-1)
            best.append(place if chosen is None else chosen.gather(-1, place[..., None]).squeeze(-1))
            aligned.append(best[-1] if alignment == "combined" else cosine[:, :, i].argmax(-1))
        previous = [torch.zeros_like(best[0]), *aligned[:-1]]
        parts.append((torch.stack(best, -1), torch.stack(previous, -1)))
    best_parts, previous_parts = zip(*parts, strict=True)
    return torch.cat(best_parts, 1), torch.cat(previous_parts, 1)
