"""A run at an address is written and read in a folder here."""

import contextlib
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from train.__main__ import main
from train.buckets import lease, store
from train.buckets.fetch import destination
from train.buckets.mirror import mirror_of
from train.buckets.store import Store
from train.buckets.workplace import reading, reading_run, writing
from train.errors import UserError
from train.fit import fit


def test_a_folder_is_itself(tmp_path: Path) -> None:
    with writing(str(tmp_path)) as folder, reading(tmp_path) as read, reading_run(tmp_path) as run:
        assert (folder, read, run) == (tmp_path, str(tmp_path), tmp_path)


def test_a_run_in_the_home_folder_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with writing("~/run") as folder, reading("~/run") as read, destination("~/out") as out:
        assert (folder, Path(read), out) == (tmp_path / "run", tmp_path / "run", tmp_path / "out")


def test_what_is_written_is_in_the_bucket_and_is_read_from_there(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "RENEW", 0.2)
    with writing(bucket.address) as folder:
        assert folder.name == "top"
        (folder / "config.yaml").write_text("a: 1\n")
        with pytest.raises(UserError, match=f"^{bucket.address} is being written by another run"):
            _refused(bucket.address)
    assert mirror_of(folder) is None
    assert set(Store(bucket.address).objects()) == {"config.yaml"}, "without a lease"
    with reading_run(bucket.address) as read:
        assert read != folder
        assert (read / "config.yaml").read_text() == "a: 1\n"
        (read / "report.html").write_text("b")
    assert not read.exists()
    assert Store(bucket.address).read("report.html") == b"b"
    with writing(bucket.address) as folder:
        assert (folder / "report.html").read_text() == "b"


def test_a_process_that_does_not_see_the_folder_of_the_first_has_its_own(
    bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(bucket.address).write("config.yaml", b"a: 1\n")
    monkeypatch.setattr("train.buckets.workplace.is_main_process", lambda: False)
    with contextlib.ExitStack() as stack:
        if bucket.kind == "s3":
            message = f"^{bucket.address}: process 0 is on another machine; .* a bucket at gs://"
            stack.enter_context(pytest.raises(UserError, match=message))
        with writing(bucket.address) as folder:
            assert folder.parts[-2:] == ("process-0", "top")
            assert (folder / "config.yaml").read_text() == "a: 1\n"
            mirror = mirror_of(folder)
            assert mirror
            assert mirror.apart


def _refused(address: str) -> None:
    lease.Lease(Store(address)).take()


def test_an_error_names_the_address_and_records_are_kept(gs: Any) -> None:
    def fail() -> None:
        with writing(gs.address) as folder:
            (folder / "metrics.jsonl").write_text("1\n")
            raise UserError(f"{folder}/data: is bad")

    with pytest.raises(UserError, match=f"^{gs.address}/data: is bad"):
        fail()
    assert Store(gs.address).read("metrics.jsonl") == b"1\n"


def test_what_is_no_run_is_left_as_it_is(gs: Any) -> None:
    with reading("owner/name") as name, reading(gs.address) as address:
        assert (name, address) == ("owner/name", gs.address)
    with pytest.raises(UserError, match=f"{gs.address} is not a run"):
        reading_run(gs.address).__enter__()


def test_a_bucket_that_cannot_be_reached_is_one_line_and_leaves_no_lease(
    gs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PATIENCE", 0)
    gs.fail(status=403)
    with pytest.raises(UserError, match="see the address and this machine's credentials"):
        writing(gs.address).__enter__()
    gs.mend()
    with writing(gs.address):
        pass


def test_fit_goes_on_at_an_address(
    bucket: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(steps: int, folder: str, **options: Any) -> Any:
        return fit(
            {"w": jnp.ones(4)},
            lambda params, batch: jnp.sum(jnp.square(params["w"] - batch["x"][0])),
            optax.sgd(0.1),
            lambda step: {"x": np.full((1, 4), step, np.float32)},
            steps,
            folder=folder,
            log_every=1,
            **options,
        )

    whole = run(4, str(tmp_path / "whole"))
    run(2, bucket.address)
    with pytest.raises(UserError, match=f"^{bucket.address} already holds a run"):
        run(4, bucket.address)
    resumed = run(4, bucket.address, resume=True)
    np.testing.assert_array_equal(resumed.params["w"], whole.params["w"])
    assert [record["loss"] for record in resumed.records] == [r["loss"] for r in whole.records]
    assert main(["verify", bucket.address]) == 0
    assert capsys.readouterr().out.endswith("can be resumed from step 4\n")
    names = set(Store(bucket.address).objects())
    assert {"metrics.jsonl", "checkpoints/4/manifest.json"} <= names
    assert ".lease.json" not in names


@pytest.mark.slow
def test_everything_at_addresses_gives_the_bits_of_everything_here(
    bucket: Any, write_config: Any, tiny_model: Path, tiny_data: Path, tmp_path: Path, capsys: Any
) -> None:
    top = Store(bucket.address)
    top.upload({f"model/{p.name}": p for p in tiny_model.iterdir()} | {"data/a.jsonl": tiny_data})
    local = write_config(export_dtype="float32")
    assert main(["sft", "--config", str(local)]) == 0
    there = [
        f"run={bucket.address}/run",
        f"cache={bucket.address}/cache",
        f"model.path={bucket.address}/model",
        f"data.train={bucket.address}/data/*.jsonl",
    ]
    assert main(["sft", "--config", str(local), *there]) == 0
    weights = (tmp_path / "run/export/model.safetensors").read_bytes()
    assert top.read("run/export/model.safetensors") == weights
    assert sum(name.startswith("cache/") for name in top.objects()) > 3
    printed = capsys.readouterr().out.replace("\n", "")
    assert f"{bucket.address}/run/export" in printed
    assert str(tmp_path / "xdg") not in printed
    assert main(["sft", "--config", str(local), *there]) == 2
    assert f"{bucket.address}/run already holds a run" in capsys.readouterr().err
    assert main(["sft", "--config", str(local), *there, "--resume"]) == 0
    assert main(["verify", f"{bucket.address}/run"]) == 0
    assert "can be resumed from step 6" in capsys.readouterr().out
    _use(bucket.address, tmp_path)
    assert top.read("applied/model.safetensors") == weights
    assert top.read("bf16/config.json")
    assert main(["generate", f"{bucket.address}/run", "3+9=", "--max-new-tokens", "2"]) == 0
    assert main(["generate", f"{bucket.address}/applied", "3+9=", "--max-new-tokens", "2"]) == 0


def _use(address: str, tmp_path: Path) -> None:
    """Exports, and goes by a delta from the base to the run's weights."""
    assert main(["export", f"{address}/run", "--out", f"{address}/bf16"]) == 0
    base, delta = ["--base", f"{address}/model"], f"{address}/a.delta"
    assert main(["delta", "extract", *base, "--tuned", f"{address}/run", "--out", delta]) == 0
    assert main(["delta", "info", delta]) == 0
    applied = f"{address}/applied"
    assert main(["delta", "apply", *base, "--delta", delta, "--out", applied]) == 0
