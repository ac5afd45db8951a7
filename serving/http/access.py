"""Access control: bearer tokens and their roles. Processes hold and exchange digests of tokens, never the tokens themselves."""

import hashlib
import hmac
import ipaddress
from typing import Annotated, Literal

from fastapi import Depends, Security, params
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_lir import storage
from ray_lir.base.config import Config, parse_yaml
from ray_lir.base.errors import ConfigError, Forbidden, Unauthenticated

Role = Literal["read", "admin"]
MIN_CHARACTERS = 16

_bearer = HTTPBearer(auto_error=False, description="A token from the service's token file.")


class Access(Config):
    """Who may call which routes.

    Attributes:
        roles: Role by the sha256 (hex) of a token. Empty: everyone may read, and no one may administrate.
        origins: Web origins with pages that may call the service, such as https://search.example.org.
    """

    roles: dict[str, Role] = {}
    origins: tuple[str, ...] = ()


def read_tokens(path: str) -> dict[str, Role]:
    """Return the role of each token in a token file, by the sha256 (hex) of the token.

    The file is YAML with a list of tokens under `read`, `admin` or both.

    Raises:
        ConfigError: The file has another content, or a token is too short to be safe.
    """
    with storage.wrap_errors("read", path):
        text = storage.read_bytes(path)
    try:
        listed = parse_yaml(text)
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not listed or not set(listed) <= {"read", "admin"}:
        raise ConfigError(f"{path} is not a token file; write YAML like `read: [TOKEN]` and `admin: [TOKEN]`")
    roles: dict[str, Role] = {}
    for role in ("read", "admin"):
        tokens = listed.get(role) or []
        if not isinstance(tokens, list):
            raise ConfigError(f"{path}: {role} is not a list; write `{role}: [TOKEN]`")
        for token in tokens:
            if not isinstance(token, str) or len(token) < MIN_CHARACTERS:
                raise ConfigError(
                    f"{path}: a token under {role} is shorter than {MIN_CHARACTERS} characters; create one with `openssl rand -hex 32`"
                )
            roles[_digest(token)] = role
    if not roles:
        raise ConfigError(f"{path} lists no token; create one with `openssl rand -hex 32`")
    return roles


def check_address(host: str, access: Access) -> None:
    """Check that a service that other machines can reach requires tokens.

    Raises:
        ConfigError: It does not.
    """
    if not access.roles and not _is_loopback(host):
        raise ConfigError(f"other machines can reach {host}; set tokens to a token file, or listen on 127.0.0.1")


def require(role: Role, access: Access) -> params.Depends:
    """Return a FastAPI dependency that requires a token with a role. Admin tokens may also read."""

    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        if not access.roles:
            if role == "admin":
                raise Forbidden("this service has no tokens, so no one may administrate it; start it with tokens set to a token file")
            return
        actual = _role_of(credentials.credentials, access) if credentials else None
        if actual is None:
            raise Unauthenticated("send a token of this service as `Authorization: Bearer TOKEN`")
        if role == "admin" and actual != "admin":
            raise Forbidden("this token may only read; send an admin token")

    return Depends(check)


def _role_of(token: str, access: Access) -> Role | None:
    """Compares every digest, so that the time of a comparison reveals nothing about the tokens."""
    digest, found = _digest(token), None
    for known, role in access.roles.items():
        if hmac.compare_digest(known, digest):
            found = role
    return found


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
