"""Adapters in PEFT's format: PEFT reads ours and we read PEFT's, to the same model."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from train.config import Config, load_config
from train.errors import UserError
from train.hf.adapter import CONFIG, WEIGHTS, export_adapter, read_adapter, target_paths
from train.hf.load import load_params
from train.hf.save import save_params
from train.model import LoraParams, ModelConfig, forward
from train.model.lora import attach
from train.program import Program
from train.sharding import make_mesh
from train.step import TrainState

# PEFT asks for what transformers will rename.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 12))
MODULES = ["q_proj", "v_proj", "down_proj"]
SECTION = f"lora={{rank: 4, alpha: 6, target_modules: [{', '.join(MODULES)}]}}"


def _config(folder: Path, *overrides: str, section: str = SECTION) -> Config:
    settings = ["run=none", "data.train=none", f"model.path={folder}", section]
    settings += ["model.compute_dtype=float32", "batch.size=8", "data.max_length=12"]
    return load_config(None, [*settings, *overrides])


def _program(folder: Path, model: ModelConfig, config: Config, devices: int = 1) -> Program:
    return Program(config, model, make_mesh(devices=jax.devices()[:devices]), 10)


def _start(program: Program, folder: Path) -> LoraParams:
    shapes, shardings = program.abstract_weights, program.weight_shardings
    return program.add_adapters(load_params(folder, program.model, shardings, shapes))


def _filled(params: LoraParams) -> LoraParams:
    """The parameters with factors of which none is zero."""
    draw = np.random.default_rng(1).normal
    values = jax.tree.map(lambda x: jnp.asarray(draw(0, 0.2, x.shape), x.dtype), params.values)
    return LoraParams(params.weights, values, params.scale)


def _peft(folder: Path, adapter: Path) -> Any:
    pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return peft.PeftModel.from_pretrained(model, adapter)


def _torch_logits(model: Any) -> np.ndarray:
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        logits: np.ndarray = model(torch.tensor(TOKENS)).logits.numpy()
    return logits


def _arrays(state: Any) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in state.items()}


Saved = tuple[Path, ModelConfig, Any]


@pytest.mark.slow
def test_peft_reads_our_adapter_to_the_same_logits_and_the_same_merged_weights(
    saved: Saved, tmp_path: Path
) -> None:
    folder, model, _ = saved
    config = _config(folder)
    assert config.lora is not None
    params = _filled(_start(_program(folder, model, config), folder))
    export_adapter(params, config.lora, str(folder), tmp_path / "adapter")
    theirs = _peft(folder, tmp_path / "adapter")
    logits = forward(model, attach(params), jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, _torch_logits(theirs), atol=1e-4)
    save_params(params, model, _made(tmp_path / "merged"), "float32", base=folder)
    merged = _arrays(theirs.merge_and_unload().state_dict())
    for name, tensor in safetensors.numpy.load_file(tmp_path / "merged/model.safetensors").items():
        np.testing.assert_allclose(tensor, merged[name], atol=1e-6, err_msg=name)
    plain = forward(model, load_params(tmp_path / "merged", model), jnp.asarray(TOKENS))
    np.testing.assert_allclose(logits, plain, atol=1e-4)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 8])
def test_some_updates_from_an_adapter_of_peft_equal_those_of_torch(
    saved: Saved, tmp_path: Path, devices: int
) -> None:
    """Of AdamW with weight decay, on one device and on eight."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    folder, model, _ = saved
    torch.manual_seed(0)
    theirs = peft.get_peft_model(
        transformers.AutoModelForCausalLM.from_pretrained(folder),
        peft.LoraConfig(r=4, lora_alpha=6, target_modules=MODULES, task_type="CAUSAL_LM"),
    )
    theirs.save_pretrained(tmp_path / "start")
    adamw = "optimizer={learning_rate: 0.01, lr_schedule: constant, weight_decay: 0.1}"
    start = f"lora.adapter={tmp_path / 'start'}"
    program = _program(
        folder, model, _config(folder, adamw, start, "optimizer.clip_norm=1"), devices
    )
    rows = np.random.default_rng(2).integers(0, 96, (3, 8, 13))
    params = _start(program, folder)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    with jax.set_mesh(program.mesh):
        step_0 = jax.device_put(np.int32(0), program.shardings.step)
        state = TrainState(step_0, params, program.init_opt_state(params))
        step = program.train_step()
        for batch in rows:
            tokens, targets = batch[None, :, :-1], batch[None, :, 1:]
            weights = np.ones(tokens.shape, np.float32)
            state, metrics = step(state, {"tokens": tokens, "targets": targets, "weights": weights})
            logits = theirs(torch.tensor(batch[:, :-1])).logits
            loss = torch.nn.functional.cross_entropy(
                logits.reshape(-1, logits.shape[-1]), torch.tensor(batch[:, 1:].reshape(-1))
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
            optimizer.step()
            assert float(metrics["loss"]) == pytest.approx(loss.item(), abs=1e-4)
    section = program.config.lora
    assert section is not None
    export_adapter(state.params, section, str(folder), tmp_path / "end")
    expected = _arrays(peft.get_peft_model_state_dict(theirs))
    ours = safetensors.numpy.load_file(tmp_path / "end" / WEIGHTS)
    assert ours.keys() == expected.keys()
    begun = safetensors.numpy.load_file(tmp_path / "start" / WEIGHTS)
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, expected[name], atol=2e-4, err_msg=name)
        assert np.abs(tensor - begun[name]).max() > 5e-3
    for kept, weight in zip(
        jax.tree.leaves(state.params.weights),
        jax.tree.leaves(load_params(folder, model)),
        strict=True,
    ):
        np.testing.assert_array_equal(kept, weight)


@pytest.fixture
def adapter(saved: Saved, tmp_path: Path) -> tuple[Program, Path, Any]:
    """A program that begins with an adapter on disk, and the adapter's factors."""
    folder, model, _ = saved
    program = _program(folder, model, _config(folder), 2)
    params = _filled(_start(program, folder))
    assert program.config.lora is not None
    export_adapter(params, program.config.lora, "base", tmp_path / "adapter")
    config = _config(folder, f"lora.adapter={tmp_path / 'adapter'}")
    return _program(folder, model, config, 8), tmp_path / "adapter", params.values


def _read(program: Program) -> Any:
    section = program.config.lora
    assert section is not None
    return read_adapter(section, program.abstract_params.values, program.shardings.params.values)


def test_an_adapter_that_was_written_is_read_again_onto_another_mesh(adapter: Any) -> None:
    program, folder, values = adapter
    jax.tree.map(np.testing.assert_array_equal, _read(program), values)
    content = json.loads((folder / CONFIG).read_text())
    assert content["base_model_name_or_path"] == "base"
    assert content["target_modules"] == MODULES
    assert (content["r"], content["lora_alpha"]) == (4, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "LOHA"}, "is of kind LOHA; plain LoRA adapters alone can be read"),
        ({"use_rslora": True, "bias": "all"}, "sets use_rslora, bias; plain LoRA"),
        ({"r": 8}, r"lora\.rank: .* has 8; set lora\.rank to that"),
        ({"lora_alpha": 16}, r"lora\.alpha: .* has 16; set lora\.alpha to that"),
        (
            {"target_modules": ["q_proj", "model.layers.0.self_attn.v_proj"]},
            r"lora\.target_modules: .* has q_proj, v_proj; set lora\.target_modules to that",
        ),
    ],
)
def test_another_adapter_than_the_config_has_is_refused(
    adapter: Any, changes: dict[str, Any], message: str
) -> None:
    program, folder, _ = adapter
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | changes))
    with pytest.raises(UserError, match=message):
        _read(program)


def test_a_folder_that_holds_no_adapter_is_refused(adapter: Any) -> None:
    program, folder, _ = adapter
    (folder / WEIGHTS).unlink()
    with pytest.raises(UserError, match=r"adapter_model\.safetensors: no such file"):
        _read(program)
    (folder / CONFIG).write_text("[")
    with pytest.raises(UserError, match=r"adapter_config\.json cannot be read"):
        _read(program)


def test_tensors_that_do_not_fit_the_model_are_named(adapter: Any) -> None:
    program, folder, _ = adapter
    tensors = safetensors.numpy.load_file(folder / WEIGHTS)
    stem = "base_model.model.model.layers.0.self_attn"
    tensors["more"] = tensors.pop(f"{stem}.q_proj.lora_A.weight")
    tensors[f"{stem}.v_proj.lora_A.weight"] = np.ones((3, 32), np.float32)
    tensors[f"{stem}.v_proj.lora_B.weight"][0, 0] = np.nan
    safetensors.numpy.save_file(tensors, folder / WEIGHTS)
    with pytest.raises(UserError) as error:
        _read(program)
    message = str(error.value)
    assert f"missing: {stem}.q_proj.lora_A.weight; extra: more" in message
    assert f"of shape [3, 32] instead of [4, 32]: {stem}.v_proj.lora_A.weight" in message
    assert f"not finite: {stem}.v_proj.lora_B.weight" in message


def test_the_paths_of_targets_are_those_of_matrices() -> None:
    assert target_paths(["q_proj", "up_proj"]) == {
        "layers/attention/q/weight",
        "layers/mlp/up/weight",
    }
