"""TRIAL: relations between neighbouring tokens and a gate for query tokens, in the factored form (docs/algorithms.md#5-trial).

B queries of n tokens, N documents of m tokens, D dimensions.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.base.config import TrialConfig
from ray_lir.embeddings import relation as formats
from ray_lir.scorers import maxsim
from ray_lir.scorers.batches import EmbeddedTexts, apply_with_padded_rows
from ray_lir.scorers.interaction import cosines, document_chunks, gather_tokens, similarities, sum_over_query_tokens
from ray_lir.scorers.received_attention import ReceivedAttention
from ray_lir.scorers.scorer import Scorer

QUERY_LENGTH = 32
"""Training scores are those of a query of this many tokens (docs/algorithms.md#51-score, length normalisation; 10, 10)."""
FIRST_OUTPUT = 0.1
"""A fresh relation encoder's last layer is this much of torch's own: relations begin small beside cosines of at most 1."""


class Relation(nn.Module):
    """Rel(previous, current) = outer(Mish(norm(inner[previous ; current]))), of unit vectors."""

    def __init__(self, dim: int):
        super().__init__()
        self.inner = nn.Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.outer = nn.Linear(dim, dim)
        with torch.no_grad():
            self.outer.weight *= FIRST_OUTPUT
            self.outer.bias.zero_()

    def forward(self, previous: Tensor, current: Tensor) -> Tensor:
        """[..., D] relation of each pair."""
        return self.outer(self.hidden(*self.halves(previous, current)))

    def halves(self, previous: Tensor, current: Tensor) -> tuple[Tensor, Tensor]:
        """What each token adds to the hidden layer before its norm, as the first or the second of a pair; centred."""
        first, second = self.inner.weight.chunk(2, dim=1)
        before, after = functional.linear(previous, first), functional.linear(current, second, self.inner.bias)
        return before - before.mean(-1, keepdim=True), after - after.mean(-1, keepdim=True)

    def hidden(self, before: Tensor, after: Tensor) -> Tensor:
        """[..., D] Mish(norm(.)) of pairs given by their halves: the norm has only to divide, both halves being centred."""
        both = before + after
        scale = torch.rsqrt(both.square().mean(-1, keepdim=True) + self.norm.eps)
        return functional.mish(both * scale * self.norm.weight + self.norm.bias)


class Gate(nn.Module):
    """Importance of a query token: ReLU(outer(Mish(norm(inner(x))))), of vectors before the norm. A fresh one gives about 1."""

    def __init__(self, dim: int):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim, eps=1e-5)
        self.outer = nn.Linear(dim, 1)
        nn.init.ones_(self.outer.bias)

    def forward(self, projected: Tensor) -> Tensor:
        return functional.relu(self.outer(functional.mish(self.norm(self.inner(projected)))).squeeze(-1))


class Trial(Scorer):
    """TRIAL's scorer; its heads are `relation` and `gate`."""

    name = "trial"
    Settings = TrialConfig

    settings: TrialConfig

    def __init__(self, dim: int, settings: TrialConfig):
        super().__init__(dim, settings)
        self.relation = Relation(dim)
        self.gate = Gate(dim)

    @property
    def weighs(self) -> tuple[Literal["queries", "documents"], ...]:
        return ("queries",)

    def to_arrays(self) -> formats.Relation:
        """The relation encoder as search takes it."""
        modules = {"inner": self.relation.inner, "norm": self.relation.norm, "outer": self.relation.outer}
        arrays = {
            f"{name}_{kind}": getattr(module, kind).detach().float().cpu().numpy()
            for name, module in modules.items()
            for kind in ("weight", "bias")
        }
        return formats.Relation(**arrays, weight=self.settings.relation_weight, alignment=self.settings.alignment)

    def query_weights(self, projected_BnD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        return apply_with_padded_rows(self.gate, projected_BnD)

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        if self.settings.relation_weight == 0:
            return maxsim.scores(queries, documents)
        return scores(queries, documents, self.relation, self.settings.relation_weight, self.settings.alignment)

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        return [self(queries, documents) * (QUERY_LENGTH / queries.mask.sum(-1, keepdim=True).clamp(min=1))]


class QueryTerms(NamedTuple):
    """What a relation with any document pair needs of query token i and its predecessor: R_i . Rel(..) = g_i . hidden + c_i.

    Attributes:
        weights: g, [B, n, D]; zero for the first token, which has no predecessor.
        constants: c, [B, n].
    """

    weights: Tensor
    constants: Tensor


def scores(queries: EmbeddedTexts, documents: EmbeddedTexts, relation: Relation, relation_weight: float, alignment: str) -> Tensor:
    """All-pairs scores [B, N]; differentiable.

    Token i of the query adds w_i max_j (cosine + relation_weight * R_i . Rel(d_p, d_j)), where d_p is the document token that
    token i - 1 was aligned to: the one of its maximum, or (alignment "cosine") of its largest cosine. Masked query tokens are
    taken out first, so that a predecessor is the last kept token; masked document tokens never win.
    """
    queries = _without_gaps(queries)
    best, previous = align_tokens(queries, documents, relation, relation_weight, alignment)
    before, after = relation.halves(documents.vectors, documents.vectors)
    terms = _query_terms(queries, relation)
    hidden = relation.hidden(gather_tokens(before, previous), gather_tokens(after, best))
    related = torch.einsum("bnid,bid->bni", hidden, terms.weights) + terms.constants[:, None, :]
    return sum_over_query_tokens(cosines(queries, documents, best) + relation_weight * related, queries, documents)


def _without_gaps(queries: EmbeddedTexts) -> EmbeddedTexts:
    """The same queries with their masked tokens moved to the end."""
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
    queries: EmbeddedTexts, documents: EmbeddedTexts, relation: Relation, relation_weight: float, alignment: str
) -> tuple[Tensor, Tensor]:
    """[B, N, n] twice: the token that wins, and the token that the predecessor was aligned to (0 for the first). Ties go to the first.

    The queries have no masked tokens before kept ones.
    """
    num_queries, num_tokens, dim = queries.vectors.shape
    terms = _query_terms(queries, relation)
    parts = []
    for chunk in document_chunks(documents, num_queries * max(dim, num_tokens)):
        before, after = relation.halves(documents.vectors[chunk], documents.vectors[chunk])
        cosine = similarities(queries, documents, chunk)
        best = [cosine[:, :, 0].argmax(-1)]
        aligned = list(best)
        for i in range(1, num_tokens):
            hidden = relation.hidden(gather_tokens(before, aligned[-1][..., None]), after)
            value = cosine[:, :, i] + relation_weight * torch.einsum("bnjd,bd->bnj", hidden, terms.weights[:, i])
            best.append(value.argmax(-1))
            aligned.append(best[-1] if alignment == "combined" else cosine[:, :, i].argmax(-1))
        previous = [torch.zeros_like(best[0]), *aligned[:-1]]
        parts.append((torch.stack(best, -1), torch.stack(previous, -1)))
    best, previous = zip(*parts, strict=True)
    return torch.cat(best, 1), torch.cat(previous, 1)
