"""Saves and restores training states with orbax, in the background and atomically."""

from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from .errors import UserError
from .step import TrainState


class Checkpoints:
    """The newest checkpoints of a run, one folder a step.

    Weights and optimizer state are stored side by side, so that an export or a completion reads
    the weights alone.

    Args:
      folder: where they lie.
      keep: how many a run keeps; None only reads, and leaves alone what a live run is writing.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        if keep is None and not folder.is_dir():
            raise UserError(f"{folder} is not there: the run saved nothing yet")
        policy = ocp.training.preservation_policies.LatestN(keep)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=policy,
            save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
            cleanup_tmp_directories=keep is not None,
        )
        self._folder = folder
        self.stream: Any = None  # A grain iterator, whose place is saved too.

    @property
    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState) -> None:
        """Starts saving the state under its step; a save in progress is waited for first."""
        step = int(state.step)
        if self.latest_step == step:
            return
        rest = {"step": state.step, "opt_state": state.opt_state}
        stream = {} if self.stream is None else {"stream": self.stream}
        self._checkpointer.save_checkpointables_async(
            step, {"params": state.params, "rest": rest, **stream}
        )

    def restore(self, state: TrainState) -> TrainState:
        """The newest checkpoint, laid out as the given abstract state (with shardings) says."""
        rest = {"step": state.step, "opt_state": state.opt_state}
        loaded = self._load({"params": state.params, "rest": rest})
        return TrainState(loaded["rest"]["step"], loaded["params"], loaded["rest"]["opt_state"])

    def attach_stream(self, iterator: Any) -> None:
        """Sets a grain iterator to where it was at the newest checkpoint, and saves it from now."""
        if self.latest_step is not None:
            self._load({"stream": iterator})
        self.stream = iterator

    def restore_params(self, params: Any) -> Any:
        """The weights alone of the newest checkpoint."""
        return self._load({"params": params})["params"]

    def _load(self, abstract: dict[str, Any]) -> dict[str, Any]:
        step = self.latest_step
        if step is None:
            raise UserError(f"{self._folder} holds no checkpoint; train first")
        try:
            return self._checkpointer.load_checkpointables(step, abstract)
        except (OSError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"{self._folder / str(step)} cannot be restored ({reason}); "
                "if it is damaged, remove that folder to go on from the one before"
            ) from error

    def close(self) -> None:
        """Waits for the last save to be whole on disk."""
        self._checkpointer.close()
