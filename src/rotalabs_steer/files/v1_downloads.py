"""Downloads from repositories in the layout of rotalabs-steer 1.2: datasets with folders `MODEL/BEHAVIOR`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rotalabs_steer.errors import DownloadError, SteeringError
from rotalabs_steer.files.names import check_name, check_relative

if TYPE_CHECKING:
    import os

DEFAULT_VECTORS_REPO = "rotalabs/steering-vectors"

_SET_FILE = re.compile(r"metadata\.json|layer_\d{1,6}\.(json|pt)")


def download_vectors(
    behavior: str,
    model_name: str,
    output_dir: str | os.PathLike[str] | None = None,
    repo_id: str = DEFAULT_VECTORS_REPO,
    revision: str = "main",
    force: bool = False,
) -> Path:
    """Downloads a vector set and returns its folder, `output_dir/model_name/behavior`, for `SteeringVectorSet.load`.

    Args:
        output_dir: by default `~/.cache/rotalabs_steer/vectors`.
        force: download even if the folder exists.

    Raises:
        FileFormatError: a name is not a safe file name.
        DownloadError: the repository cannot be reached.
        FileNotFoundError: it has no such set.
    """
    from huggingface_hub import HfApi, hf_hub_download

    names = [check_name(model_name), check_name(behavior)]
    root = Path.home() / ".cache" / "rotalabs_steer" / "vectors" if output_dir is None else Path(output_dir)
    folder = root.joinpath(*names)
    if (folder / "metadata.json").exists() and not force:
        return folder
    try:
        commit = HfApi().dataset_info(repo_id, revision=revision).sha
        wanted = [
            path
            for path in HfApi().list_repo_files(repo_id, repo_type="dataset", revision=commit)
            if path.split("/")[:-1] == names and _SET_FILE.fullmatch(path.split("/")[-1])
        ]
        if f"{model_name}/{behavior}/metadata.json" not in wanted:
            raise FileNotFoundError(
                f"{repo_id} has no vectors of {behavior!r} for {model_name!r}. list_available_vectors says what it has."
            )
        # metadata.json comes last, because the check above takes a folder that has it for complete.
        for path in sorted(wanted, key=lambda path: path.endswith("metadata.json")):
            hf_hub_download(repo_id, path, repo_type="dataset", revision=commit, local_dir=root, force_download=force)
    except (SteeringError, FileNotFoundError):
        raise
    except Exception as error:
        raise DownloadError(
            f"The vectors of {behavior!r} for {model_name!r} cannot be downloaded from {repo_id}: {error}"
        ) from error
    return folder


def list_available_vectors(repo_id: str = DEFAULT_VECTORS_REPO) -> list[dict[str, Any]]:
    """The vector sets in a repository: `model`, `behavior`, `path` and `layers` of each.

    Raises:
        DownloadError: the repository cannot be reached.
    """
    from huggingface_hub import HfApi

    try:
        files = HfApi().list_repo_files(repo_id, repo_type="dataset")
    except Exception as error:
        raise DownloadError(f"The files of {repo_id} cannot be listed: {error}") from error
    found = []
    for path in files:
        try:
            parts = check_relative(path)
        except SteeringError:  # an unsafe name, which is not downloaded either
            continue
        if len(parts) >= 3 and parts[-1] == "metadata.json":
            model, behavior = parts[-3:-1]
            folder = path.removesuffix("metadata.json")
            layers = [re.fullmatch(r"layer_(\d{1,6})\.pt", name.removeprefix(folder)) for name in files]
            found.append({
                "model": model,
                "behavior": behavior,
                "path": f"{model}/{behavior}",
                "layers": sorted(int(match[1]) for match in layers if match),
            })  # fmt: skip
    return found
