"""What is known of an example without reading it. Loss masks: test_chat.py."""

import numpy as np
import pytest

from train.data.chat import Rendered
from train.data.tokenize import Example, encode, index_examples, without_loss
from train.errors import UserError


def _example(tokens: list[int], loss_mask: list[int]) -> Example:
    return Example(np.array(tokens, np.int32), np.array(loss_mask, bool))


def test_the_index_by_hand() -> None:
    examples = [_example([5, 9, 7], [1, 0, 1]), _example([5, 9, 7], [0, 0, 0]), _example([2], [1])]
    texts = [Rendered("", [], True, notes=n, record_digest=8) for n in (1, 2, 3)]
    index = index_examples([4, 4, 6], texts, examples)
    assert index["notes"].tolist() == [1, 2, 3]
    assert index["record_digest"].tolist() == [8, 8, 8]
    assert index["record"].tolist() == [4, 4, 6]
    assert index["length"].tolist() == [3, 3, 1]
    assert index["num_loss_tokens"].tolist() == [2, 0, 1]
    assert index["first_loss_token"].tolist() == [2, -1, -1], "nothing predicts a first token"
    assert index["highest_token"].tolist() == [9, 9, 2]
    assert index["digest"][0] == index["digest"][1] != index["digest"][2]
    assert [record for record, _ in without_loss(index)] == [4, 6]


def test_an_example_without_tokens_has_an_index() -> None:
    index = index_examples([0], [Rendered("", [], True)], [_example([], [])])
    assert (index["length"][0], index["first_loss_token"][0]) == (0, -1)


def test_texts_are_encoded_as_they_are_alone(tokenizer) -> None:  # type: ignore[no-untyped-def]
    texts = [Rendered("ab", [(1, 2)], True), Rendered("c", [(0, 1)], False)]
    together = encode(texts, tokenizer)
    for text, example in zip(texts, together, strict=True):
        (alone,) = encode([text], tokenizer)
        assert example.tokens.tolist() == alone.tokens.tolist()
        assert example.loss_mask.tolist() == alone.loss_mask.tolist()


def test_a_tokenizer_without_offsets_is_refused(tokenizer, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(type(tokenizer), "is_fast", False)
    with pytest.raises(UserError, match=r"needs a tokenizer\.json"):
        encode([Rendered("a", [], True)], tokenizer)
