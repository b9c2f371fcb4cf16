"""Addresses are told from paths, and no folder is made of them."""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.__main__ import main, make_parser
from train.buckets.address import check_place, is_address, join, last_name, local_path
from train.errors import UserError
from train.fit import fit

SETTINGS = ["run=r", "model.path=m", "data.train=d.jsonl"]


@pytest.mark.parametrize("text", ["gs://b/r", "s3://b", "file:///r", "hf://datasets/x", "gs://"])
def test_addresses_are_no_paths(text: str) -> None:
    assert is_address(text)
    with pytest.raises(ValueError, match=f"{text} is an address"):
        local_path(text)


@pytest.mark.parametrize("text", ["r", "/r", "C://r", "owner/model", "a:b", "gs:/b", "", "~/://"])
def test_paths_are_no_addresses(text: str) -> None:
    assert not is_address(text)
    assert local_path(text) == Path(text)


@pytest.mark.parametrize("text", ["gs://bucket/a/b", "s3://a.b-c", "gs://bucket/", "a/b", "~/x"])
def test_places_are_paths_and_addresses(text: str) -> None:
    assert check_place(text) == text


@pytest.mark.parametrize(
    "text", ["file:///r", "hf://datasets/x", "gs://", "gs:///x", "s3://?", "gs://bucket/\n"]
)
def test_other_addresses_are_no_places(text: str) -> None:
    with pytest.raises(ValueError, match=r"is of an unknown kind|names no bucket"):
        check_place(text)


def test_names_are_below_addresses() -> None:
    assert join("gs://b/r/", "x") == "gs://b/r/x"
    assert last_name("gs://b/r/") == "r"


@pytest.mark.parametrize(
    "setting",
    [
        "run=ab://b/r",
        "cache=ab://b/c",
        "model.path=ab://b/m",
        "model.chat_template=ab://b/t.jinja",
        "data.train=ab://b/d.jsonl",
        "data.eval=[{path: 'ab://b/d.jsonl'}]",
        "evaluation.data={a: ab://b/d.jsonl}",
        "optimizer.mask={kind: fixed_mask, file: ab://b/mask}",
        "objective={kind: dpo, reference: ab://b/m}",
    ],
)
def test_a_key_refuses_an_address_in_one_line(
    setting: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["sft", *SETTINGS, setting]) == 2
    error = capsys.readouterr().err
    assert "ab://b" in error
    assert error.count("\n") == 1
    assert not os.listdir(tmp_path)


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _options(command)
        else:
            yield action


def test_no_option_makes_a_path_of_an_address() -> None:
    assert Path not in {action.type for action in _options(make_parser())}


@pytest.mark.parametrize(
    "arguments",
    [
        ["export", "ab://b/r"],
        ["export", "r", "--out", "ab://b/e"],
        ["report", "ab://b/r"],
        ["verify", "ab://b/r"],
        ["init", "gs://b/c.yaml", "--model", "m", "--data", "d"],
        ["sft", "--config", "gs://b/c.yaml"],
        ["delta", "apply", "--base", "m", "--delta", "ab://b/d", "--out", "o"],
        ["delta", "apply", "--base", "m", "--delta", "d", "--out", "ab://b/o"],
    ],
)
def test_an_option_refuses_an_address(
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "gs:// or s3://" in (error := capsys.readouterr().err) or "is an address" in error
    assert not os.listdir(tmp_path)


def test_a_folder_of_fit_is_no_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params = {"w": jnp.zeros(2)}
    with pytest.raises(UserError, match="folder: http://b/r is of an unknown kind"):
        fit(
            params,
            lambda p, x: jnp.sum(p["w"]) * x.sum(),
            optax.sgd(1.0),
            [np.ones(1)],
            folder="http://b/r",
        )
    assert not os.listdir(tmp_path)
