"""Nothing secret is sent."""

from pathlib import Path

import pytest

from train.config import load_config
from train.observe.privacy import describe_code, redact


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            {"api_key": "x", "b": {"hf_token": "y", "empty": ""}},
            {"api_key": "***", "b": {"hf_token": "***", "empty": ""}},
        ),
        (
            {"max_new_tokens": 4, "control_tokens": "text"},
            {"max_new_tokens": 4, "control_tokens": "text"},
        ),
        ("s3://alice:pass@host/x", "s3://***@host/x"),
        ("hf_abcdefghijklmnop is mine", "*** is mine"),
        (["from-the-env!", 3, None], ["***", 3, None]),
    ],
)
def test_secrets_are_hidden(
    value: object, expected: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOME_SECRET", "from-the-env!")
    assert redact(value) == expected


def test_the_home_folder_is_not_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/alice")
    assert redact("/home/alice/data and /home/alicexy") == "~/data and /home/alicexy"
    assert redact("/home/alice") == "~"


def test_a_config_without_secrets_stays_as_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", "/nobody")
    config = load_config(None, ["run=r", "model.path=a/b", "data.train=d.jsonl"])
    tree = config.model_dump(mode="json")
    assert redact(tree) == tree


def test_the_revision_of_the_working_folder_is_described(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    facts = describe_code()
    assert facts["devices"].startswith("8 ")
    monkeypatch.chdir(tmp_path)
    assert "git_revision" not in describe_code()
    assert set(facts) - {"git_revision"} == {"gmt_jax", "jax", "flax", "optax", "devices"}
