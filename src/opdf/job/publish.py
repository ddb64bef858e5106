"""A finished student on the Hugging Face hub: its folder with the model card, and nothing else of the run."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from opdf.job.errors import UserError


def check_publish(name: str) -> None:
    """Refuse a name under which the student cannot be published, before any work.

    Raises:
        UserError: it is no name of a repository, nobody is logged in, or the hub does not answer.
    """
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"push_to_hub is {name!r}: {error}") from error
    if get_token() is None:
        raise UserError(f"push_to_hub is {name!r} and nobody is logged in; use hf auth login, or set HF_TOKEN")
    try:
        HfApi().whoami()
    except Exception as error:  # httpx's, huggingface_hub's or the system's
        raise UserError(f"push_to_hub is {name!r}, and the hub does not answer: {_first_line(error)}") from error


def publish(folder: Path, name: str) -> str:
    """Upload a student's folder as a private repository, which is made if need be; returns its address.

    Args:
        folder: of the student, with its model card.
        name: of the repository; one that exists stays as public or private as it is.

    Raises:
        UserError: it cannot be; the student is still in its folder.
    """
    hub = HfApi()
    try:
        repository = hub.create_repo(name, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="Distilled with opdf")
    except Exception as error:  # httpx's, huggingface_hub's or the system's
        raise UserError(
            f"the student is in {folder} and could not be published as {name}: {_first_line(error)}; "
            f"hf upload {name} {folder} tries it again"
        ) from error
    return str(repository)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
