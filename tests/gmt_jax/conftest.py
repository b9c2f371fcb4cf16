"""The reference by sorting, and a small training run, for the tests of the library."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P


def mask_by_sorting(magnitude: np.ndarray, mask_ratio: Fraction) -> np.ndarray:
    """The mask of a tensor with these |g|, True where an entry is kept."""
    m = int(mask_ratio * magnitude.size)
    if m == magnitude.size:
        return np.zeros(magnitude.shape, bool)
    threshold = np.sort(magnitude, axis=None)[m]  # NaN is sorted after infinity.
    if np.isnan(threshold):
        return np.isnan(magnitude)
    return (magnitude >= threshold) | np.isnan(magnitude)


@pytest.fixture(scope="session", name="mask_by_sorting")
def _mask_by_sorting() -> Callable[[np.ndarray, Fraction], np.ndarray]:
    return mask_by_sorting


MESHES = {"one device": None, "auto": AxisType.Auto, "explicit": AxisType.Explicit}


@pytest.fixture(params=MESHES)
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh | None]:
    """None for one device; or a mesh of 4 by 2 devices, "x" and "y", that is the current one."""
    axis_type = MESHES[request.param]
    if axis_type is None:
        yield None
    else:
        with jax.set_mesh(jax.make_mesh((4, 2), ("x", "y"), axis_types=(axis_type,) * 2)) as mesh:
            yield mesh


def lenient(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """A transformation of optax, whose own code promotes dtypes and ranks."""

    def update(*args: Any, **extra_args: Any) -> Any:
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            return inner.update(*args, **extra_args)

    return optax.GradientTransformationExtraArgs(inner.init, update)


class Step(NamedTuple):
    """One update: the weights before it, where they moved, and the state after it."""

    weights: Any
    moved: Any
    state: Any


class Run:
    """A few updates of a tree of three leaves, of which one has stacked layers."""

    shapes: ClassVar = {"w": (24, 16), "b": (16,), "layers": (3, 8, 8)}
    specs: ClassVar = {"w": P("x", "y"), "b": P("y"), "layers": P(None, "x")}
    stacked: ClassVar = {"w": None, "b": None, "layers": 0}
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    ratio = 0.5

    @staticmethod
    def adamw() -> optax.GradientTransformationExtraArgs:
        """With a weight decay that moves every weight."""
        return lenient(optax.adamw(1e-2, weight_decay=0.1))

    @classmethod
    def weights(cls, seed: int = 0) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(seed)
        return {name: rng.standard_normal(shape).astype("f4") for name, shape in cls.shapes.items()}

    @classmethod
    def gradient(cls, step: int) -> dict[str, np.ndarray]:
        return cls.weights(1000 + step)

    @classmethod
    def to_devices(cls, tree: Any, mesh: Mesh | None) -> Any:
        if mesh is None:
            return jax.tree.map(jnp.asarray, tree)
        return {
            name: jax.device_put(x, NamedSharding(mesh, cls.specs[name]))
            for name, x in tree.items()
        }

    @classmethod
    def train(
        cls, optimizer: Any, steps: int, mesh: Mesh | None = None, compiled: bool = False
    ) -> Iterator[Step]:
        """Eagerly, so that all runs share the compiled search; or as one compiled program."""
        params = cls.to_devices(cls.weights(), mesh)
        init, update = optimizer.init, optimizer.update
        if compiled:
            init, update = jax.jit(init), jax.jit(update)
        state = init(params)
        for step in range(steps):
            before = params
            updates, state = update(cls.to_devices(cls.gradient(step), mesh), state, params)
            params = optax.apply_updates(params, updates)
            moved = jax.tree.map(
                lambda a, b: np.asarray(a).view("u4") != np.asarray(b).view("u4"), before, params
            )
            yield Step(before, moved, state)

    @classmethod
    def largest(cls, scores: Any) -> dict[str, np.ndarray]:
        """Where |score| is at least the m-th smallest of its tensor, counting from 0."""
        masks = {}
        for name, score in scores.items():
            score = np.abs(np.asarray(score))
            rows = score.reshape(1 if cls.stacked[name] is None else score.shape[0], -1)
            m = int(cls.ratio * rows.shape[1])
            masks[name] = (rows >= np.sort(rows, axis=1)[:, m : m + 1]).reshape(score.shape)
        return masks


@pytest.fixture(scope="session")
def run() -> type[Run]:
    return Run


class AdamW:
    """`Run.adamw` in NumPy, with the defaults of optax: its moments, and its updates."""

    def __init__(self) -> None:
        self.count, self.mu, self.nu = 0, 0.0, 0.0

    def __call__(self, gradient: np.ndarray, weight: np.ndarray) -> np.ndarray:
        g, w = gradient.astype(np.float64), weight.astype(np.float64)
        self.count += 1
        self.mu = 0.9 * self.mu + 0.1 * g
        self.nu = 0.999 * self.nu + 0.001 * g**2
        mu, nu = self.mu / (1 - 0.9**self.count), self.nu / (1 - 0.999**self.count)
        update: np.ndarray = -1e-2 * (mu / (np.sqrt(nu) + 1e-8) + 0.1 * w)
        return update


@pytest.fixture(scope="session")
def adamw_in_numpy() -> type[AdamW]:
    return AdamW
