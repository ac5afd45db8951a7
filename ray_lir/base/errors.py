"""The errors that ray_lir raises: every message is one line that says what was wrong and what to do."""


class RayLirError(Exception):
    """Base of all errors that a user can mend; jobs print the message alone and exit with code 2.

    Arguments are positional and plain, because exceptions are pickled when they cross Ray.
    """


class ConfigError(RayLirError):
    """A setting, path or request is wrong; nothing was written."""


class FormatError(RayLirError):
    """A file is not what its format says.

    Args:
        path: the file or folder.
        expected: what should have been there.
        found: what was there instead.
        fix: what to do about it.
    """

    def __init__(self, path: str, expected: str, found: str, fix: str = ""):
        super().__init__(path, expected, found, fix)
        self.path, self.expected, self.found, self.fix = path, expected, found, fix

    def __str__(self) -> str:
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.path}: expected {self.expected}, found {self.found}{fix}"


class UnsupportedVersion(FormatError):
    """The format is newer than this ray_lir."""


class IncompatibleError(RayLirError):
    """Two parts that were made apart do not belong together (an index and another encoder, say)."""


class KernelUnavailable(RayLirError):
    """The chosen kernels cannot run on this machine."""


class ShardUnavailable(RayLirError):
    """A shard did not answer."""


class NotFound(RayLirError):
    """There is no such document."""


class Unauthenticated(RayLirError):
    """The service asks for a token, and none that it knows was given."""


class Forbidden(RayLirError):
    """The token is good, but not for this."""


class Conflict(RayLirError):
    """The index is being changed by somebody else, or not in a state for this change."""


class Overloaded(RayLirError):
    """The service is at its limit; the same request may be answered a moment later.

    Args:
        message: what is wrong.
        retry_after_s: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after_s: int = 1):
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class ServiceUnavailable(RayLirError):
    """No service answers at an address."""
