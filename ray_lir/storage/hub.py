"""Publishing files as a repository of the Hugging Face hub, or as a local folder of the same content."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ray_lir.base.errors import ConfigError
from ray_lir.storage import files as storage

RepoType = Literal["model", "dataset"]
Content = Path | bytes
"""Content of a file: a local file, or its bytes."""
REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}")


def folder_content(folder: Path) -> dict[str, Content]:
    """Return the files below a local folder by their path in it, in the order of their names."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


def publish_files(
    content: Mapping[str, Content],
    repo: str | None,
    folder: storage.PathOrUrl | None = None,
    repo_type: RepoType = "model",
    private: bool = False,
    token: str | None = None,
    message: str = "Upload with ray_lir",
) -> str:
    """Upload files to a repository of the hub in one commit, or write them to a new local folder.

    The hub is at the address in the environment variable HF_ENDPOINT, https://huggingface.co by default.

    Args:
        content: The files by their names in the repository.
        repo: Name of the repository, OWNER/NAME; it is made if it does not exist. None: write to `folder`.
        folder: The local folder; it must not exist or must be empty.
        repo_type: Kind of the repository.
        private: Whether a new repository is private.
        token: Token of the hub. None: the one that `hf auth login` or HF_TOKEN has stored.
        message: Message of the commit.

    Returns:
        The address of the repository, or the path of the folder.

    Raises:
        ConfigError: Not exactly one of `repo` and `folder` is set, the folder is not empty, or the hub refuses the upload.
    """
    if (repo is None) == (folder is None):
        raise ConfigError("give either the name of a repository (OWNER/NAME) or a folder")
    if folder is not None:
        return _write_folder(content, storage.local_output(folder))
    if not REPO.fullmatch(repo or ""):
        raise ConfigError(f"{repo!r} is not the name of a repository; write OWNER/NAME")
    return _upload(content, str(repo), repo_type, private, token, message)


def _write_folder(content: Mapping[str, Content], folder: Path) -> str:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists already; give a new folder")
    with storage.attempt_folder(folder.parent) as attempt:
        for name, each in content.items():
            target = attempt / "files" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(each, bytes):
                target.write_bytes(each)
            else:
                shutil.copyfile(each, target)
        storage.publish(attempt / "files", str(folder))
    return str(folder)


def _upload(content: Mapping[str, Content], repo: str, repo_type: RepoType, private: bool, token: str | None, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    api: Any = HfApi(token=token)
    try:
        url = api.create_repo(repo, repo_type=repo_type, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, each if isinstance(each, bytes) else str(each)) for name, each in content.items()]
        api.create_commit(repo, operations, commit_message=message, repo_type=repo_type)
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(f"cannot upload to {repo}: {why}; check the name, your token (hf auth login) and the network") from None
    return str(url)
