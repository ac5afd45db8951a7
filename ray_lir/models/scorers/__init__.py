"""Late-interaction scorers as differentiable torch functions, by name."""

from collections.abc import Callable

import torch

from ray_lir.models.scorers import maxsim

SCORERS: dict[str, Callable[..., torch.Tensor]] = {"maxsim": maxsim.scores}
