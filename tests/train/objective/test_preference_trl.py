"""Losses, gradients and metrics beside those of TRL's own trainers, where trl is installed.

It is not among the packages of the tests: install trl in an environment of its own to run these.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pydantic import TypeAdapter

from train.config.data import DataSection
from train.config.objectives import ObjectiveSection
from train.data.datasets import DataContext, build_datasets
from train.hf.load import load_params
from train.hf.save import save_params
from train.hf.tokenizer import load_tokenizer
from train.model import (
    FLOAT32,
    Params,
    abstract_params,
    init_params,
    load_model_config,
    logical_axes,
)
from train.objective.build import make_objective
from train.objective.preference import answer_logprobs
from train.sharding import make_mesh, param_shardings
from train.step import Sums

trl = pytest.importorskip("trl")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ROWS = [  # Prompts and answers of different lengths.
    {"prompt": "1+1=", "chosen": "2", "rejected": "three, I think"},
    {"prompt": "a longer question: 12+30=", "chosen": "42, of course", "rejected": "41"},
    {"prompt": "?", "chosen": "yes", "rejected": "yes and no"},
    {"prompt": "tell me: ", "chosen": "a word or two", "rejected": "nothing at all"},
]
OBJECTIVES: dict[str, Any] = {  # Ours, and the settings of TRL's that are the same.
    "dpo": ({"kind": "dpo", "beta": 0.3}, {"loss_type": "sigmoid", "beta": 0.3}),
    "robust_dpo": (
        {"kind": "robust_dpo", "beta": 0.3, "label_smoothing": 0.1},
        {"loss_type": "robust", "beta": 0.3, "label_smoothing": 0.1},
    ),
    "hinge": ({"kind": "hinge", "beta": 0.3}, {"loss_type": "hinge", "beta": 0.3}),
    "ipo": ({"kind": "ipo", "beta": 0.3}, {"loss_type": "ipo", "beta": 0.3}),
    "simpo": (
        {"kind": "simpo", "beta": 2.0, "gamma": 1.0},
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0},
    ),
    "orpo": ({"kind": "orpo", "beta": 0.2}, {"beta": 0.2}),
}
NAMES = {  # Our metrics and TRL's.
    "rewards/chosen": "rewards/chosen",
    "rewards/rejected": "rewards/rejected",
    "rewards/margin": "rewards/margins",
    "accuracy": "rewards/accuracies",
    "logprobs/chosen": "logps/chosen",
    "logprobs/rejected": "logps/rejected",
}


@pytest.fixture(scope="module")
def folders(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a reference with other weights."""
    base = tmp_path_factory.mktemp("base")
    config = load_model_config(tiny_model)
    params = jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(1)))
    save_params(params, config, base, "float32")
    return tiny_model, base


def _load(folder: Path, tiny_model: Path) -> Params:
    config = load_model_config(tiny_model)
    mesh = make_mesh(devices=jax.devices()[:1])
    shapes = abstract_params(config)
    return load_params(folder, config, param_shardings(mesh, shapes, logical_axes(config)))


def _trainer(name: str, settings: dict[str, Any], folders: tuple[Path, Path], out: Path) -> Any:
    """TRL's trainer of an objective; nothing is trained."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM

    model, base = (AutoModelForCausalLM.from_pretrained(f, dtype="float32") for f in folders)
    tokenizer = load_tokenizer(folders[0])
    tokenizer.chat_template = None
    common = {
        "output_dir": str(out),
        "per_device_train_batch_size": len(ROWS),
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "max_length": 64,
    }
    data = {"train_dataset": Dataset.from_list(ROWS), "processing_class": tokenizer}
    if name == "simpo":
        from trl.experimental.cpo import CPOConfig, CPOTrainer

        return CPOTrainer(model, args=CPOConfig(**common, **settings), **data)
    if name == "orpo":
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        return ORPOTrainer(model, args=ORPOConfig(**common, **settings), **data)
    return trl.DPOTrainer(model, base, args=trl.DPOConfig(**common, **settings), **data)


def _rows(tiny_model: Path, tmp_path: Path) -> dict[str, jax.Array]:
    """The program's own batch of the rows."""
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    tokenizer = load_tokenizer(tiny_model)
    section = DataSection(train=str(file), format="preference", eval_fraction=0, max_length=64)
    context = DataContext(tokenizer, 272, 0, tmp_path / "cache", pairs=True)
    split = build_datasets(section, context).train
    batch: dict[str, jax.Array] = jax.tree.map(
        jnp.asarray, split.batches(len(ROWS), 0).eval_batch(0)
    )
    return batch


def _gradients(trainer: Any, config: Any, folder: Path) -> Params:
    """TRL's gradients, as a tree like that of our parameters."""
    from safetensors.torch import save_file

    named = trainer.model.named_parameters()
    grads = {name: p.grad.contiguous() for name, p in named if p.grad is not None}
    folder.mkdir()
    save_file(grads, folder / "model.safetensors")
    return _load(folder, config)


def _with_trls_supervised_term(objective: Any, config: Any) -> Any:
    """ORPO as TRL has it: the cross-entropy is that of the chosen answers and of their prompts,
    averaged over all tokens of the batch."""

    def sums(params: Params, batch: Any) -> Sums:
        logprobs = answer_logprobs(config, FLOAT32, params, batch)[:, 0]
        answers = batch["weights"][:, 0]
        own = jnp.sum(jnp.sum(logprobs * answers, -1) / jnp.sum(answers, -1))
        last = jnp.max(
            jnp.arange(answers.shape[1])[None] * (answers > 0).astype(jnp.int32), -1, keepdims=True
        )
        known = (jnp.arange(answers.shape[1])[None] <= last).astype(jnp.float32)
        whole = len(ROWS) * jnp.sum(logprobs * known) / jnp.sum(known)
        found: Sums = objective(params, batch)
        return found._replace(loss=found.loss + own - whole)

    return sums


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_gradients_and_metrics_are_trls(
    name: str, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    ours, settings = OBJECTIVES[name]
    trainer = _trainer(name, settings, folders, tmp_path / "out")
    trainer.model.train()
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    recorded = getattr(trainer, "_metrics", None) or trainer._stored_metrics

    config = load_model_config(folders[0])
    params, base = (_load(folder, folders[0]) for folder in folders)
    batch = _rows(folders[0], tmp_path)
    section: Any = TypeAdapter(ObjectiveSection).validate_python(ours)
    if section.has_reference:
        batch["reference"] = answer_logprobs(config, FLOAT32, base, batch)
    objective: Any = make_objective(section, config, FLOAT32)
    if name == "orpo":
        objective = _with_trls_supervised_term(objective, config)

    def mean(params: Params) -> Any:
        sums = objective(params, batch)
        return sums.loss / sums.weight, {k: v / sums.weight for k, v in sums.metrics.items()}

    (loss, metrics), gradients = jax.jit(jax.value_and_grad(mean, has_aux=True))(params)
    assert float(loss) == pytest.approx(float(theirs), abs=1e-5)
    expected = _gradients(trainer, folders[0], tmp_path / "gradients")
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradients, expected
    )
    for mine, other in NAMES.items():
        value = float(np.mean(recorded["train"][other]))
        if name == "ipo" and mine.startswith("rewards"):
            continue  # TRL's are of sums, although the loss compares means.
        if name in ("simpo", "orpo") and mine.startswith("logprobs"):
            continue  # TRL's are means over tokens.
        assert float(metrics[mine]) == pytest.approx(value, rel=1e-5, abs=1e-5), mine
