"""An alias of tests.support.checkpoints, for scripts outside the repository."""

from tests.support.checkpoints import put_together

__all__ = ["put_together"]
