"""fit: the training loop for any model, loss, optimizer, mesh and batches."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from .best import Best
from .buckets.address import check_place
from .buckets.mirror import is_writer, shown
from .buckets.workplace import writing
from .cadence import Cadence
from .checkpoint import Checkpoints
from .data.iterables import Batches, number_of, open_batches
from .data.loader import Loader
from .distributed.processes import barrier
from .errors import UserError
from .loop import Callback, Parts, Record, train
from .measure import Measure
from .partition import Join, partition, refuse_changes
from .run import Run, is_foreign
from .sharding import abstract, given_shardings, mesh_of
from .step import Objective, Sums, TrainState, jit_train_step, state_shardings

__all__ = ["Best", "Callback", "Fitted", "Measure", "fit"]


@dataclass(frozen=True)
class Fitted:
    """What training returns.

    Attributes:
      params: the trained parameters or model, in the form in which they were given.
      opt_state: the optimizer's state.
      step: the number of updates done; fewer than `steps` if a signal or `best` asked to stop.
      records: the figures of the updates and evaluations, as they were given to the callbacks; of
        the whole run if it has a folder.
    """

    params: Any
    opt_state: optax.OptState
    step: int
    records: list[Record]


def fit(
    params: Any,
    loss: Callable[[Any, Any], Any] | Objective,
    optimizer: optax.GradientTransformation,
    batches: Batches | Loader,
    steps: int | None = None,
    *,
    weight: Callable[[Any], jax.Array] | None = None,
    load: Callable[[], Any] | None = None,
    init: Callable[[Any], optax.OptState] | None = None,
    mesh: Mesh | None = None,
    shardings: Any = None,
    batch_sharding: Any = None,
    num_microbatches: int = 1,
    folder: str | Path | None = None,
    resume: bool = False,
    log_every: int = 10,
    evaluate_every: int = 0,
    save_every: int = 0,
    save_minutes: float = 0,
    max_skipped: int = 3,
    keep: int = 2,
    best: Best | None = None,
    checkpoints: Callable[[Path], Checkpoints] | None = None,
    callbacks: Sequence[Callback] = (),
    learning_rate: Callable[[int], Any] | None = None,
    unit: str = "rows",
    peak_per_s: float | None = None,
    measure: Measure | None = None,
) -> Fitted:
    r"""Trains a model with any loss and any optax optimizer, and can go on to the same bits.

    An update computes the gradient of the loss over all microbatches of a batch together,

    .. math::
      L(\theta) = \frac{\sum_n s_n(\theta)}{\sum_n w_n},

    where microbatch n has the sum :math:`s_n` and the weight :math:`w_n`.

    Args:
      params: what is trained: a tree of arrays; a Flax NNX module, of which every ``nnx.Param`` is
        trained; or an Equinox module or another tree, of which every array of floats is. The rest
        of a module is constant. It is copied, and stays as it is.
      loss: a pure function of ``(params, microbatch)``, with parameters in the form in which they
        are given, that returns a mean over the rows; with ``weight``, a sum. It may return a dict
        of further means or sums too, ``(loss, {name: value})``, which are recorded. Or one of the
        program's objectives.
      optimizer: any optax optimizer, with its schedule and its mask.
      batches: trees of arrays with rows along the first axis, ``[B, ...]``; every process gives the
        whole batch. Either a function of the number of updates done that returns a batch; or an
        iterator with ``get_state`` and ``set_state``, such as grain's, whose position is saved; or
        another iterable, of which a resumed run drops as many batches as it did updates.
      steps: the number of updates of the whole run; by default, one for each batch in a sequence.
      weight: a function of a microbatch that returns what its sum is divided by, such as the number
        of tokens; None: every microbatch has the weight 1.
      load: a function that returns the parameters, already sharded, for models that are read in
        place. It is called if there is no checkpoint to go on from; ``params`` then only has to
        have their shapes.
      init: a function of the parameters that returns the optimizer's first state, sharded as they
        are; by default, ``optimizer.init`` under jit.
      mesh: by default that of the parameters, or one device.
      shardings: of the parameters: a tree of ``NamedSharding`` or ``PartitionSpec``, or a prefix of
        one; by default that of the arrays given. The optimizer's state follows it.
      batch_sharding: likewise of a batch; by default, rows are split over the mesh's axes named
        ``data`` and ``fsdp``.
      num_microbatches: the number of parts of a batch that are computed one after another.
      folder: where checkpoints and records are stored, a path or an address (gs://, s3://); None:
        nowhere.
      resume: whether to go on from the newest checkpoint in the folder, if there is one.
      log_every: the number of updates between records, which wait for the device; 0: only where a
        checkpoint is saved.
      evaluate_every: the number of updates between evaluations; 0: at the two ends alone.
      save_every: the number of updates between checkpoints; 0: after the last alone.
      save_minutes: minutes after one when the next update that is logged is saved too; 0: none.
      max_skipped: the number of updates in a row whose loss or gradient is not finite after which
        training ends. Such an update changes neither parameters nor the optimizer's state.
      keep: the number of newest checkpoints that are kept.
      best: the metric by which the best evaluation is kept too, and when to stop without a better
        one, as in ``Best("eval_loss", patience=3)``.
      checkpoints: opens them in a folder, in place of ``keep``.
      callbacks: for logging, evaluation and saving; called in their order.
      learning_rate: the schedule, to record the learning rate of each update.
      unit: what is counted for the speed in the records.
      peak_per_s: the number of units per second at the devices' peak rate, to record ``mfu``.
      measure: figures of every tensor to record as ``tensors`` at multiples of ``log_every``, as in
        ``Measure()``; the report of a mask is then computed at these updates alone.

    Returns:
      The trained parameters, and the optimizer's state. SIGINT, SIGTERM or SIGHUP ends training
      after the current update, which is saved.

    Raises:
      UserError: if the folder holds a run and ``resume`` is false, if shardings do not fit, if the
        batches end early, or if too many updates in a row are not finite.
    """
    tree, join = partition(params)
    mesh = mesh or mesh_of(tree)
    named = given_shardings(mesh, tree, shardings)
    optimizer = optax.with_extra_args_support(optimizer)
    of_state = state_shardings(mesh, optimizer, tree, named)
    steps = number_of(batches) if steps is None else steps
    cadence = Cadence(steps, log_every, evaluate_every, save_every, save_minutes, max_skipped)
    loader = open_batches(batches, mesh, batch_sharding, num_microbatches, steps)
    jit_step = partial(jit_train_step, _Objective(loss, weight, join), optimizer, mesh, of_state)
    measured_step = None if measure is None else jit_step(measure)
    plain_step = jit_step(report=measure is None)
    parts = Parts(loader, plain_step, learning_rate, unit, peak_per_s, measured_step)

    def begin() -> TrainState:
        weights = _copy(tree, named) if load is None else partition(load())[0]
        opt_init = init or jax.jit(optimizer.init, out_shardings=of_state.opt_state)
        return TrainState(jax.device_put(np.int32(0), of_state.step), weights, opt_init(weights))

    records: list[Record] = []
    abstract_state = _abstract_state(optimizer, tree, of_state)
    opening = checkpoints or partial(Checkpoints, keep=keep)
    with _run(folder, resume) as run:
        recorder = Callback(on_record=records.append if run is None else run.log)
        calls = [recorder, *(_in_the_form_given(callback, join) for callback in callbacks)]
        opened = _opened(run, opening, begin, abstract_state, loader)
        with jax.set_mesh(mesh), opened as (state, saves):
            before = [r for r in run.records if r["step"] <= int(state.step)] if run else []
            state = train(state, parts, cadence, saves, calls, before=before, best=best)
        records = run.records if run else records
    return Fitted(join(state.params), state.opt_state, int(state.step), records)


def _abstract_state(optimizer: Any, params: Any, shardings: TrainState) -> TrainState:
    """The state's ShapeDtypeStructs with their shardings."""

    def shapes(params: Any) -> TrainState:
        return TrainState(jnp.int32(0), params, optimizer.init(params))

    return abstract(jax.eval_shape(shapes, params), shardings)


def _copy(params: Any, shardings: Any) -> Any:
    """The parameters with these shardings, in memory of their own: updates write over it."""
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree), out_shardings=shardings)
    return copy(jax.device_put(params, shardings))


class _Objective:
    """A loss of the model in the form that was given, as an objective on a tree of arrays."""

    def __init__(
        self, loss: Callable[[Any, Any], Any], weight: Callable[[Any], Any] | None, join: Join
    ) -> None:
        self._loss, self._weight_of, self._join = loss, weight, join
        self.unit = getattr(loss, "unit", "loss_weight")

    def weight(self, batch: Any) -> jax.Array:
        """The weight of all microbatches together."""
        if self._weight_of is None and hasattr(self._loss, "weight"):
            weight: jax.Array = self._loss.weight(batch)
            return weight
        return jnp.sum(jax.vmap(self._of_one)(batch))

    def _of_one(self, rows: Any) -> jax.Array:
        return jnp.asarray(1 if self._weight_of is None else self._weight_of(rows), jnp.float32)

    def __call__(self, params: Any, batch: Any) -> Sums:
        """The sums of one microbatch."""
        with refuse_changes():
            value = self._loss(self._join(params), batch)
        if isinstance(value, Sums):
            return value
        loss, metrics = value if isinstance(value, tuple) else (value, {})
        return Sums(loss, self._of_one(batch), metrics)


def _in_the_form_given(callback: Callback, join: Join) -> Callback:
    """The callback, whose functions take parameters in the form in which they were given."""
    return replace(
        callback,
        evaluate=lambda params, step: callback.evaluate(join(params), step),
        on_save=lambda params, step: callback.on_save(join(params), step),
    )


@contextmanager
def _run(folder: str | Path | None, resume: bool) -> Iterator[Run | None]:
    """The run in a folder or at an address, if one is named, which may be written."""
    if folder is None:
        yield None
        return
    try:
        place = check_place(str(folder))
    except ValueError as error:
        raise UserError(f"folder: {error}") from None
    with writing(place) as found:
        yield _checked(Run(found), resume)


def _checked(run: Run, resume: bool) -> Run:
    """The run, if its folder holds none that is not to be resumed, and nothing else.

    Raises:
      UserError: if it does.
    """
    folder = run.folder
    if run.checkpoints.is_dir() or run.metrics_file.is_file():
        if not resume:
            raise UserError(
                f"{folder} already holds a run; go on with it with resume=True, or choose another "
                "folder"
            )
    elif run.config_file.is_file() or not folder.exists():
        pass  # The program has begun it, or nobody has.
    elif is_foreign(folder):
        raise UserError(f"{folder} exists and is not a run; choose another folder")
    return run


@contextmanager
def _opened(
    run: Run | None,
    open_checkpoints: Callable[[Path], Checkpoints],
    begin: Callable[[], TrainState],
    abstract_state: TrainState,
    loader: Loader,
) -> Iterator[tuple[TrainState, Checkpoints | None]]:
    """Yields the state to go on from, and the checkpoints if the run has a folder."""
    if run is None:
        yield begin(), None
        return
    # Parameters that cannot be read are reported before anything is written.
    begun = None if run.checkpoints.is_dir() else begin()
    barrier(f"before creating {shown(run.folder)}")  # All processes have looked at it.
    if is_writer(run.folder):
        run.folder.mkdir(parents=True, exist_ok=True)
    with run.held(), open_checkpoints(run.checkpoints) as checkpoints:
        if checkpoints.latest_step is not None:
            state = checkpoints.restore(abstract_state, loader)
        else:
            state = begin() if begun is None else begun
        run.forget_after(int(state.step) or -1)  # What precedes the first update is repeated.
        yield state, checkpoints
