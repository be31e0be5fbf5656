"""Repositories on the Hugging Face Hub: downloading the two files of a set, and committing three with its card."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import FileFormatError, OptionError
from rotalabs_steer.files.model_card import CARD_FILE, GENERATED
from rotalabs_steer.files.names import check_relative
from rotalabs_steer.files.pretrained import CONFIG_FILE, VECTORS_FILE
from rotalabs_steer.files.reading import MAX_JSON_BYTES, MAX_TENSOR_BYTES

if TYPE_CHECKING:
    from collections.abc import Mapping

    from huggingface_hub import CommitInfo

_LIMITS = {CONFIG_FILE: MAX_JSON_BYTES, VECTORS_FILE: MAX_TENSOR_BYTES}
_FILE_ENDINGS = {".json", ".pt", ".pth", ".bin", ".safetensors", ".gguf", ".npy", ".npz"}
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_folder(
    id_or_path: str | os.PathLike[str],
    *,
    subfolder: str = "",
    revision: str | None = None,
    token: str | bool | None = None,
    **options: Any,
) -> Path:
    """The folder of a set: a local one, or the folder in the cache to which a repository's files are downloaded.

    Only `steering_config.json` and `vectors.safetensors` are downloaded, and neither if it is too large.
    """
    local = Path(id_or_path)
    if local.is_dir():
        return local.joinpath(*check_relative(subfolder))
    repo_id, revision = split_revision(os.fspath(id_or_path), revision)
    if not isinstance(id_or_path, str) or not _could_be_id(repo_id):
        raise FileNotFoundError(f"There is no folder {id_or_path}, and no repository can have that name.")
    check_relative(subfolder)
    return _download(repo_id, subfolder or None, revision, token, options)


def find_vectors(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    subfolder: str = "",
    token: str | bool | None = None,
) -> Path:
    """The path of the vectors that a user names: a local path, or `owner/name[@revision]`, which is then downloaded.

    Raises:
        FileNotFoundError: there is nothing at the path, and no such repository.
        OptionError: `source` is not a name, or a revision is given for a path, or two revisions are given.
    """
    if not isinstance(source, (str, os.PathLike)):
        raise OptionError(f"Vectors are named by a path or a repository, not by a {type(source).__name__}.")
    text = os.fspath(source)
    if not text.strip():
        raise OptionError("No vectors are named: give a path, or OWNER/NAME on the Hugging Face Hub.")
    path = Path(source).expanduser()
    if path.exists() or path.with_name(f"{path.name}.json").exists():
        if revision is not None:
            raise OptionError(f"{source} is a local path and has no revision {revision!r}. Only repositories have one.")
        inner = path.joinpath(*check_relative(subfolder))
        if subfolder and not inner.exists():
            raise FileNotFoundError(f"{source} has no folder {subfolder}.")
        return inner
    repo_id, revision = split_revision(text, revision)
    wanted = "/".join([*check_relative(subfolder), CONFIG_FILE])
    reason = _why_not_an_id(repo_id, revision) or missing_from_hub(repo_id, wanted, revision=revision, token=token)
    if reason is not None:
        raise FileNotFoundError(
            f"There are no steering vectors at {source}: neither a folder of sets, nor {path.name}.json with its .pt, "
            f"nor a repository that can be read from the Hugging Face Hub ({reason})."
        )
    return find_folder(repo_id, revision=revision, subfolder=subfolder, token=token)


def split_revision(text: str, revision: str | None = None) -> tuple[str, str | None]:
    """The id and the revision of `owner/name[@revision]`, or the `revision` that is given separately.

    Raises:
        OptionError: nothing follows the @, or both revisions are given and differ.
    """
    repo_id, at, named = text.partition("@")
    if not at:
        return text, revision
    if not named:
        raise OptionError(f"{text} has no revision behind the @.")
    if revision not in (None, named):
        raise OptionError(f"{text} names the revision {named!r}, and {revision!r} is given, too. Give one of them.")
    return repo_id, named


def _why_not_an_id(repo_id: str, revision: str | None) -> str | None:
    """Why a name is not taken for the id of a repository; None if it is."""
    if repo_id.count("/") != 1 or not _could_be_id(repo_id):
        return "it is not the id of a repository"
    if revision is None and Path(repo_id).suffix in _FILE_ENDINGS:
        return "it has the name of a file"
    if revision is None and Path(repo_id).parent.is_dir():
        return f"{Path(repo_id).parent} is a folder here, so it is not taken for the id of a repository"
    return None


def missing_from_hub(
    repo_id: str,
    *names: str,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> str | None:
    """Why a repository cannot be downloaded, found out with one request; None if it can or one of the files is cached.

    It is called before the ordinary clients for ids that a user typed, because those ask for several files, and ask
    again and again if there is no answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        cached = (try_to_load_from_cache(repo_id, name, cache_dir=cache_dir, revision=revision) for name in names)
        if not any(isinstance(path, str) for path in cached):
            get_hf_file_metadata(hf_hub_url(repo_id, names[0], revision=revision), token=token)
    except RevisionNotFoundError:
        return f"it has no revision {revision!r}"
    except EntryNotFoundError:
        pass  # the repository exists, and its reader will say which file it lacks
    except HFValidationError:
        return "it is not the id of a repository"
    except RepositoryNotFoundError:
        return "there is no such repository, or none that your token may see"
    except Exception as error:  # huggingface_hub's releases use different HTTP clients with errors of their own
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
    """Commits the files to a repository, which is created if it does not exist. A card that a person wrote stays."""
    from huggingface_hub import CommitOperationAdd, HfApi

    parts = check_relative(subfolder)
    repo_id, revision = split_revision(repo_id, revision)
    if not _could_be_id(repo_id):
        raise OptionError(f"{repo_id!r:.200} cannot be the id of a repository. Give OWNER/NAME.")
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
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    path = Path()
    for name, limit in _LIMITS.items():
        size = None
        with contextlib.suppress(Exception):  # the download then reports the error, or finds the file in the cache
            url = hf_hub_url(repo_id, name, subfolder=subfolder, revision=revision)
            size = get_hf_file_metadata(url, token=token).size
        if size is not None and size > limit:
            raise FileFormatError(f"{repo_id}: {name} has {size:,} bytes, more than {limit:,}. Not downloaded.")
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
        # The cache has a folder for each commit. Both files must come from the same one.
        commit = path.parents[len(check_relative(subfolder or ""))].name
        revision = commit if _COMMIT.fullmatch(commit) else revision
    return path.parent


def _may_replace_card(api: Any, repo_id: str, card: str, revision: str | None) -> bool:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        found = Path(api.hf_hub_download(repo_id, card, revision=revision)).read_text("utf-8", "replace")
    except EntryNotFoundError:
        return True
    return GENERATED in found
