"""Training losses over the scores of a batch: B queries, N documents (ALGORITHMS 3.3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional

MIN_TEMPERATURE = 1e-3


class ContrastiveLoss(nn.Module):
    """Cross-entropy of each query's own document against every other document of the batch, at a learned temperature.

    The temperature is a plain scalar parameter, not its logarithm; `hold_temperature` after each step of the optimiser keeps
    it from falling below MIN_TEMPERATURE.
    """

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def forward(self, scores_BN: Tensor, own_B: Tensor, excluded_BN: Tensor) -> Tensor:
        """The mean loss over the queries, a scalar.

        Args:
            scores_BN: score of each query with each document of the batch.
            own_B: int64, the column of each query's own document.
            excluded_BN: bool, True for a query's other known positives: they are no negatives.
        """
        logits_BN = scores_BN / self.temperature
        # Masked after the division, whose gradient by the temperature would be 0 * inf.
        return functional.cross_entropy(logits_BN.masked_fill(excluded_BN, -torch.inf), own_B)

    @torch.no_grad()
    def hold_temperature(self) -> None:
        self.temperature.clamp_(min=MIN_TEMPERATURE)
