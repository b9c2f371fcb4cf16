"""The report on data: what it shows, and what it ends with status 2 for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from train.__main__ import main

Check = Callable[..., tuple[int, str, list[str]]]


def _row(answer: str) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": "1+1="},
            {"role": "assistant", "content": answer},
        ]
    }


@pytest.fixture
def check(
    write_config: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Check:
    """Checks rows, and a config's data section laid over the usual one."""

    def check(
        *rows: Any, model: dict[str, str] | None = None, objective: str = "sft", **data: Any
    ) -> tuple[int, str, list[str]]:
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = write_config(
            data={"train": str(file)} | data, model=model or {}, objective={"kind": objective}
        )
        status = main(["data", "check", "--config", str(config)])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return check


def test_good_data(check: Check) -> None:
    status, out, err = check(*(_row("2" * n) for n in range(1, 40)), max_length=48)
    assert (status, err) == (0, [])
    for said in (
        "training data: ",
        "evaluation data: ",
        "padded rows, ",
        "tokens an example, median ",
        "over data.max_length",
        "0 training examples repeat another one",
        "texts survive a round trip",
        "<|start|>assistant\n⟦2",
        "<|end|>⟧",
        "nothing found that would make training wrong",
    ):
        assert said in out


def test_it_writes_no_run(check: Check, tmp_path: Path) -> None:
    check(*(_row("2" * n) for n in range(1, 40)))
    assert not (tmp_path / "run").exists()


def test_what_is_learned_is_in_colour_on_a_terminal(
    write_config: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    from train.config import load_config
    from train.data.check import check

    console = Console(force_terminal=True, color_system="standard", width=80)
    check(load_config(write_config()), console, num_shown=1)
    out = capsys.readouterr().out
    assert "\x1b[1;32m0" in out
    assert "⟦" not in out
    dumb = Console(force_terminal=True, color_system=None, width=80)
    check(load_config(write_config()), dumb, num_shown=1)
    assert "⟦0" in capsys.readouterr().out


def test_every_fault_is_told(check: Check) -> None:
    rows = [_row("2" * n) for n in range(1, 40)]
    status, _, err = check(*rows, {"text": 3}, _row("2"), {"messages": []})
    assert status == 2
    assert [line.split(" ", 3)[2].rsplit(":", 2)[1] for line in err] == ["40", "42"]


@pytest.mark.parametrize(
    ("rows", "data", "said"),
    [
        ([_row("2")] * 3, {"eval_fraction": 0}, "an epoch has 3 rows, fewer than a batch of 8"),
        ([{"text": ""}], {}, "rows.jsonl:1: has no tokens to train on"),
        ([_row("2")] * 9, {"max_length": 2}, "nothing is left to train on"),
    ],
)
def test_what_makes_training_wrong(
    check: Check, rows: list[Any], data: dict[str, Any], said: str
) -> None:
    status, _, err = check(*rows, **data)
    assert status == 2
    assert said in err[0]


def test_eval_data_that_is_trained_on(check: Check, tmp_path: Path) -> None:
    held = tmp_path / "held.jsonl"
    held.write_text("".join(json.dumps(_row(n)) + "\n" for n in ("x", "22", "222")))
    status, _, err = check(*(_row("2" * n) for n in range(1, 40)), eval=str(held))
    assert status == 2
    assert f"{held}:2: is in the training data too, as are 1 others" in err[0]


def test_an_end_of_turn_that_is_never_learned(
    check: Check, tiny_model: Path, tmp_path: Path
) -> None:
    template = tmp_path / "t.jinja"
    template.write_text(
        "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    status, _, err = check(
        *(_row("2" * n) for n in range(1, 40)),
        model={"path": str(tiny_model), "chat_template": str(template)},
    )
    assert status == 2
    assert "trains on an end token" in err[0]


PAIRS = [
    {"prompt": f"{n}", "chosen": "2" * (n % 7 + 1), "rejected": "3" * (n % 5 + 1)}
    for n in range(1, 40)
]


def test_pairs_are_checked_for_the_objective(check: Check) -> None:
    status, out, _ = check(*PAIRS, objective="dpo", format="preference")
    assert status == 0
    for said in (
        "training data: 31 pairs",
        "training data: tokens to the end of chosen, median",
        "evaluation data: tokens … of rejected, median",
        "chosen: 1⟦22<|end|>⟧\nrejected: 1⟦33<|end|>⟧",
        "78 of 78 texts survive a round trip",
    ):
        assert said in out, out
    status, _, err = check(*PAIRS, format="preference")
    assert (status, len(err)) == (2, 1)
    assert "rows.jsonl:1: is a preference pair" in err[0]


def test_single_answers_are_no_pairs(check: Check, tmp_path: Path) -> None:
    status, _, err = check(*PAIRS, _row("2"), _row("3"), objective="dpo", format=None)
    assert status == 2
    assert any("is not a preference pair" in line for line in err), err


def test_how_records_were_read_is_said_first(check: Check, tmp_path: Path) -> None:
    rows = [_row("2" * n) | {"id": n} for n in range(1, 40)]
    _, out, _ = check(*rows, _row("so <|end|>") | {"id": 40}, eval_fraction=0)
    lines = out.splitlines()
    file = tmp_path / "rows.jsonl"
    assert lines[0] == (
        f"{file}: 40 records read as messages (columns: messages, not used: id), with the chat "
        "template"
    )
    assert lines[1] == (
        f"{file}:40 is the first of 1 whose contents spell control tokens (data.control_tokens)"
    )
    assert lines[2:6] == [
        "an example, with what is trained on set off:",
        "<|start|>user",
        "1+1=<|end|>",
        "<|start|>assistant",
    ]
