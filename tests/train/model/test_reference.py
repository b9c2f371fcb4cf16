"""The decoder against transformers' PyTorch models with the same random weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from train.hf.load import load_params
from train.hf.save import save_params
from train.model import forward, load_model_config

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOKENS = np.random.default_rng(0).integers(0, 96, (2, 24))


@pytest.fixture(scope="session")
def reference(hf: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A PyTorch model and the folder that it was saved to."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**hf)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("reference")
    model.save_pretrained(folder)
    return folder, model


def torch_logits(model: Any) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor(TOKENS)).logits.numpy()


def test_logits_equal_those_of_transformers(reference: tuple[Path, Any]) -> None:
    folder, model = reference
    config = load_model_config(folder)
    ours = jax.jit(forward, static_argnums=0)(config, load_params(folder, config), TOKENS)
    np.testing.assert_allclose(ours, torch_logits(model), atol=1e-4)


def test_transformers_loads_what_we_save(reference: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = reference
    config = load_model_config(folder)
    save_params(load_params(folder, config), config, tmp_path, "float32", max_file_bytes=20_000)
    again, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert not any(info.values())
    np.testing.assert_array_equal(torch_logits(again), torch_logits(model))
