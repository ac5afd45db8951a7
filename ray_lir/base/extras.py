"""Optional packages: which extra of ray_lir installs each, and the error where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from ray_lir.base.errors import ConfigError

EXTRAS = {
    "ray": "cluster",
    "fastapi": "cluster",
    "starlette": "cluster",
    "uvicorn": "cluster",
    "click": "cluster",
    "s3fs": "s3",
    "botocore": "s3",
    "aiobotocore": "s3",
    "ir_measures": "eval",
    "ir_datasets": "datasets",
    "spacy": "tagging",
    "triton": "gpu",
    "haystack": "integrations",
    "langchain_core": "integrations",
    "llama_index": "integrations",
    "mcp": "integrations",
    "tensorboardX": "trackers",
    "mlflow": "trackers",
    "wandb": "trackers",
    "matplotlib": "plot",
    "sentence_transformers": "images",
    "mteb": "integrations",
    "datasets": "integrations",
    "pandas": "integrations",
    "pyterrier": "integrations",
    "dspy": "integrations",
}
"""Name of a module that a plain `pip install ray_lir` leaves out, and the extra that installs it."""
_PACKAGES = {"haystack": "haystack-ai", "llama_index": "llama-index-core", "mlflow": "mlflow-skinny"}
"""Modules with another name than their package."""


def is_installed(module: str) -> bool:
    """Return whether a top-level module can be imported. It is not imported."""
    return find_spec(module) is not None


def require(module: str, purpose: str) -> None:
    """Check that an optional package is installed before it is imported.

    Raises:
        ConfigError: `module` is missing. The message names what needs it (`purpose`) and the command that installs it.
    """
    if not is_installed(module):
        raise ConfigError(missing_message(module, purpose))


def package_of(module: str) -> str:
    """Return the name of the package that holds a module."""
    return _PACKAGES.get(module, module.replace("_", "-"))


@contextmanager
def importing(module: str, purpose: str) -> Iterator[None]:
    """Context in which a module imports an optional package that it cannot do without.

    Args:
        module: Name of the package's top-level module.
        purpose: What needs the package, for the message.

    Raises:
        ConfigError: The package is missing.
    """
    require(module, purpose)
    yield


def missing_message(module: str, purpose: str) -> str:
    """Return the line for users: what needs `module`, and the command that installs it."""
    target = f"'ray_lir[{EXTRAS[module]}]'" if module in EXTRAS else "ray_lir"
    return f"{purpose} needs the package {package_of(module)}, which is not installed; run: pip install {target}"
