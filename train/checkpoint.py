"""Saves and restores a run's training state and data position with orbax, in the background.

A save is written under a temporary name, and is renamed to its step when its manifest, which
digests every file, is complete.
"""

import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

import jax
from orbax.checkpoint import v1 as ocp

from .buckets.apart import place
from .buckets.mirror import is_writer, shown
from .buckets.store import BucketError
from .checkpoint_folder import CheckpointFolder
from .distributed.processes import barrier, is_main_process, wait_for_all
from .errors import UserError, warn
from .finite import are_finite, name_infinite
from .manifest import Verify, compare_arrays, describe_arrays, read_manifest
from .step import TrainState

T = TypeVar("T")

# Saves in a row that may fail before the run ends.
_MAX_FAILURES = 3
# Seconds that orbax gives a save: its 20 minutes, by the time of day, end every one to a slow disk.
_SAVE_SECONDS = 10**9


def _is_no_traceback_of_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in record.pathname)


# Of a save that fails, orbax logs hundreds of lines from several threads; `poll` reports one.
logging.getLogger("absl").addFilter(_is_no_traceback_of_orbax)


class Checkpoints:
    """The checkpoints of a run, one folder a step; a context that waits for the last save.

    Weights and optimizer state are stored side by side, so that an export or a completion reads
    the weights alone.

    Args:
      folder: where they are stored.
      keep: how many of the newest are kept; None only reads, and leaves alone what a live run is
        writing.
      keep_every: every so many updates, one is kept for good.
      verify: whether a checkpoint is digested before it is restored, or only its sizes compared.
      facts: what each manifest notes, beside the step and the arrays.
      only: the step of the only checkpoint that is read; None: the newest whole one is.

    Raises:
      UserError: if the folder is only to be read and there is none.
    """

    def __init__(
        self,
        folder: Path,
        keep: int | None = None,
        *,
        keep_every: int | None = None,
        verify: Verify = "full",
        facts: Mapping[str, Any] | None = None,
        only: int | None = None,
    ) -> None:
        if keep is None and not folder.is_dir():
            raise UserError(f"{folder} is not there: the run saved nothing yet")
        self._folder = CheckpointFolder(folder, verify)
        self._keep, self._keep_every = keep, keep_every
        self._facts, self._only = dict(facts or {}), only
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._num_failures = 0
        self._newest: int | None = None  # The step that was saved or restored last.
        if keep is not None and is_writer(folder):
            self._folder.clear()
        if keep is not None:
            barrier(f"opening {shown(folder)}")

    @property
    def steps(self) -> list[int]:
        """The steps of all checkpoints, in ascending order, without looking into them."""
        return [step for step in self._folder.steps if self._only in (None, step)]

    @property
    def restored_step(self) -> int | None:
        """The step that was restored or saved last, or None."""
        return self._newest

    @property
    def latest_step(self) -> int | None:
        """The step of the newest checkpoint, or None."""
        return max(self.steps, default=None)

    def save(
        self, state: TrainState, loader: ocp.StatefulCheckpointable, best: int | None = None
    ) -> None:
        """Starts saving both under the state's step; waits for a save in progress first.

        A save that cannot be written is reported by `poll`, or by the next call.

        Args:
          best: the step of a checkpoint that is kept too.

        Raises:
          UserError: if the state is not finite, and as `poll` does.
        """
        self.wait()
        step = int(jax.device_get(state.step))
        if step == self._newest:
            return
        parts = _by_name(state)
        # Waited for: a step beside it, with collectives of its own, can starve on CPUs.
        if infinite := name_infinite(are_finite(parts)):
            raise _not_finite(step, infinite, self.latest_step)
        facts = self._facts | {"arrays": describe_arrays(parts)}
        try:
            with jax.transfer_guard("allow"):  # Orbax copies the state to the host.
                response = _start_saving(self._folder.target(step), {**parts, "loader": loader})
        except Exception as error:  # What a disk or a bucket raises depends on the layer.
            self._error = error
            self._folder.discard(step)
            if jax.process_count() > 1:  # The others wait for this one.
                self.poll()
            return
        self._thread = threading.Thread(target=self._complete, args=(step, response, facts, best))
        self._thread.start()

    def _complete(
        self, step: int, response: Any, facts: Mapping[str, Any], best: int | None
    ) -> None:
        """Waits until a save is written, vouches for it, and removes what is no longer kept."""
        try:
            response.result()
            if is_writer(self._folder.path):
                assert self._keep is not None, "opened to be read"
                self._folder.commit(step, facts)
                self._folder.prune(self._keep, self._keep_every, best)
            self._newest, self._num_failures = step, 0
        except BaseException as error:  # Raised again in the main thread.
            self._error = error
            if is_main_process():
                self._folder.discard(step)

    def wait(self) -> bool:
        """Waits for the save in progress, if there is one, as `settle` does; then it is `poll`."""
        self.settle()
        return self.poll()

    def settle(self) -> None:
        """Waits until the save in progress has ended in all processes, which call it together.

        A process that ends ends the others, with an error at once, and else when jax has waited
        for them for five minutes: none may do so while process 0 vouches for what was written.
        Where a save failed, `poll` ends all of them.
        """
        if self._thread is not None:
            self._thread.join()
        if self._keep is not None and self._error is None:
            wait_for_all(f"saving to {shown(self._folder.path)}")

    def poll(self) -> bool:
        """Reports a save that has failed since the last call; returns whether one has.

        The run can go on: the checkpoints before are whole, and the next save may succeed.

        Raises:
          UserError: if too many saves in a row failed, or there are several
            processes, which could not agree on what to do.
        """
        if self._thread is not None and not self._thread.is_alive():
            self._thread = None
        if self._error is None or self._thread is not None:
            return False
        error, self._error = self._error, None
        ends = isinstance(error, UserError) and not isinstance(error, BucketError)
        if ends or not isinstance(error, Exception):
            raise error
        self._num_failures += 1
        newest = self.latest_step
        before = "nothing was saved before" if newest is None else f"step {newest} is whole"
        where = shown(self._folder.path)
        message = f"{where}: a checkpoint cannot be saved ({_reason(error)}); {before}"
        if self._num_failures >= _MAX_FAILURES or jax.process_count() > 1:
            raise UserError(f"{message}; make room or mend the disk, then go on with --resume")
        warn(f"{message}; training goes on, and the next save tries again")
        return True

    def restore(self, state: TrainState, loader: ocp.StatefulCheckpointable) -> TrainState:
        """Restores the newest whole checkpoint: its state, and the loader's position.

        Newer checkpoints that are damaged are reported and set aside.

        Args:
          state: the shapes, dtypes and shardings of the state.

        Raises:
          UserError: if there is no whole checkpoint, or it does not fit the state.
        """
        loaded = self._load(_by_name(state), loader)
        return TrainState(loaded["rest"]["step"], loaded["params"], loaded["rest"]["opt_state"])

    def restore_params(self, params: T) -> T:
        """The weights alone of the newest whole checkpoint, given their shapes and shardings."""
        restored: T = self._load({"params": params})["params"]
        return restored

    def _load(
        self, parts: dict[str, Any], loader: ocp.StatefulCheckpointable | None = None
    ) -> dict[str, Any]:
        damaged: dict[int, str] = {}
        while left := [step for step in self.steps if step not in damaged]:
            step = left[-1]
            fault = self._folder.fault(step)
            if fault is None:
                loaded = self._load_step(step, parts, loader)
                self._folder.set_aside(damaged, step, rename=self._keep is not None)
                self._newest = step
                return loaded
            # A live run may have removed it, after saving a newer one.
            if self._keep is not None or self._folder.step(step).exists():
                damaged[step] = fault
        if not damaged:
            raise UserError(f"{self._folder.path} holds no checkpoint; train first")
        faults = "; ".join(f"{step} {fault}" for step, fault in damaged.items())
        raise UserError(
            f"{self._folder.path}: no checkpoint is whole: {faults}; bring one back from a copy, "
            "or move the folder elsewhere to begin again"
        )

    def _load_step(
        self, step: int, parts: dict[str, Any], loader: ocp.StatefulCheckpointable | None
    ) -> dict[str, Any]:
        folder = self._folder.step(step)
        if differences := compare_arrays(read_manifest(folder), parts):
            raise UserError(
                f"{folder} is whole and of another model or optimizer: {differences}; go on with "
                "those that the run began with"
            )
        try:
            return ocp.load_checkpointables(
                place(folder), {**parts, "loader": loader} if loader is not None else parts
            )
        except UserError as error:  # From the loader.
            raise UserError(f"{folder}: {error}") from error
        except Exception as error:
            raise UserError(
                f"{folder} is whole and cannot be restored: {_reason(error)}; keep its files"
            ) from error

    def close(self) -> None:
        """Waits until the last save is complete on disk.

        Raises:
          UserError: as `poll` does.
        """
        self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if error is None:
            self.close()
        elif self._thread is not None:
            self._thread.join()


def _not_finite(step: int, names: list[str], newest: int | None) -> UserError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    before = "nothing was saved before" if newest is None else f"the newest save is step {newest}"
    return UserError(
        f"step {step}: {', '.join(names[:3])}{more} not finite after the update, which is not "
        f"saved; {before}; lower optimizer.learning_rate or look at the data"
    )


def _reason(error: BaseException) -> str:
    """The cause in one line, whole."""
    return " ".join(str(error).split()) or type(error).__name__


def _start_saving(place: str, parts: dict[str, Any]) -> Any:
    context = ocp.Context()
    context.asynchronous.timeout_secs = _SAVE_SECONDS
    with context:
        return ocp.save_checkpointables_async(place, parts)


def _by_name(state: TrainState) -> dict[str, Any]:
    return {
        "params": state.params,
        "rest": {"step": state.step, "opt_state": state.opt_state},
    }
