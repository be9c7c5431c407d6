"""Uploads a tuned prompt to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ...export.errors import DeviceError, UsageError
from ...export.loading import reason
from ..artifacts.files import write_whole
from ..artifacts.folder import PROMPT
from ..artifacts.model_card import CARD, card, is_shareable
from ..artifacts.prompt import read_prompt, save_prompt
from ..artifacts.prompt_config import read_prompt_config
from ..artifacts.result import RESULT, read_result


def check_base_model(base_model: str) -> None:
    """Refuse to share a prompt for a model on this machine only.

    Raises:
        UsageError: if the model is a folder.
    """
    if not is_shareable(base_model):
        raise UsageError(
            f"the base model {base_model} is a folder of this machine, but a shared prompt needs a model on the hub. "
            "Upload the model too, and give its id: `bbt-fast push --base_model USER/MODEL`."
        )


def push(folder: Path, repository: str, *, base_model: str | None = None, private: bool = False) -> str:
    """Upload the prompt of a run, its description and its card to the hub.

    Args:
        folder: the run's.
        repository: the hub id, user/name; a missing repository is created.
        base_model: the hub id of the base model, if the run loaded it from a folder.
        private: whether a new repository is private.

    Returns:
        The URL of the commit.

    Raises:
        UsageError: if there is no prompt, or its base model is a local folder.
        ArtifactError: if a file is damaged.
        DeviceError: if the hub is unreachable or refuses the upload.
    """
    import huggingface_hub

    config = read_prompt_config(folder)
    config = replace(config, base_model=base_model or config.base_model)
    check_base_model(config.base_model)
    result = read_result(folder) if (folder / RESULT).exists() else None
    prompts, about = read_prompt(folder)
    with tempfile.TemporaryDirectory() as temporary:
        upload = Path(temporary)
        config.write(upload)
        save_prompt(upload / PROMPT, prompts, about | {"model": config.base_model})
        write_whole(upload / CARD, card(config, result, repository).encode())
        api = huggingface_hub.HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=upload, commit_message="A soft prompt, tuned by bbt-fast"
            )
        except Exception as error:  # the hub's client raises dozens of types
            raise DeviceError(
                f"cannot upload the prompt to the hub as {repository} ({reason(error)}). Check the name and the "
                f"network, log in with `hf auth login`, then: bbt-fast push --run {folder} {repository}"
            ) from error
    return str(commit.commit_url)
