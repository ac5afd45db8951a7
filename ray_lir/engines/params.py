"""EngineConfig and RescoringConfig: the base classes of the query-time parameters of engines."""

from pydantic import Field

from ray_lir.base.config import Config


class EngineConfig(Config):
    """Parameters of an engine. A subclass fixes `engine` to the name of its engine."""

    engine: str


class RescoringConfig(EngineConfig):
    """Parameters of an engine that computes exact scores. They limit TRIAL's relations; indexes of other scorers do not use them."""

    relation_candidates: int | None = Field(None, ge=1, exclude_if=lambda count: count is None)
    """Document tokens that each query token is related to: the best by cosine plus relation to first order. None: all, which is exact."""
    relation_documents: int | None = Field(None, ge=1, exclude_if=lambda count: count is None)
    """Documents with relations: the best with relations to first order. None: 2 k + 10 if relation_candidates is set, otherwise all."""
