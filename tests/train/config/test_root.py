"""The config's vocabulary: what is read, and what is said of mistakes."""

from pathlib import Path

import pytest

from train.config import Config, dump_config, load_config
from train.errors import UserError

CONFIGS = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))
MINIMAL = "run: runs/x\nmodel: {path: m}\ndata: {train: d.jsonl}\n"


@pytest.fixture
def minimal(tmp_path: Path) -> Path:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL)
    return file


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_every_shipped_config_is_valid(file: Path) -> None:
    config = load_config(file)
    assert config.run == f"runs/{file.stem}"
    assert config.optimizer.mask.kind == ("one_off" if file.stem == "one-off" else "gmt_mask")


def test_the_papers_runs_are_all_there() -> None:
    found = {(load_config(f).model.path, load_config(f).data.train[0].path) for f in CONFIGS}
    code, math = "ise-uiuc/Magicoder-Evol-Instruct-110K", "meta-math/MetaMathQA"
    tulu = "allenai/tulu-v2-sft-mixture"
    assert {
        ("mistralai/Mistral-7B-v0.1", code),
        ("deepseek-ai/deepseek-coder-6.7b-base", code),
        ("mistralai/Mistral-7B-v0.1", math),
        ("meta-llama/Meta-Llama-3-8B", math),
        ("meta-llama/Llama-2-7b-hf", tulu),
        ("meta-llama/Llama-2-13b-hf", tulu),
    } <= found


def test_overrides_are_laid_over_the_file(minimal: Path) -> None:
    config = load_config(
        minimal, ["optimizer.learning_rate=1e-5", "optimizer.mask.mask_ratio=0.5", "steps=3"]
    )
    assert config.optimizer.learning_rate == 1e-5
    assert config.optimizer.mask.mask_ratio == 0.5
    assert config.steps == 3


def test_an_exponent_without_a_point_is_a_number(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(MINIMAL + "optimizer: {learning_rate: 2e-5}\n")
    assert load_config(file).optimizer.learning_rate == 2e-5


def test_the_resolved_config_reads_back_equal(minimal: Path, tmp_path: Path) -> None:
    config = load_config(minimal, ["evaluation.prompts=[hello, 'two\\nlines']"])
    saved = tmp_path / "saved.yaml"
    saved.write_text(dump_config(config), encoding="utf-8")
    assert load_config(saved) == config


@pytest.mark.parametrize(
    ("given", "paths"),
    [
        ("a.jsonl", ["a.jsonl"]),
        ("[a.jsonl, b.csv]", ["a.jsonl", "b.csv"]),
        ("[a.jsonl, {path: b.csv, weight: 2}]", ["a.jsonl", "b.csv"]),
        ("{path: some/set, revision: v1}", ["some/set"]),
    ],
)
def test_data_is_a_source_or_a_list_of_them(minimal: Path, given: str, paths: list[str]) -> None:
    config = load_config(minimal, [f"data.train={given}", "data.revision=v2", "data.split=x"])
    sources = config.data.train_sources()
    assert [source.path for source in sources] == paths
    assert {source.split for source in sources} == {"x"}
    assert {source.revision for source in sources} == ({"v1"} if "v1" in given else {"v2"})


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("optimizer.mask.mask_rato=0.5", "did you mean optimizer.mask.mask_ratio?"),
        ("optimiser.learning_rate=1", "unknown key optimiser; did you mean optimizer?"),
        ("optimizer.mask.mask_ratio=1.5", "should be less than or equal to 1, got 1.5"),
        ("steps=0", "steps: input should be greater than or equal to 1, got 0"),
        ("batch.size=many", "batch.size: input should be a valid integer"),
        ("batch={size: 3, num_microbatches: 2}", "size 3 is not a multiple of num_microbatches 2"),
        ("mesh.fsdp=0", "an axis has at least 1 device"),
        ("model.compute_dtype=int8", "should be 'float32' or 'bfloat16'"),
        ("optimizer.mask={kind: lisa, every: 2}", "num_layers is required when kind is 'lisa'"),
        ("optimizer.mask.every=2", "mask.every has no effect when kind is 'gmt_mask'"),
        ("optimizer.mask={kind: none, report: true}", "report has no effect when kind is 'none'"),
        ("optimizer.mask={kind: hft, every: 2, mask_ratio: 0.2}", "when kind is 'hft'"),
        ("optimizer.mask.kind=fishr", "unknown kind 'fishr'; did you mean 'fisher'?"),
        ("optimizer.mask=3", "optimizer.mask: must hold keys and values, got 3"),
        ("optimizer.mask={kind: fisher, warmup: 2, mask_ratios: {a: 0}}", "has one mask_ratio"),
        ("optimizer.mask={kind: fisher, warmup: 2, final_mask_ratio: 1}", "on a mask that stays"),
        ("optimizer.mask.mask_ratios={'(': 0.1}", "mask_ratios: '(' is not a regular expression"),
        ("data.train=[]", "data.train: value should have at least 1 item"),
        ("data.train=[{path: x, wait: 1}]", "did you mean data.train.0.weight?"),
        ("data.train=[{weight: 1}]", "data.train.0.path is missing; set it"),
        ("data.columns={question: q}", "data.columns: 'question' is no field of a row; fields are"),
        ("data.packing=packd", "should be 'none', 'bucketed' or 'packed'"),
        ("steps", "'steps' is not an override; write key.path=value"),
        ("run.name=x", "run is a value and holds no keys"),
        ("steps=[1", "steps=[1:"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_place(minimal: Path, override: str, said: str) -> None:
    with pytest.raises(UserError) as caught:
        load_config(minimal, [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once(minimal: Path) -> None:
    with pytest.raises(UserError, match=r"steps: .*; .*unknown key sede.*seed"):
        load_config(minimal, ["steps=-1", "sede=3"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run: a\nrun: b\n", "c.yaml:2: the key 'run' stands twice"),
        ("run: [a\n", "c.yaml:2:"),
        ("- a\n", "must hold keys and values"),
        ("run: a\n", "model is missing; set it"),
        ("run: !!python/object:os.system a\n", "c.yaml:1:"),
    ],
)
def test_a_broken_file_is_told_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        load_config(file)
    assert said in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: No such file"):
        load_config(tmp_path / "none.yaml")


def test_every_key_is_explained() -> None:
    def sections(model: type) -> list[type]:
        own = [f.annotation for f in model.model_fields.values()]
        return [
            model,
            *(s for kind in own if hasattr(kind, "model_fields") for s in sections(kind)),
        ]

    unexplained = [
        f"{section.__name__}.{name}"
        for section in sections(Config)
        for name, field in section.model_fields.items()
        if not field.description and not hasattr(field.annotation, "model_fields")
    ]
    assert not unexplained
