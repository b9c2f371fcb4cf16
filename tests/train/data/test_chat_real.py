"""The loss mask of a real model's tokenizer and chat template."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Make = Callable[..., Any]

SMOLLM2 = Path(__file__).parents[3] / "models" / "SmolLM2-135M-Instruct"


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make quickstart brings the model")
def test_a_real_tokenizer_whose_padding_is_its_end_of_turn(encode_record: Make) -> None:
    from train.hf.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(SMOLLM2)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    asked, answer = "Cinq fois\n\n3 = ?", "15 🙂\n\ne\u0301"
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    example = encode_record(tokenizer, {"messages": messages * 2})
    pieces = [
        f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        f"{answer}<|im_end|>",
        f"\n<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n",
        f"{answer}<|im_end|>",
        "\n",
    ]
    turn = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM"
    assert tokenizer.decode(example.tokens).startswith(turn), "its template adds a system turn"
    edges = [0, *(np.flatnonzero(np.diff(example.loss_mask)) + 1).tolist(), len(example.tokens)]
    parts = [tokenizer.decode(example.tokens[a:b]) for a, b in pairwise(edges)]
    assert parts[0].endswith(pieces[0])
    assert parts[1:] == pieces[1:]
