"""The contrastive loss by hand numbers, and what it does with known positives and with its temperature."""

import math
from typing import get_args

import pytest
import torch

from ray_lir.config import TrainingConfig
from ray_lir.models.losses import MIN_TEMPERATURE, ContrastiveLoss
from ray_lir.models.scorers import SCORERS

SCORES = torch.tensor([[2.0, 1.0, 0.0], [0.0, 3.0, 3.0]])
OWN = torch.tensor([0, 1])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)


def test_loss_is_the_mean_cross_entropy_at_the_temperature():
    first = -math.log(math.exp(4) / (math.exp(4) + math.exp(2) + 1))
    second = -math.log(math.exp(6) / (1 + 2 * math.exp(6)))
    assert ContrastiveLoss(0.5)(SCORES, OWN, NOTHING).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_other_positives_of_a_query_are_no_negatives():
    excluded = NOTHING.clone()
    excluded[1, 2] = True
    first = -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))
    second = -math.log(math.exp(3) / (1 + math.exp(3)))
    assert ContrastiveLoss(1.0)(SCORES, OWN, excluded).item() == pytest.approx((first + second) / 2, rel=1e-6)


def test_excluded_documents_get_no_gradient_and_leave_the_temperature_a_finite_one():
    loss, scores, excluded = ContrastiveLoss(0.2), SCORES.clone().requires_grad_(), NOTHING.clone()
    excluded[1, 2] = True
    loss(scores, OWN, excluded).backward()
    assert scores.grad[1, 2] == 0
    assert torch.isfinite(loss.temperature.grad) and loss.temperature.grad != 0


def test_temperature_stops_at_its_floor_and_can_rise_again():
    loss = ContrastiveLoss(0.2)
    with torch.no_grad():
        loss.temperature -= 1.0
    loss.hold_temperature()
    assert loss.temperature.item() == pytest.approx(MIN_TEMPERATURE)
    wrong = torch.tensor([1, 0])
    loss(SCORES, wrong, NOTHING).backward()
    assert loss.temperature.grad < 0


def test_every_scorer_can_be_chosen():
    assert set(get_args(TrainingConfig.model_fields["scorer"].annotation)) | {TrainingConfig().scorer} == set(SCORERS)
