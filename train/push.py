"""Uploads a run's export to the Hugging Face hub, with a card of what is known of the run now."""

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

from .buckets.mirror import bring
from .errors import UserError
from .hf.card import model_card
from .hf.evaluations import read_evaluations
from .manifest import NAME as MANIFEST
from .manifest import DamagedError, check_folder, read_manifest
from .run import Run

CARD = "README.md"


def push_run(folder: Path, name: str, *, public: bool = False, message: str | None = None) -> str:
    """Uploads a run's export as one commit, and returns its address.

    The manifest stays here: it vouches for the files of the export's own folder, and the card is
    made anew, with the evaluations that were done since.

    Args:
      folder: the run's folder.
      name: OWNER/NAME on the hub, which is made if it does not exist.
      public: whether everyone may read it.
      message: of the commit.

    Raises:
      UserError: if the run has no whole export, the hub refuses, or a private upload would go to a
        public place.
    """
    run = Run.open(folder)
    bring(run.export)
    try:
        check_folder(run.export)
        step = read_manifest(run.export).facts.get("step")
    except DamagedError as error:
        raise UserError(f"{run.export}: {error}; write it by gmt-train export {folder}") from None
    card = model_card(
        name.rpartition("/")[2], run.config(), run.records, read_evaluations(folder), step
    )
    files = {CARD: card.encode()} | {
        str(path.relative_to(run.export)): path
        for path in sorted(run.export.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, CARD)
    }
    operations = [CommitOperationAdd(where, content) for where, content in files.items()]
    try:
        api = HfApi()
        api.create_repo(name, private=not public, exist_ok=True)
        if not public and not api.model_info(name).private:
            raise UserError(f"{name} exists and is public; add --public, or choose another name")
        commit = api.create_commit(
            name, operations, commit_message=message or f"Weights after {step} updates"
        )
    except HFValidationError:
        raise UserError(f"{name}: is no name of the hub; write OWNER/NAME") from None
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"{name}: cannot be uploaded ({reason}); hf auth login signs in, and a token needs the "
            "right to write"
        ) from None
    return str(commit.commit_url)
