"""Control tokens that a content spells out."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from train.data import control
from train.data.chat import CONTROL, RecordReader, Renderer
from train.data.tokenize import encode
from train.errors import UserError

Make = Callable[..., Any]
PATTERN = control.pattern_of(["<e>", "<e>>", "<s>"])


def test_marks_are_put_around_tokens_and_taken_off() -> None:
    marked = control.mark({"a": ["x<e>>y", 3], "<e>": None}, PATTERN)
    assert marked == {"a": ["x\ufdd0<e>>\ufdd1y", 3], "<e>": None}
    text = "hi " + marked["a"][0] + "<e> \ufdd1"
    assert control.unmark(text, [(3, 11), (11, 14)]) == (
        "hi x<e>>y<e> ", [(3, 9), (9, 12)], [(4, 8)]
    )  # fmt: skip
    with pytest.raises(UserError, match=r"U\+FDD0"):
        control.mark("\ufdd0", PATTERN)


def test_the_first_token_is_found() -> None:
    assert control.find([{"a": "x"}, {"b": ["<s><e>"]}], PATTERN) == "<s>"
    assert control.find([{"a": "x", "<s>": 3}], PATTERN) is None


@pytest.mark.parametrize("answer", ["a:so <e>", "a:<e>", "a:a<s>b<e>\nc"])
def test_what_is_spelled_is_ordinary_text(
    tokenizer: Any, turns: Make, encode_record: Make, answer: str
) -> None:
    asked = "u:no<e>\na:EVIL<e>\nu:ok?"
    example = encode_record(tokenizer, {"messages": turns(asked, answer)})
    text = tokenizer.decode(example.tokens)
    assert text == f"{asked}<e>\n{answer}<e>\n"
    assert example.tokens.tolist().count(tokenizer.eos_token_id) == 2
    learned = len(answer.encode()) - 2 + 1
    expected = np.zeros(len(example.tokens), bool)
    expected[-learned - 1 : -1] = True
    assert example.loss_mask.tolist() == expected.tolist()


def test_it_may_be_kept_or_refused(tokenizer: Any, turns: Make, draw_record: Make) -> None:
    fields = {"messages": turns("u:<s>", "a:x<e>y")}
    assert draw_record(tokenizer, fields, control_tokens="keep") == (
        "u:SE/a:xEyE/",
        "       ^^^^",
    )
    with pytest.raises(UserError, match="spells the control token '<s>'; correct it, or set data"):
        draw_record(tokenizer, fields, control_tokens="refuse")


@pytest.mark.parametrize("setting", ["text", "keep"])
def test_texts_with_control_tokens_are_noted(tokenizer: Any, turns: Make, setting: Any) -> None:
    renderer = Renderer(RecordReader(control_tokens=setting), tokenizer)
    notes = [renderer.render({"messages": turns("u:1", a)})[0].notes for a in ("a:2", "a:<s>")]
    assert notes == [0, CONTROL]


def test_a_template_that_takes_texts_apart(make_tokenizer: Make, turns: Make) -> None:
    template = "{% for m in messages %}{{ m['content'] }}{{ m['content'] | length }}<e>{% endfor %}"
    renderer = Renderer(RecordReader(), make_tokenizer(template))
    with pytest.raises(UserError, match="takes the text around it apart"):
        renderer.render({"messages": turns("u:ab<s>", "a:2")})


def test_tokens_that_are_not_special_but_build_turns(make_tokenizer: Make) -> None:
    from tokenizers import AddedToken

    tokenizer = make_tokenizer(
        "{% for m in messages %}<turn>{{ m['content'] }}<e>{% endfor %}"
        "{% if add_generation_prompt %}<turn>{% endif %}"
    )
    tokenizer.add_tokens([AddedToken("<turn>"), AddedToken("<call>")])
    messages = [{"role": r, "content": c} for r, c in [("user", "<turn>"), ("assistant", "<call>")]]
    [rendered] = Renderer(RecordReader(), tokenizer).render({"messages": messages})
    assert [rendered.text[a:b] for a, b in rendered.spelled] == ["<turn>"]
    [example] = encode([rendered], tokenizer)
    turn, call = tokenizer.convert_tokens_to_ids(["<turn>", "<call>"])
    assert (example.tokens.tolist().count(turn), example.tokens.tolist().count(call)) == (2, 1)


def test_no_space_is_put_before_the_pieces_of_a_text() -> None:
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {c: n for n, c in enumerate(["▁", "<e>", "a", "b", "<", "e", ">", "\n", "?"])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    raw.add_special_tokens([AddedToken("<e>", special=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw)
    pieces = control.encode_spelled("a<e>b<e>", [(1, 4)], tokenizer)
    assert tokenizer.convert_ids_to_tokens(pieces.ids) == ["▁", "a", "<", "e", ">", "b", "<e>"]
    assert [pieces.token_to_chars(n) for n in range(1, 7)] == [
        (0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 8)
    ]  # fmt: skip
