"""The program that is planned is the one that is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from train.config import load_config
from train.errors import UserError
from train.model import load_model_config
from train.program import Program, keep_compiled
from train.sft import sft
from train.sharding import make_mesh


class StopHereError(Exception):
    """Raised in the place of the loop."""


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_the_planned_step_is_the_one_that_sft_runs(
    write_config: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    batch = {"size": 16, "num_microbatches": 2}
    mesh = {"fsdp": 4, "tensor": 2}
    config = load_config(write_config(batch=batch, mesh=mesh), [f"data.layout={layout}"])
    texts = []

    def loop(state: Any, parts: Any, *_: Any) -> Any:
        with parts.batches(0, 1) as batches:
            texts.append(parts.train_step.lower(state, next(batches)[0]).as_text())
        raise StopHereError

    monkeypatch.setattr("train.sft.train", loop)
    with pytest.raises(StopHereError):
        sft(config, resume=False, console=Console(quiet=True))
    model = load_model_config(Path(config.model.path))
    program = Program(config, model, make_mesh(**mesh), config.steps or 1)
    with jax.set_mesh(program.mesh):
        lowered = program.train_step().lower(program.abstract_state(), program.abstract_batch())
    assert lowered.as_text() == texts[0]


def test_attention_that_the_devices_cannot_compute_is_refused_before_anything_is_written(
    write_config: Callable[..., Path],
) -> None:
    config = load_config(write_config(), ["model.attention=splash"])
    with pytest.raises(UserError, match="splash is for TPUs"):
        sft(config, resume=False, console=Console(quiet=True))
    assert not Path(config.run).exists()


@pytest.mark.parametrize("chosen", [None, "elsewhere"])
def test_compiled_programs_are_kept_in_the_cache_unless_jax_was_told_where(
    write_config: Callable[..., Path], chosen: str | None
) -> None:
    config = load_config(write_config())
    name = "jax_compilation_cache_dir"
    before = getattr(jax.config, name)
    try:
        jax.config.update(name, chosen)
        keep_compiled(config)
        assert getattr(jax.config, name) == (chosen or f"{config.cache}/xla")
    finally:
        jax.config.update(name, before)
