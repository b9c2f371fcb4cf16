"""Runs on disk as training leaves them, without training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from train.config import dump_config, make_config
from train.run import Run

STEPS = (2, 4, 6)


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Run]:
    """A run with records, completions and figures of tensors; settings replace the config's."""

    def make_run(name: str = "first", offset: float = 0.0, **settings: Any) -> Run:
        run = Run(tmp_path / name)
        tree = {"run": str(run.folder), "data": {"train": "rows.jsonl"}, "model": {"path": "base"}}
        run.folder.mkdir(parents=True)
        run.config_file.write_text(dump_config(make_config(tree | settings)))
        run.log({"step": 0, "data": ["training data: 7 examples"], "machine": {"jax": "0.1.2"}})
        for step in (0, *STEPS):
            run.log({"step": step, "eval_loss": 2.0 - step / 10 + offset})
            if step:
                figures = {"loss": 3.0 - step / 10 + offset, "masked_fraction": 0.2}
                run.log({"step": step, "tokens_per_s": 100.0, "seconds_left": 1.0, **figures})
        for step, text in ((0, "old <words>"), (6, "new </pre><script>alert(1)</script>")):
            run.log_sample({"step": step, "prompt": "say & do", "completion": text})
        with (run.folder / "tensors.jsonl").open("w") as file:
            for step in STEPS:
                values = (np.arange(3) / 4 + step / 100).tolist()
                tensors = {"mask/masked": {"layers/mlp": values, "embed": 0.5}}
                print(f'{{"step": {step}, "tensors": {tensors}}}'.replace("'", '"'), file=file)
        return run

    return make_run
