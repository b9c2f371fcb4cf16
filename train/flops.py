"""How much arithmetic training takes, counted from the architecture."""

import jax

from train.devices import find_chip
from train.model import ModelConfig


def flops_per_token(model: ModelConfig, length: int) -> float:
    """Floating-point operations of one token's way forward and backward, in rows of `length`.

    Those of products alone, each multiplication and each addition being one: 6 for every weight
    of a matrix (Kaplan et al. 2020, §2.1; embeddings are looked up and count only as the head),
    and 12 · H · head_dim for every key that a token sees, in every layer (PaLM, Chowdhery et al.
    2022, appendix B). PaLM counts all T keys of a row; here it is those that a token sees,
    (T + 1) / 2 on average without a window, for the others need not be computed. Documents within
    a packed row do not lower the count; what rematerialisation computes again does not raise it.
    """
    D, H, K = model.hidden_size, model.num_attention_heads, model.num_key_value_heads
    attention = 2 * D * (H + K) * model.head_dim
    layer = attention + 3 * D * model.intermediate_size
    weights = model.num_hidden_layers * layer + model.vocab_size * D
    keys = sum(_keys_seen(window, length) for window in model.windows)
    return 6.0 * weights + 12.0 * H * model.head_dim * keys


def _keys_seen(window: int | None, length: int) -> float:
    """By a token of a row on average, itself included.

    >>> _keys_seen(None, 4)
    2.5
    >>> _keys_seen(2, 4)
    1.75
    """
    seen = min(window or length, length)
    return (seen * (seen + 1) / 2 + (length - seen) * seen) / length


def peak_tokens_per_s(
    model: ModelConfig, length: int, device: jax.Device, devices: int
) -> float | None:
    """Tokens a second at which so many devices would multiply bfloat16 at their peak.

    None where the peak of such a device is not known, as that of a CPU.
    """
    chip = find_chip(device.device_kind)
    return devices * chip.bf16_flops / flops_per_token(model, length) if chip else None
