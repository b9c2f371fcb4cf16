"""Saves and restores a run's training state and data position with orbax, in the background."""

from pathlib import Path
from typing import Any, Self, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from .errors import UserError
from .step import TrainState

T = TypeVar("T")


class Checkpoints:
    """The newest checkpoints of a run, one folder a step; a context that waits for the last save.

    Weights and optimizer state are stored side by side, so that an export or a completion reads
    the weights alone.

    Args:
      folder: where they are stored.
      keep: how many are kept; None only reads, and leaves alone what a live run is writing.

    Raises:
      UserError: if the folder is only to be read and there is none.
    """

    def __init__(self, folder: Path, keep: int | None = None) -> None:
        if keep is None and not folder.is_dir():
            raise UserError(f"{folder} is not there: the run saved nothing yet")
        # Typed as Any: orbax's own policies do not match the protocols of its annotations.
        preserve: Any = ocp.training.preservation_policies.LatestN(keep)
        decide: Any = ocp.training.save_decision_policies.FixedIntervalPolicy(1)
        self._checkpointer = ocp.training.Checkpointer(
            folder.absolute(),
            preservation_policy=preserve,
            save_decision_policy=decide,
            cleanup_tmp_directories=keep is not None,
        )
        self._folder = folder

    @property
    def latest_step(self) -> int | None:
        """The step of the newest complete checkpoint, or None."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, state: TrainState, loader: ocp.StatefulCheckpointable) -> None:
        """Starts saving both under the state's step; waits for a save in progress first."""
        step = int(jax.device_get(state.step))
        if self.latest_step == step:
            return
        with jax.transfer_guard("allow"):  # Orbax copies the state to the host.
            self._checkpointer.save_checkpointables_async(
                step, {**_by_name(state), "loader": loader}
            )

    def restore(self, state: TrainState, loader: ocp.StatefulCheckpointable) -> TrainState:
        """Restores the newest checkpoint: returns its state and sets the loader to its position.

        Args:
          state: the shapes, dtypes and shardings of the state.

        Raises:
          UserError: if there is no checkpoint or it cannot be read.
        """
        loaded = self._load({**_by_name(state), "loader": loader})
        return TrainState(loaded["rest"]["step"], loaded["params"], loaded["rest"]["opt_state"])

    def restore_params(self, params: T) -> T:
        """The weights alone of the newest checkpoint, given their shapes and shardings."""
        restored: T = self._load({"params": params})["params"]
        return restored

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
        """Waits until the last save is complete on disk."""
        self._checkpointer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _by_name(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "rest": {"step": state.step, "opt_state": state.opt_state},
    }
