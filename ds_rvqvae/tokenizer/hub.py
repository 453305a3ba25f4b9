"""Tokenizers on the Hugging Face hub. The extra `hub` brings its client, which folders on disk do not need."""

import re
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from ds_rvqvae.errors import UserError

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def is_repository(name: str | Path) -> bool:
    """Whether `name` can only be the id `owner/name` of a repository, there being no such folder."""
    return isinstance(name, str) and _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def download(repo_id: str, revision: str | None, files: Sequence[str]) -> Path:
    """The folder of a repository's files, from the hub or from the client's cache.

    Raises:
        UserError: no client, no such repository, or no way to the hub.
    """
    client = _client(repo_id)
    try:
        return Path(client.snapshot_download(repo_id, revision=revision, allow_patterns=list(files)))
    except (OSError, ValueError, client.errors.HfHubHTTPError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{repo_id}: no such folder, and not to be had from the hub: {reason}") from None


def upload(folder: Path, repo_id: str, *, private: bool | None, token: str | None) -> str:
    """Uploads a folder to a repository, which is made if there is none; gives the commit's address.

    Raises:
        UserError: no client, or refused by the hub.
    """
    client = _client(repo_id)
    try:
        api = client.HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder).commit_url)
    except (OSError, ValueError, client.errors.HfHubHTTPError) as error:
        raise UserError(f"{repo_id}: cannot be pushed: {str(error).strip().splitlines()[0]}") from None


def _client(repo_id: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError:
        raise UserError(
            f"{repo_id}: no such folder; repositories of the hub need the extra hub: pip install 'ds_rvqvae[hub]'"
        ) from None
    return huggingface_hub
