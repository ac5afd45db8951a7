"""TRIAL's factored scores against golden vectors and the naive form; its gate and fresh heads."""

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_lir.base.config import TrialConfig
from ray_lir.scorers import maxsim, trial
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.trial import Gate, Relation, Trial
from tests.conformance.test_scorers import PRECISIONS, random_texts, texts
from tests.support.golden_files import golden

ALIGNMENTS = ("combined", "cosine")


def golden_trial(dtype: torch.dtype, alignment: str = "combined", relation_weight: float | None = None) -> Trial:
    values = golden("trial")
    weight = float(values["lam"]) if relation_weight is None else relation_weight
    scorer = Trial(values["q"].shape[1], TrialConfig(relation_weight=weight, alignment=alignment))
    names = {
        "relation.inner": ("W1", "b1"),
        "relation.norm": ("ln_g", "ln_b"),
        "relation.outer": ("W2", "b2"),
        "gate.inner": ("gW1", "gb1"),
        "gate.norm": ("gln_g", "gln_b"),
        "gate.outer": ("gW2", "gb2"),
    }
    state = {
        f"{module}.{kind}": torch.from_numpy(np.atleast_1d(values[name]))
        for module, pair in names.items()
        for kind, name in zip(("weight", "bias"), pair, strict=True)
    }
    state["gate.outer.weight"] = state["gate.outer.weight"][None]
    scorer.to(dtype).load_state_dict(state)
    return scorer


def golden_query(scorer: Trial, dtype: torch.dtype) -> EmbeddedTexts:
    values = golden("trial")
    raw = torch.from_numpy(values["q_raw"])[None].to(dtype)
    return texts(values["q"][None], weights=scorer.query_weights(raw, None).detach(), dtype=dtype)


@PRECISIONS
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_trial_gives_the_golden_scores(alignment: str, dtype: torch.dtype, tolerance: float) -> None:
    scorer, values = golden_trial(dtype, alignment).eval(), golden("trial")
    query, documents = golden_query(scorer, dtype), texts(values["d"], values["d_mask"], dtype=dtype)
    np.testing.assert_allclose(query.weights[0], values["w"], rtol=0, atol=tolerance)
    scores = scorer(query, documents).detach()
    np.testing.assert_allclose(scores[0], values[f"scores_{alignment}"], rtol=0, atol=5 * tolerance)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_tokens_are_aligned_as_in_the_golden_paths(alignment: str) -> None:
    scorer, values = golden_trial(torch.float64, alignment), golden("trial")
    query, documents = golden_query(scorer, torch.float64), texts(values["d"], values["d_mask"], dtype=torch.float64)
    best, previous = trial.align_tokens(query, documents, scorer.relation, float(values["lam"]), alignment)
    path = values[f"path_{alignment}"]
    assert np.array_equal(previous[0, :, 1:], path[:, :-1])
    assert np.array_equal(best[0], path) == (alignment == "combined")


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_training_candidates_limit_the_tokens_that_relations_choose_from(alignment: str) -> None:
    scorer, values = golden_trial(torch.float64, alignment), golden("trial")
    query, documents = golden_query(scorer, torch.float64), texts(values["d"], values["d_mask"], dtype=torch.float64)
    weight, everything = float(values["lam"]), documents.mask.shape[1]
    exact = trial.align_tokens(query, documents, scorer.relation, weight, alignment)
    same = trial.align_tokens(query, documents, scorer.relation, weight, alignment, candidates=everything - 1)
    assert all(torch.equal(*each) for each in zip(exact, same, strict=True))
    cosine = torch.einsum("id,njd->nij", query.vectors[0], documents.vectors).masked_fill(~documents.mask[:, None], -torch.inf)
    (best, _) = trial.align_tokens(query, documents, scorer.relation, weight, alignment, candidates=1)
    assert torch.equal(best[0], cosine.argmax(-1)) and not torch.equal(best, exact[0])
    limited = Trial(scorer.relation.outer.out_features, scorer.settings.model_copy(update={"training_candidates": 1})).double()
    limited.load_state_dict(scorer.state_dict())
    assert torch.equal(limited.eval()(query, documents), scorer(query, documents))
    assert not torch.equal(limited.train()(query, documents), scorer(query, documents))


def test_trial_does_not_score_padding() -> None:
    scorer, values = golden_trial(torch.float64), golden("trial")
    scores = scorer(golden_query(scorer, torch.float64), texts(values["d"], values["d_mask"], dtype=torch.float64))[0]
    assert np.abs(scores.detach().numpy() - values["scores_repo_zero_masked"]).max() > 0.1


def test_without_relations_trial_is_maxsim_with_gates() -> None:
    scorer, values = golden_trial(torch.float64, relation_weight=0.0), golden("trial")
    query, documents = golden_query(scorer, torch.float64), texts(values["d"], values["d_mask"], dtype=torch.float64)
    np.testing.assert_allclose(scorer(query, documents)[0], values["scores_lambda0"], rtol=0, atol=1e-10)
    assert torch.equal(scorer(query, documents), maxsim.scores(query, documents))


def test_the_relation_encoder_equals_its_definition() -> None:
    scorer, values = golden_trial(torch.float64), golden("trial")
    query = torch.from_numpy(values["q"])
    np.testing.assert_allclose(scorer.relation(query[:-1], query[1:]).detach(), values["rel_query"], rtol=0, atol=1e-12)


def naive_score(
    query: Tensor,
    weights: Tensor,
    document: Tensor,
    document_weights: Tensor,
    relation: Relation,
    relation_weight: float,
    alignment: str,
    first_match: str,
) -> Tensor:
    """Return the score of one pair without masked tokens by docs/algorithms.md#51-score and 7."""

    def rel(previous: Tensor, current: Tensor) -> Tensor:
        return relation.outer(torch.nn.functional.mish(relation.norm(relation.inner(torch.cat([previous, current], -1)))))

    aligned, score = 0, torch.zeros((), dtype=query.dtype)
    for i, token in enumerate(query):
        cosine = document @ token
        value = cosine
        if i:
            value = cosine + relation_weight * rel(document[aligned].expand_as(document), document) @ rel(query[i - 1], token)
        best = int(value.argmax())
        score = score + weights[i] * (value[best] + (document_weights[best] - 1) * cosine[best])
        aligned = int((value if alignment == "combined" else cosine).argmax())
        if i == 0 and first_match == "first_token":
            aligned = 0
    return score


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize("first_match", ["best", "first_token"])
def test_factored_scores_and_gradients_equal_the_naive_form(alignment: str, first_match: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(10):
        num_queries, n, num_documents, m = rng.integers(1, 7, 4)
        queries, documents = random_texts(rng, num_queries, n, 6, weights=True), random_texts(rng, num_documents, m, 6, weights=True)
        relation = Relation(6).double()
        torch.nn.init.normal_(relation.outer.weight, std=0.5)
        vectors = queries.vectors.clone().requires_grad_(), documents.vectors.clone().requires_grad_()
        factored = trial.scores(
            EmbeddedTexts(vectors[0], queries.mask, queries.weights),
            EmbeddedTexts(vectors[1], documents.mask, documents.weights),
            relation,
            0.5,
            alignment,
            first_match,
        )
        naive = torch.stack(
            [
                torch.stack(
                    [
                        naive_score(
                            vectors[0][i][queries.mask[i]],
                            queries.weights[i][queries.mask[i]],
                            vectors[1][j][documents.mask[j]],
                            documents.weights[j][documents.mask[j]],
                            relation,
                            0.5,
                            alignment,
                            first_match,
                        )
                        for j in range(num_documents)
                    ]
                )
                for i in range(num_queries)
            ]
        )
        np.testing.assert_allclose(factored.detach(), naive.detach(), rtol=0, atol=1e-12)
        inputs = [*vectors, *relation.parameters()]
        ours, theirs = (torch.autograd.grad(scores.sum(), inputs, allow_unused=True) for scores in (factored, naive))
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, torch.zeros_like(one) if other is None else other, rtol=0, atol=1e-11)


def test_a_masked_query_token_does_not_break_the_chain_of_neighbours() -> None:
    rng = np.random.default_rng(2)
    whole, documents = random_texts(rng, 1, 5, 6, weights=True), random_texts(rng, 3, 4, 6, weights=False)
    mask = torch.tensor([[True, True, False, True, True]])
    kept = mask[0].nonzero()[:, 0]
    relation = Relation(6).double()
    gap = trial.scores(EmbeddedTexts(whole.vectors, mask, whole.weights), documents, relation, 0.5, "combined")
    short = EmbeddedTexts(whole.vectors[:, kept], mask[:, kept], whole.weights[:, kept])
    torch.testing.assert_close(gap, trial.scores(short, documents, relation, 0.5, "combined"), rtol=0, atol=1e-12)


def test_training_scores_do_not_grow_with_the_query() -> None:
    scorer = Trial(4, TrialConfig(relation_weight=0))
    query, documents = texts(np.ones((1, 6, 4)) / 2, [[True] * 3 + [False] * 3]), texts(np.ones((1, 1, 4)) / 2)
    assert scorer(query, documents).item() == 3.0
    assert scorer.training_scores(query, documents)[0].item() == pytest.approx(32.0)


def test_fresh_heads_score_nearly_like_maxsim() -> None:
    torch.manual_seed(0)
    rng = np.random.default_rng(3)
    queries, documents = random_texts(rng, 4, 8, 128, weights=False), random_texts(rng, 6, 20, 128, weights=False)
    scorer = Trial(128, TrialConfig()).double()
    gates = scorer.query_weights(queries.vectors, None)
    assert gates.min() > 0 and abs(gates.mean().item() - 1) < 0.5
    plain = maxsim.scores(queries, documents)
    difference = (scorer(queries, documents) - plain).detach()
    assert (difference - difference.mean()).abs().max() < 0.5 * plain.std()


def test_the_gate_looks_at_vectors_before_the_norm() -> None:
    torch.manual_seed(0)
    gate = Gate(8)
    vector = torch.randn(1, 8)
    assert gate(3 * vector).item() != gate(vector).item()


def test_a_sigmoid_gate_lies_between_0_and_1() -> None:
    torch.manual_seed(0)
    relu, sigmoid = Gate(8), Gate(8, "sigmoid")
    sigmoid.load_state_dict(relu.state_dict())
    vectors = torch.randn(5, 8)
    assert torch.allclose(torch.special.logit(sigmoid(vectors)).clamp(min=0), relu(vectors), atol=1e-5)
    assert Trial(8, TrialConfig(gate="sigmoid")).gate.activation is torch.sigmoid
    assert TrialConfig().model_dump() == {"relation_weight": 0.5, "alignment": "combined"}


@pytest.mark.parametrize(
    ("sides", "weighs", "gates"),
    [
        ("queries", ("queries",), {"gate"}),
        ("documents", ("documents",), {"document_gate"}),
        ("both", ("queries", "documents"), {"gate", "document_gate"}),
        ("none", (), set()),
    ],
)
def test_each_side_has_a_gate_of_its_own(sides: str, weighs: tuple[str, ...], gates: set[str]) -> None:
    scorer = Trial(8, TrialConfig(sides=sides))
    assert scorer.weighs == weighs
    assert {name.split(".")[0] for name in scorer.state_dict()} == {"relation", *gates}
    projected = torch.randn(2, 3, 8)
    found = scorer.query_weights(projected, None), scorer.document_weights(projected, None)
    assert [each is not None for each in found] == ["queries" in weighs, "documents" in weighs]
    if sides == "both":
        assert not torch.equal(*found)


def test_without_gates_and_relations_trial_is_maxsim() -> None:
    rng = np.random.default_rng(3)
    queries, documents = random_texts(rng, 3, 4, 6, weights=False), random_texts(rng, 5, 6, 6, weights=False)
    scorer = Trial(6, TrialConfig(sides="none", relation_weight=0))
    assert torch.equal(scorer(queries, documents), maxsim.scores(queries, documents))


def test_the_setting_first_match_reaches_the_scores_of_training_and_search() -> None:
    rng = np.random.default_rng(4)
    queries, documents = random_texts(rng, 3, 5, 6, weights=True), random_texts(rng, 5, 6, 6, weights=False)
    torch.manual_seed(0)
    best, first = (Trial(6, TrialConfig(relation_weight=9.0, first_match=match)).double() for match in ("best", "first_token"))
    first.load_state_dict(best.state_dict())
    assert not torch.allclose(best.training_scores(queries, documents)[0], first.training_scores(queries, documents)[0])
    assert [scorer.to_arrays().from_first_token for scorer in (best, first)] == [False, True]
