"""Evaluation over sets by name: figures, transfers, and which metrics there are."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from rich.console import Console

from train.config import Config, load_config
from train.data.loader import RunData, open_data
from train.errors import UserError
from train.evaluation import check_metric, make_evaluate
from train.hf.load import load_params
from train.hf.tokenizer import load_tokenizer
from train.model import load_model_config
from train.program import Program
from train.sharding import make_mesh

pytestmark = pytest.mark.usefixtures("two_devices")
Parts = tuple[Program, RunData, Any]


@pytest.fixture
def parts(write_config: Callable[..., Path], tiny_model: Path, tmp_path: Path) -> Parts:
    for name, text in (("task", "1+1=2"), ("general", "Good morning to you")):
        lines = [f'{{"text": "{text}, {number}"}}\n' for number in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    sets = {name: str(tmp_path / f"{name}.jsonl") for name in ("task", "general")}
    config: Config = load_config(write_config(evaluation={"data": sets}))
    model, mesh = load_model_config(tiny_model), make_mesh()
    tokenizer = load_tokenizer(tiny_model)
    data = open_data(config, tokenizer, model.vocab_size, mesh, Console(quiet=True))
    program = Program(config, model, mesh, data.steps)
    weights = program.weight_shardings, program.abstract_weights
    with closing(data.loader), jax.set_mesh(mesh):
        return program, data, load_params(tiny_model, model, *weights)


def test_each_set_has_its_figures_which_are_fetched_once(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, data, params = parts
    fetch, fetched = jax.device_get, []
    monkeypatch.setattr(jax, "device_get", lambda tree: fetched.append(tree) or fetch(tree))
    with jax.set_mesh(program.mesh):
        figures = make_evaluate(program, data)(params, 0)
    assert len(fetched) == 1
    assert [len(sums) for sums in fetched[0]] == [1, 3, 3]
    assert list(figures) == [
        f"eval_{name}{metric}"
        for name in ("", "general_", "task_")  # As the file has them.
        for metric in ("loss", "token_accuracy")
    ]
    assert figures["eval_task_loss"] != figures["eval_general_loss"]
    with data.eval_batches["task"]() as batches, jax.set_mesh(program.mesh):
        sums = [program.objective(params, batch) for batch in batches]
    loss = sum(float(part.loss) for part in sums) / sum(float(part.weight) for part in sums)
    assert figures["eval_task_loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 <= figures["eval_task_token_accuracy"] < 1
    assert {"training data", "evaluation data"} == set(data.digests)
    assert set(data.named_digests) == {"evaluation data task", "evaluation data general"}
    np.testing.assert_equal(len({*data.digests.values(), *data.named_digests.values()}), 4)


def test_a_metric_that_evaluations_do_not_have_is_refused(parts: Parts) -> None:
    program, data, _ = parts
    check_metric(program, data, "eval_task_token_accuracy")
    check_metric(program, data, None)
    with pytest.raises(UserError, match=r"no 'eval_other_loss'; they have eval_loss, .*general_l"):
        check_metric(program, data, "eval_other_loss")
