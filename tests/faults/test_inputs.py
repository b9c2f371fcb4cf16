"""Whatever a file or a setting holds: a fault in words, no other exception, no end of memory."""

import copy
import json
import random
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import yaml
from gguf import GGUFWriter
from safetensors.numpy import save_file

from train.config import load_config
from train.data.sources import open_source
from train.data.template import Template
from train.errors import UserError
from train.hf import delta
from train.hf.ends import find_ends
from train.hf.gguf import import_gguf
from train.hf.safetensors import open_weights
from train.hf.tokenizer import describe_tokenizer, load_tokenizer, text_ids
from train.manifest import DamagedError, check_folder, write_manifest
from train.model import load_model_config
from train.run import read_records

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
WORDS = (
    "0x_", "2024-02-30", "9" * 5000, "[" * 1500, "&a [*a]", "*a", ".inf", ".nan", "1e999", "-0",
    "!!python/object:os.system", "? ", "{", "}", "\0", "\x1b[2J", "é", "\udce9", "null", "~", ": ",
    "- ", "\t", "|", ">", "<<: *a", "true", "2147483648", "1_0", "'", '"', "\u2028", "%YAML 9.9",
)  # fmt: skip
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63, 10**12, 1e308, float("nan"), "", "\0", "../../x", "/x", "é",
    "a" * 5000, [], {}, [None], {"a": []}, [[[]]], [1, "a"], "F32", "BF16", [2**40], [0, 2**62],
)  # fmt: skip
CODE = (
    "{% for a in range(9999) %}", "{% endfor %}", "{{ messages }}", "{{ 'a' * 10**9 }}",
    "{% set x = messages %}", "{% if %}", "{{ messages[0].__class__ }}", "{% macro m() %}",
    "{% include 'x' %}", "{{ 1 / 0 }}", "{% generation %}", "{{ [] | first }}", "{{ x.y }}",
    "{{ raise_exception('') }}", "{{ messages | tojson(indent=9) }}", "{{ strftime_now('%Y') }}",
)  # fmt: skip
MEMORY = 3 << 20  # KiB.


def _mutated(text: bytes, draw: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(draw.randint(1, 8)):
        place = draw.randrange(len(data) + 1)
        match draw.randrange(4):
            case 0:
                data[place:place] = draw.choice(WORDS).encode(errors="surrogateescape")
            case 1:
                del data[place : place + draw.randint(1, 20)]
            case 2:
                data[place:place] = bytes([draw.randrange(256)])
            case 3:
                start = draw.randrange(len(data) + 1)
                data[place:place] = data[start : start + draw.randint(1, 60)]
    return bytes(data)


def _mutated_tree(tree: Any, draw: random.Random) -> Any:
    """JSON with some values replaced, added or gone."""
    for _ in range(draw.randint(1, 4)):
        at = tree
        while at:
            key = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            if isinstance(at[key], dict | list) and draw.random() < 0.8:
                at = at[key]
                continue
            match draw.randrange(4):
                case 0:
                    del at[key]
                case 1 if isinstance(at, dict):
                    at[draw.choice([*map(str, VALUES), "a/b", "auto_map"])] = at.pop(key)
                case _:
                    at[key] = copy.deepcopy(draw.choice(VALUES))
            break
    return tree


def _mutated_json(text: bytes, draw: random.Random) -> bytes:
    if draw.random() < 0.3:
        return _mutated(text, draw)
    return json.dumps(_mutated_tree(json.loads(text), draw)).encode()


def _configs(folder: Path, samples: Path, draw: random.Random) -> None:
    file = folder / "config.yaml"
    source = draw.choice(sorted((ROOT / "configs").glob("*.yaml")))
    tree = json.dumps(yaml.safe_load(source.read_text())).encode()
    half = draw.random() < 0.5
    file.write_bytes(_mutated_json(tree, draw) if half else _mutated(source.read_bytes(), draw))
    load_config(file)


def _overrides(folder: Path, samples: Path, draw: random.Random) -> None:
    keys = ("steps", "epochs", "seed", "data.max_length", "optimizer.mask", "run", "batch.size")
    value = draw.choice([*WORDS, "1", "{kind: none}"]) + draw.choice(["", draw.choice(WORDS)])
    load_config(ROOT / "configs" / "quickstart.yaml", [f"{draw.choice(keys)}={value}"])


def _records(folder: Path, samples: Path, draw: random.Random) -> None:
    file = folder / "metrics.jsonl"
    lines = "".join(json.dumps({"step": n, "loss": 1 / (n + 1)}) + "\n" for n in range(5))
    file.write_bytes(_mutated(lines.encode(), draw))
    list(read_records(file))


def _manifests(folder: Path, samples: Path, draw: random.Random) -> None:
    (folder / "data").write_bytes(draw.randbytes(100))
    write_manifest(folder, {"step": 1})
    file = folder / "manifest.json"
    file.write_bytes(_mutated(file.read_bytes(), draw))
    found = check_folder(folder)
    assert found.facts == {"step": 1}
    assert list(found.files) == ["data"], "what is vouched for is what was written"
    file.unlink()


def _tables(folder: Path, samples: Path, draw: random.Random) -> None:
    source = draw.choice(sorted((samples / "tables").iterdir()))
    file = folder / source.name
    file.write_bytes(_mutated(source.read_bytes(), draw))
    records = open_source(str(file))
    for number in range(len(records)):
        records[number]


def _models(folder: Path, samples: Path, draw: random.Random) -> None:
    source = samples / "model/config.json"
    (folder / "config.json").write_bytes(_mutated_json(source.read_bytes(), draw))
    load_model_config(folder)


def _put_safetensors(source: Path, file: Path, draw: random.Random) -> None:
    """A file with a mutated header, of its right length mostly."""
    data = source.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = _mutated_json(data[8 : 8 + size], draw)
    length = draw.choice([len(header)] * 5 + [0, 2**40, 2**64 - 1, len(header) - 1])
    file.write_bytes(struct.pack("<Q", length) + header + data[8 + size :])


def _headers(folder: Path, samples: Path, draw: random.Random) -> None:
    _put_safetensors(samples / "model/model.safetensors", folder / "model.safetensors", draw)
    _read_weights(folder)


def _read_weights(folder: Path) -> None:
    with open_weights(folder) as reader:
        for name in reader.names:
            reader.spec(name)
            reader.tensor(name)


def _indices(folder: Path, samples: Path, draw: random.Random) -> None:
    shutil.copy(samples / "model/model.safetensors", folder / "m.safetensors")
    names = dict.fromkeys("ab", "m.safetensors")
    index = json.dumps({"weight_map": names, "metadata": {"total_size": 8}}).encode()
    (folder / "model.safetensors.index.json").write_bytes(_mutated_json(index, draw))
    _read_weights(folder)


def _tokenizers(folder: Path, samples: Path, draw: random.Random) -> None:
    shutil.copytree(samples / "model", folder, dirs_exist_ok=True)
    file = folder / draw.choice(
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json"]
    )
    file.write_bytes(_mutated_json(file.read_bytes(), draw))
    tokenizer = load_tokenizer(folder)
    describe_tokenizer(tokenizer)
    find_ends(folder, tokenizer)
    text_ids(tokenizer, "a é <|end|> 1")


def _templates(folder: Path, samples: Path, draw: random.Random) -> None:
    source = (samples / "model/chat_template.jinja").read_bytes()
    for _ in range(draw.randint(0, 3)):
        place = draw.randrange(len(source) + 1)
        source = source[:place] + draw.choice(CODE).encode() + source[place:]
    file = folder / "template.jinja"
    file.write_bytes(_mutated(source, draw) if draw.random() < 0.5 else source)
    tokenizer = load_tokenizer(samples / "model", str(file))
    find_ends(samples / "model", tokenizer)
    template = Template(tokenizer, tokenizer.chat_template, "the template", datetime(2024, 7, 9))
    turns = [{"role": role, "content": "é <|end|>"} for role in ("user", "assistant") * 2]
    template.formed(turns, None)
    assert template.end_of_turn is None or template.controls
    template.text_and_marked(turns, [])


def _gguf(folder: Path, samples: Path, draw: random.Random) -> None:
    file = folder / "model.gguf"
    file.write_bytes(_mutated((samples / "model.gguf").read_bytes(), draw))
    import_gguf(file, folder / "out")


def _deltas(folder: Path, samples: Path, draw: random.Random) -> None:
    file, whole, name = folder / "tuned.delta", samples / "tuned.delta", "model.safetensors"
    if draw.random() < 0.5:
        _put_safetensors(whole, file, draw)
    else:
        data = bytearray(whole.read_bytes())
        for _ in range(draw.choice([1, 64])):
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data[: draw.choice([len(data), draw.randrange(len(data))])])
    delta.describe(file)
    delta.apply(samples / "model", file, folder / "out")
    assert (folder / "out" / name).read_bytes() == (samples / "tuned" / name).read_bytes()


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, zygote: Any) -> Iterator[Path]:
    """Whole files of each kind."""
    folder = tmp_path_factory.mktemp("samples")
    weights = {"a": np.zeros((2, 3), np.float32), "b": np.ones(4, np.float32)}
    for name, change in (("model", 0), ("tuned", 1)):
        (folder / name).mkdir()
        assert zygote.start("make-model", str(folder / name)).wait() == 0
        (folder / name / "generation_config.json").write_text('{"eos_token_id": [2]}')
        changed = weights | {"a": weights["a"] + change}
        save_file(changed, folder / name / "model.safetensors")
    delta.extract(folder / "model", folder / "tuned", folder / "tuned.delta")
    _write_tables(folder / "tables")
    _write_gguf(folder / "model.gguf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield folder


def _write_tables(folder: Path) -> None:
    folder.mkdir()
    rows = [{"prompt": f"é {n}", "completion": f"{n},\n{n}", "x": n / 3} for n in range(9)]
    table = datasets.Dataset.from_list(rows)
    table.to_parquet(folder / "table.parquet")
    table.to_csv(folder / "table.csv")
    table.to_json(folder / "table.jsonl", force_ascii=False)
    (folder / "table.json").write_text(json.dumps(rows))


def _write_gguf(file: Path) -> None:
    writer = GGUFWriter(file, "llama")
    sizes = {"context_length": 128, "embedding_length": 32, "block_count": 1, "head_count": 2}
    for name, size in (sizes | {"feed_forward_length": 64}).items():
        getattr(writer, f"add_{name}")(size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b", "<|end|>"])
    writer.add_token_types([1, 1, 3])
    writer.add_token_merges([])
    writer.add_eos_token_id(2)
    square, wide = np.ones((32, 32), np.float32), np.ones((64, 32), np.float32)
    block = {"attn_q": square, "attn_k": square, "attn_v": square, "attn_output": square}
    block |= {"attn_norm": square[0], "ffn_norm": square[0], "ffn_gate": wide, "ffn_up": wide}
    block["ffn_down"] = np.ascontiguousarray(wide.T)
    top = {"token_embd": square[:3], "output_norm": square[0]}
    for name, array in (top | {f"blk.0.{name}": array for name, array in block.items()}).items():
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


KINDS = (
    _configs, _overrides, _records, _manifests, _tables, _models, _headers, _indices, _tokenizers,
    _templates, _gguf, _deltas,
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")  # Of what others read the files with.
def test_a_mutated_input_is_read_or_refused(
    kind: Callable[[Path, Path, random.Random], None],
    seed: int,
    samples: Path,
    tmp_path: Path,
    note: Callable[..., None],
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for number in range(25):
        draw = random.Random(f"{seed} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        message = ""
        try:
            kind(folder, samples, draw)
        except (UserError, DamagedError) as fault:
            message, refused = str(fault), refused + 1
        assert len(message) < 20_000, (seed, number)
    note(kind=kind.__name__, inputs=25, refused=refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + MEMORY
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(25)))
