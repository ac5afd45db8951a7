"""The settings of a service, checked before any of its processes starts."""

import difflib
import os
from typing import Any

from pydantic import ValidationError

from ray_lir import storage
from ray_lir.api.search import first_problem
from ray_lir.base.errors import ConfigError
from ray_lir.index.manifest import IndexManifest
from ray_lir.kernels import VARIABLE
from ray_lir.storage.manifest import check_file, files_of

from .http.access import Access, read_tokens
from .options import ONE_INDEX, SEVERAL_INDEXES, ServeConfig
from .workers.gpu import GpuShare

DEFAULT_GROUPS = 4


def parse(args: dict[str, Any]) -> ServeConfig:
    """Return the configuration that arguments describe, with absolute paths.

    Raises:
        ConfigError: An argument is unknown, missing or wrong.
    """
    for name in args:
        if name not in ServeConfig.model_fields and (near := difflib.get_close_matches(name, ServeConfig.model_fields, n=1)):
            raise ConfigError(f"unknown argument {name}; did you mean {near[0]}?")
    try:
        config = ServeConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(first_problem(error.errors(), ServeConfig)) from None
    _check_one_or_several(config)
    for root in _roots(config):
        if not storage.is_local(root) and not config.cache:
            raise ConfigError(
                f"{root} is not on a disk; set cache to a local folder for copies of its shards, "
                "or copy the index to a disk that every machine of the cluster mounts"
            )
    if config.max_replicas is not None and config.max_replicas < config.replicas:
        raise ConfigError(f"max_replicas is {config.max_replicas}, less than replicas ({config.replicas}); raise it, or leave it out")
    cache = storage.absolute(config.cache) if config.cache else None
    update: dict[str, Any] = {"cache": cache, "kernels": _kernels_of(config)}
    if isinstance(config.indexes, dict):
        update["indexes"] = {name: storage.absolute(root) for name, root in config.indexes.items()}
    elif config.indexes is not None:
        update["indexes"] = storage.absolute(config.indexes)
    else:
        update["index"] = storage.absolute(config.index)
    return config.model_copy(update=update)


def _check_one_or_several(config: ServeConfig) -> None:
    if not config.index and config.indexes is None:
        raise ConfigError("index is required; set it to the folder of an index, or set indexes to a folder of indexes")
    if config.index and config.indexes is not None:
        raise ConfigError("index and indexes are both set; set index for one index, or indexes for several")
    names, fix = (SEVERAL_INDEXES, "set indexes instead of index") if config.index else (ONE_INDEX, "serve the index alone with index=DIR")
    for name in names:
        if getattr(config, name) != ServeConfig.model_fields[name].default:
            kind = "several indexes" if config.index else "one index"
            raise ConfigError(f"{name} is a setting of a service of {kind}; leave it out, or {fix}")


def _roots(config: ServeConfig) -> list[str]:
    if isinstance(config.indexes, dict):
        return list(config.indexes.values())
    return [config.index if config.indexes is None else config.indexes]


def _kernels_of(config: ServeConfig) -> str:
    """The kernels of the shard groups. Raises ConfigError if they do not fit `shard_gpus`."""
    in_environment = config.kernels == "auto" and os.environ.get(VARIABLE, "").strip()
    kernels = in_environment or config.kernels
    if kernels == "cuda" and not config.shard_gpus:
        named = f"the environment variable {VARIABLE}" if in_environment else "kernels"
        raise ConfigError(f"{named} is cuda, but no GPU is reserved; set shard_gpus to 1, or to a fraction to share a card")
    if config.shard_gpus and kernels not in ("auto", "cuda"):
        raise ConfigError(f"kernels {kernels} compute on CPUs; leave out shard_gpus, or set kernels to cuda")
    return "cuda" if config.shard_gpus else config.kernels


def gpu_share(config: ServeConfig) -> GpuShare | None:
    """Return the part of a GPU for each replica of a shard group; None if groups search on CPUs."""
    return GpuShare(config.shard_gpus, config.gpu_memory_gb) if config.shard_gpus else None


def number_of_groups(config: ServeConfig, manifest: IndexManifest) -> int:
    """Return the number of shard groups of a configuration."""
    return config.num_groups or min(len(manifest.shards), DEFAULT_GROUPS)


def shard_groups(config: ServeConfig, version: int, manifest: IndexManifest) -> dict[str, tuple[Any, ...]]:
    """Return the arguments of each group's `ShardServer`, by the name of its deployment.

    Args:
        config: The configuration of the service.
        version: Version of the index that the groups open.
        manifest: The manifest of that version.
    """
    num_groups = number_of_groups(config, manifest)
    options = (config.shard_cpus, config.verify, config.cache, config.kernels, gpu_share(config), config.residency)
    return {f"ShardGroup-{group}": (config.index, version, group, num_groups, *options) for group in range(num_groups)}


def access_of(config: ServeConfig) -> Access:
    """Return the tokens, roles and web origins of a configuration.

    Raises:
        ConfigError: The token file is not valid.
    """
    grants = read_tokens(storage.absolute(config.tokens)) if config.tokens else {}
    if config.indexes is None and any(grant.indexes is not None for grant in grants.values()):
        raise ConfigError(f"{config.tokens} limits a token to some indexes, but the service has one; remove that limit, or set indexes")
    return Access(grants=grants, origins=config.origins)


def check_index(config: ServeConfig, manifest: IndexManifest) -> None:
    """Check that an index can be served with a configuration.

    Raises:
        ConfigError: Its encoder is unknown, `num_groups` exceeds its shards, or a group does not fit into a GPU.
        FormatError: A file is missing or damaged.
    """
    if not manifest.contract.weights_digest:
        raise ConfigError(f"{config.index} was built from embeddings of an unknown encoder, which cannot encode queries; use Searcher")
    num_shards = len(manifest.shards)
    if config.num_groups and config.num_groups > num_shards:
        raise ConfigError(
            f"num_groups is {config.num_groups}, but {config.index} has {num_shards} shards; set num_groups to at most {num_shards}"
        )
    for file in files_of(manifest):
        check_file(config.index, file)
    if gpu := gpu_share(config):
        gpu.check_fits(manifest, number_of_groups(config, manifest))


def check_writes(config: ServeConfig, access: Access) -> None:
    """Check that a token may write, and that the index can be written.

    Raises:
        ConfigError: No token may write, or the index cannot be written.
    """
    if not any(grant.role != "read" for grant in access.grants.values()):
        raise ConfigError("writes is true, but no token may write; set tokens to a token file with tokens under write or admin")
    if config.index:
        storage.check_writable(config.index)
