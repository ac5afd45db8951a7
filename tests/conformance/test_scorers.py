"""The differentiable scorers against golden vectors, numbers by hand, naive definitions and finite differences."""

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from ray_lir.base.config import Config, TrainingConfig, TrialConfig, XtrConfig
from ray_lir.scorers import SCORERS, Scorer, interaction, maxsim
from ray_lir.scorers.batches import EmbeddedTexts
from tests.support.golden_files import golden

PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
SETTINGS: dict[str, Config] = {
    "maxsim": Config(),
    "xtr": XtrConfig(k_train=(7, 3)),
    "trial": TrialConfig(),
    "attention": SCORERS["attention"].Settings(),
}


def texts(vectors: object, mask: object = None, weights: object = None, dtype: torch.dtype = torch.float32) -> EmbeddedTexts:
    vectors = torch.as_tensor(vectors).to(dtype)
    mask = torch.ones(vectors.shape[:2], dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    return EmbeddedTexts(vectors, mask, None if weights is None else torch.as_tensor(weights).to(dtype))


def make(name: str, dim: int, dtype: torch.dtype = torch.float64, settings: Config | None = None) -> Scorer:
    torch.manual_seed(7)
    scorer = SCORERS[name](dim, settings or SETTINGS[name]).to(dtype)
    for parameter in scorer.parameters():  # fresh heads score nearly like MaxSim
        torch.nn.init.normal_(parameter, std=0.5)
    return scorer


def random_texts(rng: np.random.Generator, count: int, length: int, dim: int, weights: bool) -> EmbeddedTexts:
    vectors = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(count, length, dim))), dim=-1)
    mask = torch.from_numpy(rng.random((count, length)) < 0.8)
    mask[:, 0] = True
    return EmbeddedTexts(vectors * mask[..., None], mask, torch.from_numpy(rng.random((count, length)) + 0.5) if weights else None)


def both_scores(scorer: Scorer, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
    return [scorer(queries, documents), *scorer.training_scores(queries, documents)]


def test_every_scorer_can_be_chosen_and_tested() -> None:
    assert set(get_args(TrainingConfig.model_fields["scorer"].annotation)) == set(SCORERS) == set(SETTINGS)
    assert all(kind.name == name for name, kind in SCORERS.items())
    assert all(name == "maxsim" or TrainingConfig.model_fields[name].annotation is kind.Settings for name, kind in SCORERS.items())


def test_maxsim_adds_up_the_best_similarity_of_each_query_token() -> None:
    query = texts([[[1.0, 0.0], [0.0, 1.0]]])
    documents = texts([[[1.0, 0.0], [0.5, 0.25]], [[-1.0, 0.0], [0.0, -1.0]]])
    assert maxsim.scores(query, documents).tolist() == [[1.25, 0.0]]


@PRECISIONS
def test_maxsim_gives_the_golden_scores(dtype: torch.dtype, tolerance: float) -> None:
    values = golden("maxsim")
    scores = maxsim.scores(texts(values["q"], values["q_mask"], dtype=dtype), texts(values["d"], values["d_mask"], dtype=dtype))
    np.testing.assert_allclose(scores, values["scores"], rtol=0, atol=tolerance)


def test_padding_never_wins_over_negative_similarity() -> None:
    query, document = texts([[[1.0, 0.0]]]), texts([[[-1.0, 0.0], [0.0, 0.0]]], [[True, False]])
    assert maxsim.scores(query, document).item() == -1.0


def test_masked_query_tokens_add_nothing() -> None:
    query, document = texts([[[1.0, 0.0], [1.0, 0.0]]], [[True, False]]), texts([[[0.5, 0.0]]])
    assert maxsim.scores(query, document).item() == 0.5


def test_token_weights_scale_the_winning_token_without_choosing_it() -> None:
    query = texts([[[1.0, 0.0]]], weights=[[3.0]])
    document = texts([[[0.5, 0.0], [0.25, 0.0]]], weights=[[1.0, 100.0]])
    assert maxsim.scores(query, document).item() == 1.5


@pytest.mark.parametrize("query_mask", [[[True, True]], [[False, False]]])
def test_a_document_without_tokens_scores_minus_infinity_with_finite_gradients(query_mask: list) -> None:
    query = torch.randn(1, 2, 4, requires_grad=True)
    documents = torch.randn(2, 3, 4, requires_grad=True)
    scores = maxsim.scores(texts(query, query_mask), texts(documents, [[True, True, False], [False, False, False]]))
    assert scores[0, 1] == -torch.inf and torch.isfinite(scores[0, 0])
    scores[0, 0].backward()
    assert torch.isfinite(query.grad).all() and torch.isfinite(documents.grad).all()
    assert not documents.grad[1].any() and not documents.grad[0, 2].any()


@pytest.mark.parametrize("name", SCORERS)
def test_gradients_equal_finite_differences(name: str) -> None:
    rng = np.random.default_rng(3)
    queries, documents = random_texts(rng, 2, 4, 5, weights=name != "xtr"), random_texts(rng, 3, 5, 5, weights=name == "attention")
    scorer = make(name, 5)
    leaves = [texts.vectors for texts in (queries, documents)] + [
        texts.weights for texts in (queries, documents) if texts.weights is not None
    ]
    heads = dict(scorer.named_parameters())

    def score(*values: Tensor) -> tuple[Tensor, ...]:
        vectors, weights, parameters = values[:2], list(values[2 : len(leaves)]), values[len(leaves) :]
        sides = [
            EmbeddedTexts(part, side.mask, weights.pop(0) if side.weights is not None else None)
            for part, side in zip(vectors, (queries, documents), strict=True)
        ]
        replaced = dict(zip(heads, parameters, strict=True))
        return torch.func.functional_call(_Both(scorer), {f"scorer.{key}": value for key, value in replaced.items()}, tuple(sides))

    inputs = [leaf.detach().clone().requires_grad_() for leaf in [*leaves, *heads.values()]]
    assert torch.autograd.gradcheck(score, inputs, fast_mode=len(heads) > 0)


class _Both(torch.nn.Module):
    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> tuple[Tensor, ...]:
        return tuple(both_scores(self.scorer, queries, documents))


@pytest.mark.parametrize("name", SCORERS)
def test_chunk_size_changes_no_score(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    queries, documents = random_texts(rng, 3, 4, 6, weights=True), random_texts(rng, 7, 5, 6, weights=True)
    scorer = make(name, 6)
    whole = both_scores(scorer, queries, documents)
    monkeypatch.setitem(interaction.CHUNK_VALUES, "cpu", 1)
    for one, other in zip(both_scores(scorer, queries, documents), whole, strict=True):
        np.testing.assert_allclose(one.detach(), other.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORERS)
def test_padding_changes_no_score(name: str) -> None:
    """The content of padding changes no score and does not enter the pool."""
    rng = np.random.default_rng(5)
    queries, documents = random_texts(rng, 3, 4, 6, weights=True), random_texts(rng, 5, 5, 6, weights=True)
    scorer = make(name, 6)

    def padded(side: EmbeddedTexts, fill: float) -> EmbeddedTexts:
        pad = torch.nn.functional.pad
        return EmbeddedTexts(pad(side.vectors, (0, 0, 0, 3), value=fill), pad(side.mask, (0, 3)), pad(side.weights, (0, 3), value=fill))

    expected = both_scores(scorer, queries, documents)
    for fill in (0.0, 9.0):
        for one, other in zip(both_scores(scorer, padded(queries, fill), padded(documents, fill)), expected, strict=True):
            np.testing.assert_allclose(one.detach(), other.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SCORERS)
def test_a_pairs_score_does_not_depend_on_its_batch(name: str) -> None:
    """Training scores of xtr depend on the pool by definition; tests/unit/scorers/test_xtr.py checks that."""
    rng = np.random.default_rng(6)
    queries, documents = random_texts(rng, 3, 6, 6, weights=True), random_texts(rng, 5, 5, 6, weights=True)
    scorer = make(name, 6)
    whole = scorer(queries, documents).detach()
    for i in range(3):
        for j in range(5):
            one, other = (
                EmbeddedTexts(*(value[n : n + 1][:, side.mask[n].nonzero()[:, 0]] for value in (side.vectors, side.mask, side.weights)))
                for n, side in ((i, queries), (j, documents))
            )
            assert scorer(one, other).item() == pytest.approx(whole[i, j].item(), abs=1e-12)
