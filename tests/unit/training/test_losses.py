"""Losses against numbers by hand and golden vectors, with known positives, teachers and temperatures."""

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ray_lir.base.config import TrainingConfig
from ray_lir.scorers import xtr
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.training.losses import MIN_TEMPERATURE, ContrastiveLoss, DistillationLoss, Objective, Targets, min_max, query_weight_penalty
from tests.support.golden_files import golden
from tests.unit.scorers.test_xtr import golden_texts

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 3.0]])
OWN = torch.tensor([0, 1])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)
QUERIES = EmbeddedTexts(torch.zeros(2, 3, 4), torch.tensor([[True, True, True], [True, False, False]]), torch.arange(6.0).view(2, 3))


def test_loss_is_the_mean_cross_entropy_at_the_temperature():
    first = -math.log(math.exp(4) / (math.exp(4) + math.exp(2) + 1))
    second = -math.log(math.exp(6) / (1 + 2 * math.exp(6)))
    assert ContrastiveLoss(0.5)(SCORES, OWN, NOTHING).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_other_positives_of_a_query_are_not_negatives():
    excluded = NOTHING.clone()
    excluded[1, 2] = True
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))
    second = -math.log(math.exp(3) / (1 + math.exp(3)))
    assert ContrastiveLoss(1.0)(SCORES, OWN, excluded).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_excluded_documents_get_no_gradient_and_the_temperatures_gradient_is_finite():
    loss, scores, excluded = ContrastiveLoss(0.2), SCORES.clone().requires_grad_(), NOTHING.clone()
    excluded[1, 2] = True
    loss(scores, OWN, excluded).backward()
    assert scores.grad[1, 2] == 0
    assert torch.isfinite(loss.temperature.grad) and loss.temperature.grad != 0


def test_temperatures_stop_at_their_floor_and_can_rise_again():
    objective = Objective(TrainingConfig(distillation_weight=1.0, num_negatives=1))
    with torch.no_grad():
        for temperature in objective.parameters():
            temperature -= 2.0
    objective.hold_temperatures()
    assert [temperature.item() for temperature in objective.parameters()] == pytest.approx([MIN_TEMPERATURE] * 2)
    wrong = torch.tensor([1, 0])
    objective.contrastive(SCORES, wrong, NOTHING).backward()
    assert objective.contrastive.temperature.grad < 0


def test_the_contrastive_loss_of_xtr_is_the_golden_one_alone_and_stacked():
    values = golden("xtr_train")
    num_queries, num_documents = values["q"].shape[0], values["d"].shape[1]
    targets = Targets(torch.arange(num_queries) * num_documents, torch.zeros(num_queries, num_queries * num_documents, dtype=torch.bool))
    objective = Objective(TrainingConfig(temperature=float(values["temperature"]))).double()
    scores = dict(zip((12, 5, 2), xtr.scores(*golden_texts(), (12, 5, 2)), strict=True))
    for k, each in scores.items():
        assert objective([each], QUERIES, targets).item() == pytest.approx(float(values[f"ce_k{k}"]), abs=1e-6)
    assert objective([scores[12], scores[5]], QUERIES, targets).item() == pytest.approx(float(values["ce_stack_12_5"]), abs=1e-6)


@pytest.mark.parametrize(("normalize_teacher", "expected"), [(True, "kl_both_minmax"), (False, "kl_student_minmax_only")])
def test_distillation_gives_the_golden_divergences(normalize_teacher: bool, expected: str):
    values = golden("xtr_train")
    loss = DistillationLoss(1.0, normalize_student=True, normalize_teacher=normalize_teacher).double()
    found = loss(torch.from_numpy(values["kd_student"]), torch.from_numpy(values["teacher"]))
    assert found.item() == pytest.approx(float(values[expected]), abs=1e-10)


def test_distillation_compares_a_querys_own_documents_while_all_documents_compete_for_top_k():
    values = golden("xtr_train")
    num_queries, num_documents = values["teacher"].shape
    config = TrainingConfig(contrastive_weight=0.0, distillation_weight=2.0, num_negatives=1)
    targets = Targets(torch.arange(num_queries) * num_documents, torch.zeros(1), torch.from_numpy(values["teacher"]))
    scores = xtr.scores(*golden_texts(), (12,))
    assert Objective(config).double()(scores, QUERIES, targets).item() == pytest.approx(2 * float(values["kl_both_minmax"]), abs=1e-9)


def test_own_cross_entropy_compares_the_positive_with_the_querys_own_negatives():
    scores = torch.tensor([[2.0, 1.0, 9.0, 9.0], [9.0, 9.0, 3.0, 0.0]])
    nothing = torch.zeros(2, 4, dtype=torch.bool)
    targets, alone = Targets(torch.tensor([0, 2]), nothing), {"num_negatives": 1, "contrastive_weight": 0.0, "temperature": 1.0}
    objective = Objective(TrainingConfig(**alone, own_contrastive_weight=2.0))
    expected = 2 * (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(-3))) / 2
    assert objective([scores], QUERIES, targets).item() == pytest.approx(expected, rel=1e-6)
    assert set(objective.terms) == {"own_contrastive"}
    excluded = nothing.clone()
    excluded[0, 1] = True  # a known positive among the query's own documents
    assert objective([scores], QUERIES, Targets(targets.own, excluded)).item() == pytest.approx(math.log(1 + math.exp(-3)), rel=1e-6)
    both = Objective(TrainingConfig(num_negatives=1, own_contrastive_weight=2.0, temperature=1.0))
    in_batch = ContrastiveLoss(1.0)(scores, targets.own, nothing).item()
    assert both([scores], QUERIES, targets).item() == pytest.approx(in_batch + expected, rel=1e-6)
    with pytest.raises(ValidationError, match="own_contrastive_weight needs num_negatives"):
        TrainingConfig(own_contrastive_weight=1.0)


def test_trial_losses_are_the_golden_ones():
    values = golden("trial")
    student, teacher = torch.from_numpy(values["loss_student"]), torch.from_numpy(values["loss_teacher"])
    divergence = DistillationLoss(1.0, normalize_student=False, normalize_teacher=False).double()
    assert divergence(student, teacher).item() == pytest.approx(float(values["loss_kl"]), abs=1e-10)
    first = ContrastiveLoss(1.0)(student, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5, dtype=torch.bool))
    assert first.item() == pytest.approx(float(values["loss_ce_col0"]), abs=1e-10)
    weights = torch.from_numpy(values["w"])[None]
    query = EmbeddedTexts(torch.zeros(1, 6, 8), torch.ones(1, 6, dtype=torch.bool), weights)
    assert query_weight_penalty(query, "l1").item() == pytest.approx(float(values["loss_reg_l1"]), abs=1e-10)
    assert query_weight_penalty(query, "frobenius").item() == pytest.approx(float(values["loss_reg_frobenius"]), abs=1e-10)


def test_gates_of_padding_have_no_penalty_and_other_scorers_have_none():
    assert query_weight_penalty(QUERIES, "l1").item() == ((0 + 1 + 2) + 3) / 2
    assert query_weight_penalty(QUERIES, "frobenius").item() == pytest.approx(math.sqrt(0 + 1 + 4 + 9))
    plain, trial = (Objective(TrainingConfig(scorer=name, gate_weight=0.5)) for name in ("maxsim", "trial"))
    targets = Targets(OWN, NOTHING)
    difference = trial([SCORES], QUERIES, targets) - plain([SCORES], QUERIES, targets)
    assert difference.item() == pytest.approx(0.5 * 3)


@pytest.mark.parametrize("shift", [0.0, 7.5])
def test_distillation_ignores_a_constant_added_to_the_teachers_scores(shift: float):
    """Therefore jobs.mine may shift a cross-encoder's logits to be at least 0."""
    teacher = torch.tensor([[3.0, -1.0, 0.5], [0.0, 0.1, 0.2]])
    for normalize in (True, False):
        loss = DistillationLoss(1.0, normalize, normalize)
        assert loss(SCORES, teacher + shift).item() == pytest.approx(loss(SCORES, teacher).item(), abs=1e-5)


def test_equal_scores_do_not_divide_by_zero():
    assert min_max(torch.full((1, 3), 4.0)).tolist() == [[0.0, 0.0, 0.0]]
    scores = torch.full((1, 3), 4.0, requires_grad=True)
    DistillationLoss(1.0, True, True)(scores, torch.tensor([[1.0, 2.0, 3.0]])).backward()
    assert torch.isfinite(scores.grad).all()


def test_distillation_loss_is_zero_if_the_student_agrees_with_the_teacher():
    loss = DistillationLoss(1.0, True, True)
    teacher = torch.tensor([[0.0, 2.0, 1.0]])
    assert loss(10 * teacher + 3, teacher).item() == pytest.approx(0, abs=1e-6)
    assert loss(-teacher, teacher).item() > 0.1


@pytest.mark.parametrize("loss", [{"contrastive_weight": 0.0}, {"distillation_weight": 1.0}])
def test_a_training_without_a_loss_is_refused(loss: dict):
    with pytest.raises(ValidationError, match="cannot all be 0|needs num_negatives of at least 1"):
        TrainingConfig(**loss)


def test_the_l2_penalty_is_the_mean_length_of_a_querys_gates():
    assert query_weight_penalty(QUERIES, "l2").item() == pytest.approx((math.sqrt(0 + 1 + 4) + 3) / 2)
    weights = torch.zeros(2, 3, requires_grad=True)
    query_weight_penalty(EmbeddedTexts(torch.zeros(2, 3, 4), torch.ones(2, 3, dtype=torch.bool), weights), "l2").backward()
    assert torch.equal(weights.grad, torch.zeros(2, 3))


def test_fixed_temperatures_are_not_optimised():
    config = TrainingConfig(distillation_weight=1.0, num_negatives=1, temperature=0.3, learn_temperatures=False)
    objective = Objective(config)
    assert objective.temperature == pytest.approx(0.3) and objective.distillation_temperature == 1.0
    assert not any(parameter.requires_grad for parameter in objective.parameters())
    assert "learn_temperatures" not in TrainingConfig().model_dump() and config.model_dump()["learn_temperatures"] is False


def test_all_temperatures_are_optimised():
    config = TrainingConfig(distillation_weight=1.0, num_negatives=1, temperature=0.3, distillation_temperature=0.7)
    assert [round(parameter.item(), 3) for parameter in Objective(config).parameters()] == [0.3, 0.7]
    assert Objective(config).temperature == pytest.approx(0.3)
    alone = TrainingConfig(contrastive_weight=0.0, distillation_weight=1.0, num_negatives=1)
    assert Objective(alone).temperature == 1.0
    assert np.isclose(len(list(Objective(alone).parameters())), 1)
