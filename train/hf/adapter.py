"""Low-rank adapters in PEFT's format: adapter_config.json and adapter_model.safetensors."""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..buckets.fetch import fetch as local_copy
from ..config.lora import LoraSection
from ..distributed.processes import is_main_process
from ..errors import UserError
from ..files import atomic_folder, write_json
from ..manifest import write_manifest
from ..model.lora import LoraParams
from ..model.param_table import PARAM_SPECS
from .safetensors import (
    WEIGHT_DTYPES,
    TensorSpec,
    name_list,
    open_safetensors,
    write_safetensors,
)
from .save import gather

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
FACTORS = {"a": "lora_A", "b": "lora_B"}
# Keys of PEFT's config with which an adapter computes something else.
OTHERS = (
    "alora_invocation_tokens", "alpha_pattern", "arrow_config", "fan_in_fan_out", "kasa_config",
    "layer_replication", "layers_to_transform", "lora_bias", "modules_to_save",
    "monteclora_config", "rank_pattern", "target_parameters", "trainable_token_indices",
    "use_bdlora", "use_dora", "use_qalora", "use_rslora",
)  # fmt: skip


def target_paths(modules: Collection[str]) -> frozenset[str]:
    """The paths of our parameters that PEFT calls by these names, such as q_proj."""
    endings = tuple(f".{module}.weight" for module in modules)
    return frozenset(spec.path for spec in PARAM_SPECS if spec.name.endswith(endings))


def export_adapter(
    params: LoraParams, section: LoraSection, base: str, out: Path, step: int | None = None
) -> None:
    """Writes an adapter's folder: all, or nothing. All processes call it, and the first writes.

    Args:
      base: the name of the base, as PEFT looks for it.
      step: the update after which the factors are those; the manifest notes it.

    Raises:
      UserError: if `out` is not empty or cannot be written.
    """
    arrays = dict(_tensors(params.values))

    def fetch(name: str) -> np.ndarray:
        param, layer = arrays[name]
        return gather(param, layer, "float32")

    if not is_main_process():
        for name in arrays:
            fetch(name)
        return
    specs = {name: TensorSpec("F32", param.shape[1:]) for name, (param, _) in arrays.items()}
    with atomic_folder(out, replace=False) as folder:
        write_safetensors(folder / WEIGHTS, specs, fetch, {"format": "pt"})
        write_json(folder / CONFIG, _config(section, base))
        write_manifest(folder, {"step": step, "dtype": "float32"})


def read_adapter(section: LoraSection, values: Any, shardings: Any) -> Any:
    """The factors that an adapter's files hold, each device its own shards.

    Args:
      values: their ShapeDtypeStructs, a tree as `LoraParams.values`.

    Raises:
      UserError: if the files hold another adapter than the section has, or none.
    """
    assert section.adapter is not None
    folder = local_copy(section.adapter)
    _check_config(folder / CONFIG, section)
    with open_safetensors(folder / WEIGHTS) as file:
        wanted = {name: param.shape[1:] for name, (param, _) in _tensors(values)}
        _check_tensors(folder, file, wanted)

        def load(path: Any, shape: Any, sharding: Any) -> jax.Array:
            names = _names(path, shape.shape[0])
            stack = np.stack([np.asarray(file.get_tensor(n), np.float32) for n in names])
            return jax.make_array_from_callback(shape.shape, sharding, stack.__getitem__)

        return jax.tree_util.tree_map_with_path(load, values, shardings)


def _tensors(values: Any) -> Iterator[tuple[str, tuple[Any, int]]]:
    """The name of every tensor of an adapter, with its stacked factor and its layer."""
    for path, param in jax.tree_util.tree_leaves_with_path(values):
        for layer, name in enumerate(_names(path, param.shape[0])):
            yield name, (param, layer)


def _names(path: Any, num_layers: int) -> list[str]:
    """PEFT's names of a factor, layer by layer."""
    *parents, factor = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
    name = next(spec.name for spec in PARAM_SPECS if spec.path == "/".join(parents))
    module = name.removesuffix(".weight")
    return [
        f"base_model.model.{module.format(layer)}.{FACTORS[factor]}.weight"
        for layer in range(num_layers)
    ]


def _config(section: LoraSection, base: str) -> dict[str, Any]:
    alpha = section.alpha
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": section.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "target_modules": list(section.target_modules),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
    }


def _check_config(file: Path, section: LoraSection) -> None:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"lora.adapter: {file} cannot be read; name the folder of an adapter in PEFT's format"
        ) from None
    others = [key for key in OTHERS if config.get(key)]
    others += ["bias"] if config.get("bias", "none") != "none" else []
    if kind != "LORA" or others:
        what = f"is of kind {kind}" if kind != "LORA" else f"sets {', '.join(others)}"
        raise UserError(f"lora.adapter: {file} {what}; plain LoRA adapters alone can be read")
    targets = config.get("target_modules") or ()
    modules = sorted({str(name).rpartition(".")[2] for name in targets})
    there: dict[str, Any] = {"rank": config.get("r", 8), "alpha": config.get("lora_alpha", 8)}
    here: dict[str, Any] = {"rank": section.rank, "alpha": section.alpha}
    if isinstance(targets, list):  # Else an expression, of which the tensors' names tell.
        there["target_modules"], here["target_modules"] = modules, sorted(section.target_modules)
    for key, value in there.items():
        if value != here[key]:
            shown = ", ".join(value) if isinstance(value, list) else value
            raise UserError(f"lora.{key}: {file} has {shown}; set lora.{key} to that")


def _check_tensors(folder: Path, file: Any, wanted: dict[str, tuple[int, ...]]) -> None:
    there = set(file.keys())
    faults = {
        "missing": [name for name in wanted if name not in there],
        "extra": sorted(there - wanted.keys()),
    }
    for name in sorted(there & wanted.keys()):
        part = file.get_slice(name)
        if tuple(part.get_shape()) != wanted[name]:
            fault = f"of shape {part.get_shape()} instead of {list(wanted[name])}"
            faults.setdefault(fault, []).append(name)
        elif part.get_dtype() not in WEIGHT_DTYPES:
            faults.setdefault(f"of unsupported type {part.get_dtype()}", []).append(name)
        elif not np.isfinite(np.asarray(file.get_tensor(name), np.float32)).all():
            faults.setdefault("not finite", []).append(name)
    message = "; ".join(f"{fault}: {name_list(names)}" for fault, names in faults.items() if names)
    if message:
        raise UserError(f"lora.adapter: {folder / WEIGHTS} does not fit the model: {message}")
