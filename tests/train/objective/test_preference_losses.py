"""Each loss against its paper's formula in NumPy, and against values that were computed once."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.objective import preference_losses as losses
from train.objective.preference_losses import Pairs

# Three pairs: log-probabilities of a model and a reference, and the answers' tokens.
W, L = np.array([-12.0, -31.5, -4.25]), np.array([-14.5, -29.0, -40.0])  # chosen, rejected
REF_W, REF_L = np.array([-13.0, -30.0, -4.75]), np.array([-14.0, -30.5, -38.0])
NUM_W, NUM_L = np.array([8.0, 21.0, 2.0]), np.array([9.0, 17.0, 30.0])
DELTA = (W - REF_W) - (L - REF_L)


def _log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log(1 + np.exp(-x))


def _log_odds(mean: np.ndarray) -> np.ndarray:
    return mean - np.log(1 - np.exp(mean))


def _ipo(beta: float) -> np.ndarray:
    return ((W - REF_W) / NUM_W - (L - REF_L) / NUM_L - 1 / (2 * beta)) ** 2


def _simpo(beta: float, gamma: float) -> np.ndarray:
    return -_log_sigmoid(beta * W / NUM_W - beta * L / NUM_L - gamma)


def _orpo(beta: float) -> np.ndarray:
    odds = _log_odds(W / NUM_W) - _log_odds(L / NUM_L)
    return -W / NUM_W - beta * _log_sigmoid(odds)


def _flipped(eps: float) -> np.ndarray:
    return -eps * _log_sigmoid(-0.5 * DELTA)


CASES: list[Any] = [
    # The loss, the paper's formula, and the mean that the formula gives.
    (partial(losses.dpo, beta=0.5), -_log_sigmoid(0.5 * DELTA), 0.7800711),
    (
        partial(losses.dpo, beta=0.5, label_smoothing=0.1),
        -0.9 * _log_sigmoid(0.5 * DELTA) + _flipped(0.1),
        0.7967378,
    ),
    (
        partial(losses.robust_dpo, beta=0.5, label_smoothing=0.1),
        (-0.9 * _log_sigmoid(0.5 * DELTA) - _flipped(0.1)) / 0.8,
        0.7592378,
    ),
    (partial(losses.hinge, beta=0.5), np.maximum(0, 1 - 0.5 * DELTA), 0.9166667),
    (partial(losses.ipo, beta=0.5), _ipo(0.5), 0.8277513),
    (partial(losses.simpo, beta=2.0, gamma=0.5), _simpo(2.0, 0.5), 1.2601909),
    (partial(losses.orpo, beta=0.1), _orpo(0.1), 1.7913136),
]
NAMES = ["dpo", "conservative", "robust", "hinge", "ipo", "simpo", "orpo"]


def _pairs(with_reference: bool = True) -> Pairs:
    given = [W, L, NUM_W, NUM_L] + ([REF_W, REF_L] if with_reference else [])
    return Pairs(*(jnp.asarray(x, jnp.float32) for x in given))


@pytest.mark.parametrize(("loss", "expected", "mean"), CASES, ids=NAMES)
def test_a_loss_is_that_of_its_paper(
    loss: Callable[[Pairs], Any], expected: np.ndarray, mean: float
) -> None:
    scores = loss(_pairs(with_reference=loss.func.__name__ not in ("simpo", "orpo")))  # type: ignore[attr-defined]
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-5)
    assert float(jnp.mean(scores.loss)) == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (partial(losses.dpo, beta=0.3), np.log(2)),
        (partial(losses.dpo, beta=0.3, label_smoothing=0.2), np.log(2)),
        (partial(losses.robust_dpo, beta=0.3, label_smoothing=0.2), np.log(2)),
        (partial(losses.hinge, beta=0.3), 1.0),
        (partial(losses.ipo, beta=0.25), 4.0),
    ],
)
def test_the_reference_itself_has_the_loss_of_a_guess(
    loss: Callable[[Pairs], Any], expected: float
) -> None:
    pairs = _pairs()._replace(ref_chosen=_pairs().chosen, ref_rejected=_pairs().rejected)
    scores = loss(pairs)
    np.testing.assert_allclose(scores.loss, expected, rtol=1e-6)
    np.testing.assert_array_equal(scores.chosen - scores.rejected, np.zeros(3))


def test_rewards_are_what_the_loss_compares() -> None:
    scores = losses.dpo(_pairs(), beta=0.5)
    np.testing.assert_allclose(scores.chosen, 0.5 * (W - REF_W), rtol=1e-6)
    np.testing.assert_allclose(scores.rejected, 0.5 * (L - REF_L), rtol=1e-6)
    scores = losses.simpo(_pairs(with_reference=False), beta=2.0, gamma=0.5)
    np.testing.assert_allclose(scores.chosen, 2 * W / NUM_W, rtol=1e-6)


def test_a_certain_answer_has_finite_odds_and_gradients() -> None:
    pairs = _pairs(with_reference=False)._replace(chosen=jnp.zeros(3))

    def total(chosen: jax.Array) -> jax.Array:
        return jnp.sum(losses.orpo(pairs._replace(chosen=chosen), beta=0.1).loss)

    value, gradient = jax.value_and_grad(total)(pairs.chosen)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
