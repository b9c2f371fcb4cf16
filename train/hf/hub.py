"""Finds a model: a folder as it is, or a name on the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ..errors import UserError

# Config, weights, tokenizer and chat template; pickles are never fetched.
FETCHED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt")


def resolve_model(
    name_or_path: str, revision: str | None = None, patterns: Sequence[str] = FETCHED
) -> Path:
    """The folder of a model that lies on this machine or is fetched from the hub.

    Args:
      revision: the commit, tag or branch of a hub name.
      patterns: the files that are fetched.

    Raises:
      UserError: if it is neither, or cannot be fetched.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: has no config.json; name a model's folder")
        return folder
    wanted = f"{name_or_path} at revision {revision}" if revision else name_or_path
    try:
        fetched = snapshot_download(name_or_path, revision=revision, allow_patterns=list(patterns))
    except HFValidationError:
        raise UserError(
            f"{wanted}: no such folder, and not a hub name such as owner/model; check the path"
        ) from None
    except GatedRepoError:
        raise UserError(
            f"{wanted}: is gated; accept its terms on huggingface.co, then run hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise UserError(f"{wanted}: the hub has no such revision; check model.revision") from None
    except RepositoryNotFoundError:
        raise UserError(
            f"{wanted}: no such folder, and no such model on the hub; "
            "check the name (a private one needs hf auth login)"
        ) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{wanted}: no such folder, and the hub cannot be reached; "
            "go online once to fetch it, or name a folder"
        ) from None
    except Exception as error:  # Of whichever HTTP client the installed hub library uses.
        reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UserError(f"{wanted}: cannot be fetched ({reason}); try again") from None
    return Path(fetched)
