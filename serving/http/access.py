"""Access control: bearer tokens and their permissions. Processes hold and exchange digests of tokens, never the tokens themselves."""

import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import Field, ValidationError

from ray_lir import storage
from ray_lir.api.search import first_problem
from ray_lir.base.config import Config, parse_yaml
from ray_lir.base.errors import ConfigError, Forbidden, Unauthenticated

from .rate_limit import RateLimit

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = ("read", "write", "admin")
"""Each role includes the ones before it."""
MIN_CHARACTERS = 16

Credentials = Annotated[
    HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False, description="A token from the service's token file."))
]


class Grant(Config):
    """The permissions of a token.

    Attributes:
        role: read; write, which may also read; or admin, which may do everything.
        indexes: Names of the indexes that it may use, in a service of several. None: all.
        requests_per_second: Most requests a second, on average; as many may come at once, at least one. None: no limit.
    """

    role: Role
    indexes: tuple[str, ...] | None = None
    requests_per_second: float | None = None


class Access(Config):
    """Who may call which routes.

    Attributes:
        grants: Permissions, by the sha256 (hex) of the token. Empty: everyone may read, and no one may write or administrate.
        origins: Web origins with pages that may call the service, such as https://search.example.org.
    """

    grants: dict[str, Grant] = {}
    origins: tuple[str, ...] = ()


class _Limited(Config):
    """A token with limits, as a token file lists it."""

    token: str
    indexes: tuple[str, ...] | None = Field(None, min_length=1)
    requests_per_second: float | None = Field(None, gt=0, le=1e6, allow_inf_nan=False)


def read_tokens(path: str) -> dict[str, Grant]:
    """Return the permissions of each token of a token file, by the sha256 (hex) of the token.

    The file is YAML with lists of tokens under `read`, `write` and `admin`; each list is optional. An entry is a token, or a mapping with
    `token`, and `indexes`, `requests_per_second` or both.

    Raises:
        ConfigError: The file has another content, or a token is too short to be safe.
    """
    with storage.wrap_errors("read", path):
        text = storage.read_bytes(path)
    try:
        listed = parse_yaml(text)
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not listed or not set(listed) <= set(ROLES):
        raise ConfigError(f"{path} is not a token file; write YAML like `read: [TOKEN]`, `write: [TOKEN]` and `admin: [TOKEN]`")
    grants: dict[str, Grant] = {}
    for role in ROLES:
        entries = listed.get(role) or []
        if not isinstance(entries, list):
            raise ConfigError(f"{path}: {role} is not a list; write `{role}: [TOKEN]`")
        for entry in entries:
            limited = _limited(path, role, entry)
            grants[_digest(limited.token)] = Grant(role=role, indexes=limited.indexes, requests_per_second=limited.requests_per_second)
    if not grants:
        raise ConfigError(f"{path} lists no token; create one with `openssl rand -hex 32`")
    return grants


def _limited(path: str, role: Role, entry: Any) -> _Limited:
    """One entry of a token file. No message contains the token."""
    fields = entry if isinstance(entry, dict) else {"token": entry}
    token = fields.get("token")
    if not isinstance(token, str) or len(token) < MIN_CHARACTERS:
        raise ConfigError(
            f"{path}: a token under {role} is shorter than {MIN_CHARACTERS} characters; create one with `openssl rand -hex 32`"
        )
    try:
        return _Limited.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(f"{path}: a token under {role}: {first_problem(error.errors(), _Limited)}") from None


def check_address(host: str, access: Access) -> None:
    """Check that a service that other machines can reach requires tokens.

    Raises:
        ConfigError: It does not.
    """
    if not access.grants and not _is_loopback(host):
        raise ConfigError(f"other machines can reach {host}; set tokens to a token file, or listen on 127.0.0.1")


class Guard:
    """Checks the token of each request: its role, its indexes and its rate.

    Args:
        access: Who may call which routes.
        refused: Called for each request above a token's rate.
    """

    def __init__(self, access: Access, refused: Callable[[], None] = lambda: None):
        self.access = access
        self._refused = refused
        self._limits = {
            digest: RateLimit(grant.requests_per_second) for digest, grant in access.grants.items() if grant.requests_per_second is not None
        }

    def check(self, role: Role, credentials: HTTPAuthorizationCredentials | None, index: str | None = None) -> Grant:
        """Return the permissions of a request's token.

        Args:
            role: Role that the route requires.
            credentials: The request's bearer token. None: it has none.
            index: Name of the index that the request uses, in a service of several. None: the only one, or no index.

        Raises:
            Unauthenticated: The service requires a token, and this one is missing or unknown.
            Forbidden: The token does not have the role, or is limited to other indexes. The message is the same whether there is such an
                index or not.
            Overloaded: The token's rate is exceeded.
        """
        if not self.access.grants:
            if role != "read":
                action = "write to" if role == "write" else "administrate"
                raise Forbidden(f"this service has no tokens, so no one may {action} it; start it with tokens set to a token file")
            return Grant(role="read")
        digest = _digest(credentials.credentials) if credentials else ""
        grant = self._grant(digest)
        if grant is None:
            raise Unauthenticated("send a token of this service as `Authorization: Bearer TOKEN`")
        if digest in self._limits:
            self._limits[digest].enter(self._refused)
        if index is not None and grant.indexes is not None and index not in grant.indexes:
            raise Forbidden(f"this token may not use index {index!r}, only {', '.join(grant.indexes)}")
        if ROLES.index(grant.role) < ROLES.index(role):
            rights = "only read" if grant.role == "read" else "only read and write"
            raise Forbidden(f"this token may {rights}; send {'a write or admin' if role == 'write' else 'an admin'} token")
        return grant

    def _grant(self, digest: str) -> Grant | None:
        """Compares every digest, so that the time of a comparison reveals nothing about the tokens."""
        found = None
        for known, grant in self.access.grants.items():
            if hmac.compare_digest(known, digest):
                found = grant
        return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
