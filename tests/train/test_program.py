"""The program that is planned is the one that is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest
from rich.console import Console

from train.config import load_config
from train.model import load_model_config
from train.program import Program
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
