"""Where a completion ends: ours, an export's and transformers' are the same text."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import SpecialVocab
from safetensors.numpy import save_file

from train.data.chat import RecordReader, Renderer
from train.errors import UserError
from train.generate import Sampling
from train.hf.ends import end_ids, find_ends, template_ends
from train.hf.export import export
from train.hf.load import load_params
from train.hf.tokenizer import load_tokenizer
from train.model import load_model_config
from train.restore import complete_prompts

Base = Callable[..., Path]
TEXT, START, END = range(3)  # <|endoftext|>, <|im_start|> and <|im_end|>
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# After the answer's header the model says "ab<|im_end|>c<|endoftext|>ddd…", and nothing else.
CHAIN = ["\n", "a", "b", "<|im_end|>", "c", "<|endoftext|>", "d", "d"]
HIDDEN = 288


def _tokenizer(template: str | None = CHATML, eos: str = "<|im_end|>") -> Any:
    """ChatML's tokens, and the bytes."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {token: at for at, token in enumerate([*SPECIALS, *_letters()])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in SPECIALS])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def _letters() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def _says_the_chain() -> dict[str, np.ndarray]:
    """Weights with which each token is followed by its successor in CHAIN, whatever is before it.

    The layer adds nothing: an embedding is one-hot, and the head maps it to the next token.
    """
    names = [*SPECIALS, *_letters()]
    ids = [names.index("Ċ" if token == "\n" else token) for token in CHAIN]
    head = np.zeros((HIDDEN, HIDDEN), np.float32)
    head[ids[1:], ids[:-1]] = 1
    layer = "model.layers.0."
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (HIDDEN, HIDDEN),
        "self_attn.v_proj": (HIDDEN, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (8, HIDDEN),
        "mlp.up_proj": (8, HIDDEN),
        "mlp.down_proj": (HIDDEN, 8),
    }
    zeros = {f"{layer}{name}.weight": np.zeros(shape, np.float32) for name, shape in shapes.items()}
    norms = ["model.norm", f"{layer}input_layernorm", f"{layer}post_attention_layernorm"]
    ones = {f"{name}.weight": np.ones(HIDDEN, np.float32) for name in norms}
    embeddings = np.eye(HIDDEN, dtype=np.float32)
    return {"model.embed_tokens.weight": embeddings, "lm_head.weight": head, **zeros, **ones}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("chain") / "model.safetensors"
    save_file(_says_the_chain(), file, metadata={"format": "pt"})
    return file


@pytest.fixture
def base(weights: Path, family: Any, tmp_path: Path) -> Base:
    """Makes a model's folder, given the ends that its files name."""

    def make(tokenizer: Any, config: Any = None, generation: Any = None) -> Path:
        folder = tmp_path / "base"
        folder.mkdir()
        sizes = {"hidden_size": HIDDEN, "vocab_size": HIDDEN, "intermediate_size": 8}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "num_hidden_layers": 1}
        content = family("llama", **sizes, **heads, eos_token_id=config)
        (folder / "config.json").write_text(json.dumps(content))
        if generation is not None:
            (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": generation}))
        (folder / "model.safetensors").symlink_to(weights)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def _export(base: Path, out: Path) -> Path:
    config = load_model_config(base)
    tokenizer = load_tokenizer(base)
    export(config, load_params(base, config), base, out, "float32", tokenizer=tokenizer)
    return out


def _theirs(folder: Path) -> str:
    """The completion by transformers, with what the folder says alone."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "q"}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=START)
    text: str = tokenizer.decode(new[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return text


# The tokenizer's end, config.json's, generation_config.json's, whether a line says that they differ
DISAGREEMENTS = {
    "config files end texts, not turns": ("<|im_end|>", TEXT, TEXT, True),
    "the tokenizer ends texts": ("<|endoftext|>", TEXT, [TEXT, END], True),
    "nothing names the turn's end": ("<|endoftext|>", TEXT, None, True),
    "a generation config of one": ("<|endoftext|>", TEXT, END, True),
    "no config names an end": ("<|im_end|>", None, None, False),
    "config.json alone is behind": ("<|im_end|>", TEXT, [END, TEXT], False),
    "all agree": ("<|im_end|>", END, END, False),
}


@pytest.mark.parametrize("case", DISAGREEMENTS)
def test_every_reader_stops_at_the_end_of_the_turn(base: Base, tmp_path: Path, case: str) -> None:
    eos, config, generation, differ = DISAGREEMENTS[case]
    folder = base(_tokenizer(eos=eos), config, generation)
    said: list[str] = []
    sampling = Sampling(max_new_tokens=8)
    assert complete_prompts(str(folder), ["q"], sampling, warn=said.append) == ["ab"]
    assert [line.count("\n") for line in said] == [0] * differ
    out = _export(folder, tmp_path / "out")
    assert complete_prompts(str(out), ["q"], sampling, warn=said.append) == ["ab"]
    assert len(said) == differ, "the export agrees with itself"
    ids = {END, *find_ends(folder, load_tokenizer(folder)).ids}
    for name in ("config.json", "generation_config.json"):
        named = json.loads((out / name).read_text())["eos_token_id"]
        assert {named} == ids if isinstance(named, int) else set(named) == ids
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        assert json.loads((out / name).read_text())["eos_token"] == "<|im_end|>"
    assert _theirs(out) == "ab"
    # With this class llama.cpp's converter reads special tokens and the template.
    read = SpecialVocab(out, load_merges=True, n_vocab=HIDDEN)
    assert read.special_token_ids["eos"] == END
    assert read.chat_template == CHATML


READER = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer
texts = []
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": "q"}]
    inputs = tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    inputs.pop("token_type_ids", None)
    new = model.generate(**inputs, max_new_tokens=8, do_sample=False, pad_token_id=1)
    new = new[0, inputs["input_ids"].shape[1] :]
    texts.append(tokenizer.decode(new, skip_special_tokens=True))
print(json.dumps(texts))
"""


@pytest.mark.slow
def test_transformers_4_stops_there_too(base: Base, tmp_path: Path) -> None:
    """GMT_JAX_TRANSFORMERS4 names interpreters that have it, separated by colons."""
    interpreters = os.environ.get("GMT_JAX_TRANSFORMERS4")
    if not interpreters:
        pytest.skip("GMT_JAX_TRANSFORMERS4 names no interpreter with transformers 4")
    outs = []
    for index, (eos, config, generation, _) in enumerate(DISAGREEMENTS.values()):
        folder = base(_tokenizer(eos=eos), config, generation)
        outs.append(str(_export(folder, tmp_path / f"out{index}")))
        shutil.rmtree(folder)
    for python in interpreters.split(os.pathsep):
        command = [python, "-c", READER, *outs]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        assert json.loads(done.stdout) == ["ab"] * len(outs)


def test_plain_text_ends_at_the_tokenizers_end(base: Base, tmp_path: Path) -> None:
    folder = base(_tokenizer(None, "<|endoftext|>"), None, [END])
    out = _export(folder, tmp_path / "out")
    assert find_ends(out, load_tokenizer(out)).ids == (TEXT, END)
    assert json.loads((out / "tokenizer_config.json").read_text())["eos_token"] == "<|endoftext|>"


def test_a_conflict_names_all_sides(base: Base) -> None:
    folder = base(_tokenizer(eos="<|im_end|>"), TEXT, TEXT)
    conflict = find_ends(folder, load_tokenizer(folder)).conflict
    assert conflict == (
        f"{folder}: ends differ: the chat template ends a turn with <|im_end|>, the tokenizer's "
        "eos_token is <|im_end|>, generation_config.json names <|endoftext|>; generation stops at "
        "each of them, and an export names them all"
    )


TURN = "{% for m in messages %}<|im_start|>{{ m['role'] }}: {{ m['content'] }}"
HEADER = "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
CALLS = "{% for c in m['tool_calls'] or [] %}<call>{{ c['function']['name'] }}</call>{% endfor %}"
TEMPLATES = {
    "an end after every turn": (CHATML, ["<|im_end|>"]),
    "an end after turns, and after the text": (
        TURN + "<|im_end|>\n{% endfor %}{% if not add_generation_prompt %}<|endoftext|>{% endif %}",
        ["<|im_end|>", "<|endoftext|>"],
    ),
    "no end, but the next turn's beginning": (TURN + "{% endfor %}", []),
    "an end before another turn alone": (
        TURN + "{% if not loop.last %}<|im_end|>{% endif %}{% endfor %}",
        ["<|im_end|>"],
    ),
    "the tokenizer's end": (TURN + "{{ eos_token }}{% endfor %}", ["<|endoftext|>"]),
    "a token that closes a call, and one that ends the turn": (
        TURN + CALLS + "<|im_end|>{% endfor %}",
        ["<|im_end|>"],
    ),
    "another end after a call": (
        TURN + "{% if m['tool_calls'] %}" + CALLS + "<|endoftext|>{% else %}<|im_end|>{% endif %}"
        "{% endfor %}",
        ["<|im_end|>", "<|endoftext|>"],
    ),
    "a template that refuses": ("{{ raise_exception('no') }}", []),
    "none": (None, []),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_the_ends_that_a_template_writes(case: str) -> None:
    template, ends = TEMPLATES[case]
    tokenizer = _tokenizer(template and template + HEADER * (template != CHATML), "<|endoftext|>")
    tokenizer.add_tokens(["<call>", "</call>"])
    assert tokenizer.convert_ids_to_tokens(template_ends(tokenizer)) == ends


@pytest.mark.parametrize("case", TEMPLATES)
def test_every_end_that_data_teaches_is_one(case: str) -> None:
    template, ends = TEMPLATES[case]
    tokenizer = _tokenizer(template and template + HEADER * (template != CHATML), "<|endoftext|>")
    turns = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        texts = Renderer(RecordReader(), tokenizer).render({"messages": messages})
    except UserError:
        return  # Data that is refused teaches nothing.
    learned = [text.text[begin:end] for text in texts for begin, end in text.spans]
    assert len(learned) == 2
    written = {token for answer in learned for token in SPECIALS if token in answer}
    assert written <= set(ends)


def test_what_is_no_token_ends_nothing() -> None:
    assert end_ids({"eos_token_id": [-1, 3, 2**31, True, "4", None, 5]}) == (3, 5)


def test_a_template_that_does_not_end_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.hf.ends.SECONDS", 0.2)
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    with pytest.raises(UserError, match=r"the chat template does not end within 0.2 seconds"):
        template_ends(_tokenizer(loops))
    assert template_ends(_tokenizer("{{ 'a' * 10**12 }}")) == ()


def test_a_broken_generation_config_is_named(base: Base) -> None:
    folder = base(_tokenizer())
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(UserError, match=r"generation_config\.json: must be a JSON object"):
        find_ends(folder, load_tokenizer(folder))
