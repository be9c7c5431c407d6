"""Putting a tuned prompt on the Hugging Face hub."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from ...export.errors import DeviceError, UsageError
from ..artifacts.files import write_whole
from ..artifacts.folder import PROMPT
from ..artifacts.model_card import CARD, card, is_shareable
from ..artifacts.prompt import read_prompt, save_prompt
from ..artifacts.prompt_config import read_prompt_config
from ..artifacts.result import RESULT, read_result


def check_base_model(base_model: str) -> None:
    """Refuse to share a prompt for a model that nobody else has.

    Raises:
        UsageError: if the model is a folder.
    """
    if not is_shareable(base_model):
        raise UsageError(
            f"the base model {base_model} is a folder of this machine, which nobody else has. Put it on the hub too, "
            "and give its id: `bbt-fast push --base_model USER/MODEL`."
        )


def push(folder: Path, repository: str, *, base_model: str | None = None, private: bool = False) -> str:
    """Put the prompt of a run, what it belongs to and its card on the hub.

    Args:
        folder: the run's.
        repository: the hub id, user/name; it is made if it does not exist.
        base_model: the hub id of the base model, if the run read it from a folder.
        private: whether a new repository is private.

    Returns:
        The address of the commit.

    Raises:
        UsageError: if there is no prompt, or its base model cannot be shared.
        ArtifactError: if a file is damaged.
        DeviceError: if the hub cannot be reached, or refuses.
    """
    import huggingface_hub

    config = read_prompt_config(folder)
    config = replace(config, base_model=base_model or config.base_model)
    check_base_model(config.base_model)
    result = read_result(folder) if (folder / RESULT).exists() else None
    prompts, about = read_prompt(folder)
    with tempfile.TemporaryDirectory() as made:
        whole = Path(made)
        config.write(whole)
        save_prompt(whole / PROMPT, prompts, about | {"model": config.base_model})
        write_whole(whole / CARD, card(config, result, repository).encode())
        api = huggingface_hub.HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            commit = api.upload_folder(
                repo_id=repository, folder_path=whole, commit_message="A soft prompt, tuned by bbt-fast"
            )
        except Exception as error:
            # The hub's client raises dozens of types, from a missing network to a name that is taken.
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise DeviceError(
                f"cannot put the prompt on the hub as {repository}: {reason[0]} Check the name and the network, log in "
                f"with `hf auth login`, then: bbt-fast push --run {folder} {repository}"
            ) from error
    return str(commit.commit_url)
