"""Late-interaction scorers as differentiable torch functions, by name."""

from ray_lir.models.scorers import maxsim

SCORERS = {"maxsim": maxsim.scores}
