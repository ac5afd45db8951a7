"""The errors that ray_lir raises. Every message is one line that says what is wrong and what to do."""


class RayLirError(Exception):
    """Base class of errors that a user can fix. Jobs print only the message and exit with code 2.

    Arguments are positional and of simple types, because Ray pickles exceptions.
    """


class ConfigError(RayLirError):
    """A setting, path or request is wrong. Nothing was written."""


class InvalidDocument(ConfigError):
    """Documents to write are not usable. None of them was accepted."""


class FormatError(RayLirError):
    """A file is missing, damaged or of another format.

    Args:
        path: The file or folder.
        expected: The expected content.
        found: The actual content.
        fix: What the user can do. Empty: nothing is suggested.
    """

    def __init__(self, path: str, expected: str, found: str, fix: str = ""):
        super().__init__(path, expected, found, fix)
        self.path, self.expected, self.found, self.fix = path, expected, found, fix

    def __str__(self) -> str:
        fix = f"; {self.fix}" if self.fix else ""
        return f"{self.path}: expected {self.expected}, found {self.found}{fix}"


class UnsupportedVersion(FormatError):
    """The file's format version is newer than this version of ray_lir supports."""


class IncompatibleError(RayLirError):
    """Two parts do not belong together, such as an index and another encoder."""


class KernelUnavailable(RayLirError):
    """The requested kernels cannot run on this machine."""


class ShardUnavailable(RayLirError):
    """A deployment of the service did not answer, or too little of the index could be searched."""


class WritesUnavailable(RayLirError):
    """The write log cannot be written, or accepted writes are not yet visible. Repeating a write with its idempotency key is safe."""


class NotFound(RayLirError):
    """The index has no such document."""


class Unauthenticated(RayLirError):
    """The service requires a token, and the request has none or an unknown one."""


class Forbidden(RayLirError):
    """The token is known, but its role does not allow the request."""


class Conflict(RayLirError):
    """Another process is changing the index, or its state does not allow the change."""


class Overloaded(RayLirError):
    """The service has reached its limit of concurrent requests. The same request may succeed later.

    Args:
        message: What is wrong and what to do.
        retry_after_s: Seconds to wait before the next attempt.
    """

    def __init__(self, message: str, retry_after_s: int = 1):
        super().__init__(message, retry_after_s)
        self.message, self.retry_after_s = message, retry_after_s

    def __str__(self) -> str:
        return self.message


class ServiceUnavailable(RayLirError):
    """No service answers at the address."""
