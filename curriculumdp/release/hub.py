"""Upload of what was just written to the Hugging Face Hub: only where --push-to-hub asks for it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, HTTPError  # type: ignore[attr-defined]  # re-exported unmarked
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]  # re-exported unmarked

from curriculumdp.errors import UserError


class HubError(UserError):
    """An upload that is impossible or that failed; the message is one line."""


def require_repo(repo: str) -> None:
    """Raise HubError unless `repo` has the form of a repository's name. Opens no connection."""
    try:
        validate_repo_id(repo)
    except HFValidationError:
        raise HubError(
            f"--push-to-hub {repo!r}: give OWNER/NAME, of letters, digits, '-', '_' and '.'"
        ) from None


def push(folder: Path, repo: str, kind: Literal["model", "dataset"], files: Sequence[str]) -> str:
    """Upload the `files` (patterns) of a folder to a repository and return its address.

    A repository that does not exist is created as a private one: its owner decides when others see it. Raises HubError;
    the folder stays as it is.
    """
    api = HfApi()
    try:
        address = api.create_repo(repo, repo_type=kind, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=repo,
            repo_type=kind,
            folder_path=folder,
            allow_patterns=list(files),
            commit_message="Upload with curriculumdp",
        )
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise HubError(
            f"{folder} is written, but was not uploaded to {repo}: {reason}; log in (hf auth login), or upload it by "
            f"hand: hf upload {repo} {shlex.quote(str(folder))} --repo-type {kind}"
        ) from None
    return str(address)
