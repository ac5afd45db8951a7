"""Access: bearer tokens and the roles that they have. Tokens stay in their file; what travels and is kept are digests."""

import hashlib
import hmac
import ipaddress
from typing import Annotated, Literal

from fastapi import Depends, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from ray_lir import storage
from ray_lir.base.config import Config, parse_yaml
from ray_lir.base.errors import ConfigError, Forbidden, Unauthenticated

Role = Literal["read", "admin"]
MIN_CHARACTERS = 16

_bearer = HTTPBearer(auto_error=False, description="A token of the service's token file.")


class Access(Config):
    """Who may do what.

    Attributes:
        roles: role by the sha256 (hex) of a token. Empty: everybody may read, and nobody may administrate.
        origins: web pages of other origins that may call the service, such as https://search.example.org.
    """

    roles: dict[str, Role] = {}
    origins: tuple[str, ...] = ()


def read_tokens(path: str) -> dict[str, Role]:
    """The roles in a token file: YAML with a list of tokens under `read`, `admin` or both.

    Raises:
        ConfigError: if the file is not that, or a token is short enough to be guessed.
    """
    with storage.wrap_errors("read", path):
        text = storage.read_bytes(path)
    try:
        listed = parse_yaml(text)
    except ValueError:
        listed = None
    if not isinstance(listed, dict) or not listed or not set(listed) <= {"read", "admin"}:
        raise ConfigError(f"{path} is no token file; write YAML like `read: [TOKEN]` and `admin: [TOKEN]`")
    roles: dict[str, Role] = {}
    for role in ("read", "admin"):
        tokens = listed.get(role) or []
        if not isinstance(tokens, list):
            raise ConfigError(f"{path}: {role} is not a list; write `{role}: [TOKEN]`")
        for token in tokens:
            if not isinstance(token, str) or len(token) < MIN_CHARACTERS:
                raise ConfigError(
                    f"{path}: a token under {role} is shorter than {MIN_CHARACTERS} characters; make one with `openssl rand -hex 32`"
                )
            roles[_digest(token)] = role
    if not roles:
        raise ConfigError(f"{path} lists no token; make one with `openssl rand -hex 32`")
    return roles


def check_address(host: str, access: Access) -> None:
    """Raises ConfigError if the service would be open to a network without asking for tokens."""
    if not access.roles and not _is_loopback(host):
        raise ConfigError(f"listening on {host} lets a network in; set tokens to a token file, or listen on 127.0.0.1")


def asks_for(role: Role, access: Access) -> Depends:
    """A dependency of routes: lets in who has a token with that role; an admin may read."""

    async def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        if not access.roles:
            if role == "admin":
                raise Forbidden("nobody may administrate this service; start it with tokens set to a token file")
            return
        have = _role_of(credentials.credentials, access) if credentials else None
        if have is None:
            raise Unauthenticated("send a token of this service as `Authorization: Bearer TOKEN`")
        if role == "admin" and have != "admin":
            raise Forbidden("this token may read; send one that may administrate")

    return Depends(check)


def _role_of(token: str, access: Access) -> Role | None:
    """Every digest is compared, so that the time taken says nothing."""
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
