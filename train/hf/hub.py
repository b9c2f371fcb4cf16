"""Finds a model: a local folder, or a name on the Hugging Face hub."""

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

from ..buckets.fetch import fetch
from ..errors import UserError
from ..files import shipped
from .tokenizer_files import TERMS

# Config, weights, tokenizer, chat templates and terms; pickle files are never downloaded.
PATTERNS = (
    "*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt", "vocab.txt", *TERMS
)  # fmt: skip


def resolve_model(
    name_or_path: str, revision: str | None = None, patterns: Sequence[str] = PATTERNS
) -> Path:
    """The folder of a model, which is downloaded if it is an address or a hub name.

    Args:
      revision: the commit, tag or branch of a hub name.
      patterns: the files that are downloaded.

    Raises:
      UserError: if it is neither a folder nor on the hub, or cannot be downloaded.
    """
    folder = shipped(fetch(name_or_path, patterns))
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder}: has no config.json; name a model's folder")
        return folder
    wanted = f"{name_or_path} at revision {revision}" if revision else name_or_path
    try:
        downloaded = snapshot_download(
            name_or_path, revision=revision, allow_patterns=list(patterns)
        )
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
    except Exception as error:  # The type depends on the hub library's HTTP client.
        reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise UserError(f"{wanted}: cannot be fetched ({reason}); try again") from None
    return Path(downloaded)
