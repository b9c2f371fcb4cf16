"""A reference's log-probabilities on disk, and the digest that names them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.config import Config, make_config
from train.data.reference import ReferenceValues, open_values
from train.errors import UserError

SIZES = np.array([[3, 5], [4, 2]], np.int32)


def test_values_are_read_as_they_were_put(tmp_path: Path) -> None:
    values = ReferenceValues(tmp_path / "v", SIZES)
    assert not values.exist
    array = values.empty()
    pairs = [np.arange(10, dtype=np.float32).reshape(2, 5), np.full((2, 4), 7, np.float32)]
    for number, pair in enumerate(pairs):
        values.put(array, number, pair)
    values.write(array)
    values.write(array * 2)  # Another process was faster.
    again = ReferenceValues(tmp_path / "v", SIZES)
    assert again.exist
    assert again[0].tolist() == [[0, 1, 2, 0, 0], [5, 6, 7, 8, 9]]
    assert again[1].tolist() == [[7, 7, 7, 7], [7, 7, 0, 0]]


def test_values_of_other_pairs_are_refused(tmp_path: Path) -> None:
    values = ReferenceValues(tmp_path / "v", SIZES)
    values.write(values.empty())
    other = ReferenceValues(tmp_path / "v", SIZES[:1])
    with pytest.raises(UserError, match=r"v holds 56 bytes .* and the data has 32; remove that"):
        _ = other.exist


class FakeSplit:
    """What names the values of a split."""

    digest, sizes = "pairs", SIZES


def _config(**data: Any) -> Config:
    model = data.pop("model", {})
    tree: dict[str, Any] = {"run": "r", "cache": "c", "objective": {"kind": "dpo"}}
    return make_config(tree | {"model": {"path": "m"} | model, "data": {"train": "d"} | data})


def _place(config: Config, digest: str = "weights", split: Any = FakeSplit) -> Path:
    return open_values(config, split, digest)._file


@pytest.mark.parametrize(
    ("config", "digest", "split"),
    [
        (_config(), "other weights", FakeSplit),
        (_config(), "weights", type("Other", (FakeSplit,), {"digest": "other pairs"})),
        (_config(max_length=7), "weights", FakeSplit),
        (_config(packing="packed"), "weights", FakeSplit),
        (_config(model={"compute_dtype": "float32"}), "weights", FakeSplit),
        (_config(model={"attention": "xla"}), "weights", FakeSplit),
    ],
    ids=["model", "data", "max_length", "packing", "compute_dtype", "attention"],
)
def test_what_changes_the_values_changes_their_place(
    config: Config, digest: str, split: Any
) -> None:
    assert _place(config, digest, split) != _place(_config())


def test_what_does_not_change_the_values_does_not() -> None:
    other = _config(model={"remat": "none"}, limit=None, train="elsewhere")
    assert _place(other) == _place(_config())
