"""The Hugging Face Hub in RL Zoo: what does not fit R2VPO or the present versions of the Hub's packages."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.repocard
import huggingface_sb3
from huggingface_hub.errors import RemoteEntryNotFoundError
from requests.exceptions import HTTPError


def adapt_download() -> None:
    """
    RL Zoo goes on without ``VecNormalize`` statistics where the Hub has none. It knows this by an error of ``requests``,
    which ``huggingface_hub`` no longer uses.
    """
    load_from_hub = huggingface_sb3.load_from_hub

    def load(repo_id: str, filename: str) -> str:
        try:
            return load_from_hub(repo_id, filename)
        except RemoteEntryNotFoundError as e:
            raise HTTPError(f"{repo_id} on the Hugging Face Hub has no {filename}") from e

    huggingface_sb3.load_from_hub = load


def adapt_upload() -> None:
    """
    RL Zoo takes the model card's metadata from a function of ``huggingface_sb3`` that has got another name and result.
    What the card tells others to install and to run must know R2VPO.
    """
    hub: Any = importlib.import_module("huggingface_sb3.push_to_hub")
    if not hasattr(hub, "generate_metadata"):
        hub.generate_metadata = lambda *args: hub._generate_metadata(*args).to_dict()
    save: Callable[..., None] = huggingface_hub.repocard.metadata_save

    def rewrite_and_save(local_path: Path, data: dict[str, Any]) -> None:
        card = local_path.read_text(encoding="utf-8")
        card = card.replace("pip install rl_zoo3", "pip install 'sb3_r2vpo[zoo]'").replace("python -m rl_zoo3.", "r2vpo ")
        local_path.write_text(card, encoding="utf-8")
        save(local_path, data)

    huggingface_hub.repocard.metadata_save = rewrite_and_save  # type: ignore[assignment]
