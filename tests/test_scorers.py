"""The differentiable scorers against hand numbers and golden vectors."""

import pytest
import torch

from ray_lir.models.scorers import SCORERS, maxsim
from tests.golden_files import golden


def test_maxsim_adds_up_the_best_similarity_of_each_query_token() -> None:
    query = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    documents = torch.tensor([[[1.0, 0.0], [0.5, 0.25]], [[-1.0, 0.0], [0.0, -1.0]]])
    assert maxsim.scores(query, documents).tolist() == [[1.25, 0.0]]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_maxsim_gives_the_golden_scores(dtype: torch.dtype, tolerance: float) -> None:
    values = {name: torch.from_numpy(array) for name, array in golden("maxsim").items()}
    scores = SCORERS["maxsim"](values["q"].to(dtype), values["d"].to(dtype), values["q_mask"], values["d_mask"])
    assert torch.allclose(scores.double(), values["scores"], rtol=0, atol=tolerance)


def test_padding_never_wins_over_negative_similarity() -> None:
    query, document = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[-1.0, 0.0], [0.0, 0.0]]])
    assert maxsim.scores(query, document, document_mask=torch.tensor([[True, False]])).item() == -1.0


def test_masked_query_tokens_add_nothing() -> None:
    query, document = torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), torch.tensor([[[0.5, 0.0]]])
    assert maxsim.scores(query, document, query_mask=torch.tensor([[True, False]])).item() == 0.5


@pytest.mark.parametrize("query_mask", [[[True, True]], [[False, False]]])
def test_a_document_without_tokens_scores_minus_infinity_and_harms_no_gradient(query_mask: list) -> None:
    query = torch.randn(1, 2, 4, requires_grad=True)
    documents = torch.randn(2, 3, 4, requires_grad=True)
    scores = maxsim.scores(query, documents, torch.tensor(query_mask), torch.tensor([[True, True, False], [False, False, False]]))
    assert scores[0, 1] == -torch.inf and torch.isfinite(scores[0, 0])
    scores[0, 0].backward()
    assert torch.isfinite(query.grad).all() and torch.isfinite(documents.grad).all()
    assert not documents.grad[1].any() and not documents.grad[0, 2].any()


def test_the_gradient_of_maxsim_is_that_of_its_definition() -> None:
    torch.manual_seed(0)
    query = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    documents = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    query_mask = torch.tensor([[True, True, True], [True, True, False]])
    document_mask = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    assert torch.autograd.gradcheck(lambda q, d: maxsim.scores(q, d, query_mask, document_mask), (query, documents))
