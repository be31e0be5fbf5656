"""Repositories on the Hugging Face Hub: fetching the two files of a set, and committing the three."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError
from rotalabs_steer.files.model_card import CARD_FILE, GENERATED
from rotalabs_steer.files.names import check_relative
from rotalabs_steer.files.pretrained import CONFIG_FILE, VECTORS_FILE
from rotalabs_steer.files.reading import MAX_JSON_BYTES, MAX_TENSOR_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huggingface_hub import CommitInfo

_LIMITS = {CONFIG_FILE: MAX_JSON_BYTES, VECTORS_FILE: MAX_TENSOR_BYTES}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_folder(
    id_or_path: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> Path:
    """The folder of a set: a local one as it is, else one in the cache, to which a repository's files were downloaded.

    Nothing but `steering_config.json` and `vectors.safetensors` is fetched, and neither if it is too large.
    """
    local = Path(id_or_path)
    if local.is_dir() or not isinstance(id_or_path, str) or not _could_be_id(id_or_path):
        if not local.is_dir():
            raise FileNotFoundError(f"There is no folder {id_or_path}, and no repository can have that name.")
        return local.joinpath(*check_relative(subfolder))
    check_relative(subfolder)
    return _download(id_or_path, subfolder or None, revision, token, options)


def find_vectors(source: str | os.PathLike[str]) -> Path:
    """Where vectors are that somebody names: a path, or `owner/name[@revision]` on the Hugging Face Hub, which is then
    downloaded.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
    """
    path = Path(source).expanduser()
    if path.exists() or path.with_name(f"{path.name}.json").exists():
        return path
    repo_id, _, revision = os.fspath(source).partition("@")
    reason: str | None = "it is no id of a repository"
    if repo_id.count("/") == 1 and not Path(repo_id).parent.is_dir():
        reason = missing_from_hub(repo_id, CONFIG_FILE, revision=revision or None)
    if reason is not None:
        raise FileNotFoundError(
            f"There are no steering vectors at {source}: neither a folder of sets, nor {path.name}.json with its .pt, "
            f"nor a repository that the Hugging Face Hub gives ({reason})."
        )
    return find_folder(repo_id, revision=revision or None)


def missing_from_hub(repo_id: str, *names: str, revision: str | None = None) -> str | None:
    """Why a repository cannot be had, found out with one request; None if it can, or a file of these names is cached.

    The clients ask for several files, and again and again where nobody answers: this comes before them, for ids that
    somebody typed.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    try:
        if any(isinstance(try_to_load_from_cache(repo_id, name, revision=revision), str) for name in names):
            return None
        get_hf_file_metadata(hf_hub_url(repo_id, names[0], revision=revision))
    except EntryNotFoundError:
        return None  # it exists; what it lacks, its reader says
    except HFValidationError:
        return "it is no id of a repository"
    except RepositoryNotFoundError:
        return "there is no such repository, or none that your token may see"
    except Exception as error:  # of the HTTP client, which is another one from release to release
        return (str(error) or type(error).__name__).splitlines()[0][:200]
    return None


def push_files(
    repo_id: str,
    files: Mapping[str, bytes],
    *,
    subfolder: str = "",
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> CommitInfo:
    """Makes the repository if there is none, and commits the files at once. A card that somebody wrote stays."""
    from huggingface_hub import CommitOperationAdd, HfApi

    parts = check_relative(subfolder)
    api = HfApi(token=token, library_name="rotalabs-steer")
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    added = {"/".join([*parts, name]): content for name, content in files.items()}
    card = "/".join([*parts, CARD_FILE])
    if not _may_replace_card(api, repo_id, card, revision):
        del added[card]
    return api.create_commit(
        repo_id,
        [CommitOperationAdd(path, content) for path, content in added.items()],
        commit_message=commit_message or "Upload steering vectors",
        commit_description=commit_description,
        revision=revision,
        create_pr=create_pr,
    )


def _could_be_id(text: str) -> bool:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return True


def _download(
    repo_id: str, subfolder: str | None, revision: str | None, token: str | bool | None, options: Mapping[str, Any]
) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = Path()
    for name, limit in _LIMITS.items():
        _check_remote_size(repo_id, name, subfolder, revision, token, limit)
        try:
            path = Path(hf_hub_download(repo_id, name, subfolder=subfolder, revision=revision, token=token, **options))
        except LocalEntryNotFoundError:
            raise
        except EntryNotFoundError as error:
            where = repo_id if subfolder is None else f"{repo_id}, folder {subfolder},"
            raise FileNotFoundError(
                f"{where} has no {name}: it holds no vectors that save_pretrained or push_to_hub wrote. "
                "(Repositories of rotalabs-steer 1.2: use download_vectors.)"
            ) from error
        depth = 1 + len(check_relative(subfolder or ""))
        commit = path.parents[depth - 1].name
        revision = commit if _COMMIT.fullmatch(commit) else revision  # both files from one commit
    return path.parent


def _check_remote_size(
    repo_id: str, name: str, subfolder: str | None, revision: str | None, token: str | bool | None, limit: int
) -> None:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    size = None
    with contextlib.suppress(Exception):  # whatever is wrong, the download says it, or finds the file in the cache
        size = get_hf_file_metadata(hf_hub_url(repo_id, name, subfolder=subfolder, revision=revision), token=token).size
    if size is not None and size > limit:
        raise FileFormatError(f"{repo_id}: {name} has {size:,} bytes, more than {limit:,}. Not downloaded.")


def _may_replace_card(api: Any, repo_id: str, card: str, revision: str | None) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        found = Path(api.hf_hub_download(repo_id, card, revision=revision)).read_text("utf-8", "replace")
    except EntryNotFoundError:
        return True
    return GENERATED in found
