"""EngineConfig: the base class of the query-time parameters of every engine."""

from ray_lir.base.config import Config


class EngineConfig(Config):
    """Parameters of an engine. A subclass fixes `engine` to the name of its engine."""

    engine: str
