"""Late-interaction scorers as differentiable torch functions, by name."""

from ray_lir.scorers.attention import Attention
from ray_lir.scorers.maxsim import MaxSim
from ray_lir.scorers.scorer import Scorer
from ray_lir.scorers.trial import Trial
from ray_lir.scorers.xtr import Xtr

SCORERS: dict[str, type[Scorer]] = {"maxsim": MaxSim, "xtr": Xtr, "trial": Trial, "attention": Attention}
