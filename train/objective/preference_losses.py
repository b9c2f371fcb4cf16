r"""Losses of preference pairs, each a function of log-probabilities.

:math:`y_w` is the chosen answer to the prompt :math:`x` and :math:`y_l` the rejected one,
:math:`\pi(y)` stands for :math:`\pi(y \mid x)`, :math:`\sigma` for the logistic function, and

.. math:: r(y) = \log \pi(y) - \log \pi_{\text{ref}}(y), \qquad \Delta = r(y_w) - r(y_l).

Each function takes `Pairs` and returns `Scores`. The rewards are those that the loss compares, so a
pair is right where the chosen answer has the larger one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Pairs(NamedTuple):
    """Log-probabilities of the two answers of each pair, in float32 arrays of one shape.

    Attributes:
      chosen, rejected: log π(y), summed over the answer's tokens.
      chosen_length, rejected_length: the number of those tokens.
      ref_chosen, ref_rejected: log π_ref(y); None for a loss without a reference.
    """

    chosen: jax.Array
    rejected: jax.Array
    chosen_length: jax.Array
    rejected_length: jax.Array
    ref_chosen: jax.Array | None = None
    ref_rejected: jax.Array | None = None


class Scores(NamedTuple):
    """Each pair's loss and the implicit rewards of its answers."""

    loss: jax.Array
    chosen: jax.Array
    rejected: jax.Array


def dpo(pairs: Pairs, *, beta: float, label_smoothing: float = 0.0) -> Scores:
    r"""Direct preference optimisation, and its conservative form.

    .. math:: -(1 - \epsilon) \log \sigma(\beta \Delta) - \epsilon \log \sigma(-\beta \Delta)

    Args:
      beta: how closely the model is held to the reference.
      label_smoothing: ε, the probability that a pair's preference is wrong.

    References:
      Rafailov et al., 2023 (arXiv 2305.18290), equation 7; with ε, Mitchell, "A note on DPO with
      noisy preferences", 2023.
    """
    chosen, rejected = _rewards(pairs, beta)
    return Scores(_smoothed(chosen - rejected, label_smoothing), chosen, rejected)


def robust_dpo(pairs: Pairs, *, beta: float, label_smoothing: float) -> Scores:
    r"""DPO whose loss on preferences of which a fraction is wrong is unbiased.

    .. math:: \frac{-(1 - \epsilon) \log \sigma(\beta \Delta)
              + \epsilon \log \sigma(-\beta \Delta)}{1 - 2 \epsilon}

    Args:
      label_smoothing: ε < ½, the fraction of wrong preferences.

    References:
      Chowdhury, Kini, Natarajan, 2024 (arXiv 2403.00409).
    """
    chosen, rejected = _rewards(pairs, beta)
    margin = chosen - rejected
    clean, flipped = -jax.nn.log_sigmoid(margin), -jax.nn.log_sigmoid(-margin)
    loss = (1 - label_smoothing) * clean - label_smoothing * flipped
    return Scores(loss / (1 - 2 * label_smoothing), chosen, rejected)


def hinge(pairs: Pairs, *, beta: float) -> Scores:
    r"""A hinge in place of DPO's logistic loss.

    .. math:: \max(0,\ 1 - \beta \Delta)

    References:
      SLiC, Zhao et al., 2023 (arXiv 2305.10425), normalised by the reference as in Liu et al., 2024
      (RSO, arXiv 2309.06657).
    """
    chosen, rejected = _rewards(pairs, beta)
    return Scores(jax.nn.relu(1 - (chosen - rejected)), chosen, rejected)


def ipo(pairs: Pairs, *, beta: float) -> Scores:
    r"""Identity preference optimisation, on means over tokens.

    .. math:: \left(\frac{r(y_w)}{|y_w|} - \frac{r(y_l)}{|y_l|} - \frac{1}{2 \beta}\right)^2

    The paper writes the sums r; its authors divide them by the number of tokens, without which the
    square would grow with the answers' lengths.

    Args:
      beta: the paper's τ.

    References:
      Azar et al., 2023 (arXiv 2310.12036), equation 17.
    """
    chosen, rejected = _rewards(pairs, 1.0)
    margin = chosen / pairs.chosen_length - rejected / pairs.rejected_length
    return Scores(
        jnp.square(margin - 1 / (2 * beta)),
        beta * chosen / pairs.chosen_length,
        beta * rejected / pairs.rejected_length,
    )


def simpo(pairs: Pairs, *, beta: float, gamma: float) -> Scores:
    r"""Simple preference optimisation: mean log-probabilities, a target margin, no reference.

    .. math:: -\log \sigma\left(\frac{\beta}{|y_w|} \log \pi(y_w)
              - \frac{\beta}{|y_l|} \log \pi(y_l) - \gamma\right)

    References:
      Meng, Xia, Chen, 2024 (arXiv 2405.14734).
    """
    chosen, rejected = (beta * mean for mean in _means(pairs))
    return Scores(-jax.nn.log_sigmoid(chosen - rejected - gamma), chosen, rejected)


def orpo(pairs: Pairs, *, beta: float) -> Scores:
    r"""Odds ratio preference optimisation: supervised loss and odds ratio, no reference.

    .. math:: -\log P(y_w) - \beta \log \sigma\left(\log \frac{P(y_w)}{1 - P(y_w)}
              - \log \frac{P(y_l)}{1 - P(y_l)}\right), \qquad
              \log P(y) = \frac{1}{|y|} \log \pi(y)

    Args:
      beta: the paper's λ.

    References:
      Hong, Lee, Thorne, 2024 (arXiv 2403.07691), equations 6 and 7.
    """
    chosen, rejected = _means(pairs)
    log_odds = (chosen - rejected) - (_log_one_minus_exp(chosen) - _log_one_minus_exp(rejected))
    loss = -chosen - beta * jax.nn.log_sigmoid(log_odds)
    return Scores(loss, beta * chosen, beta * rejected)


def _rewards(pairs: Pairs, beta: float) -> tuple[jax.Array, jax.Array]:
    """β r of both answers."""
    assert pairs.ref_chosen is not None
    assert pairs.ref_rejected is not None
    return beta * (pairs.chosen - pairs.ref_chosen), beta * (pairs.rejected - pairs.ref_rejected)


def _means(pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    """The mean log-probability of a token of each answer."""
    return pairs.chosen / pairs.chosen_length, pairs.rejected / pairs.rejected_length


def _smoothed(margin: jax.Array, label_smoothing: float) -> jax.Array:
    loss = -(1 - label_smoothing) * jax.nn.log_sigmoid(margin)
    if label_smoothing:
        loss -= label_smoothing * jax.nn.log_sigmoid(-margin)
    return loss


def _log_one_minus_exp(x: jax.Array) -> jax.Array:
    """log(1 - exp(x)) for x < 0; finite at 0, where float32 rounds a certain answer to."""
    x = jnp.minimum(x, -1e-7)
    return jnp.log(-jnp.expm1(x))
