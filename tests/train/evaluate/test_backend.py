"""lm-eval's requests are answered as its own PyTorch backend answers them."""

from collections.abc import Callable
from copy import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.registry import get_model

from train.errors import UserError
from train.evaluate.backend import NAME, GmtTrainLM
from train.evaluate.evaluation import Settings, ask
from train.evaluate.tasks import load_tasks
from train.hf.evaluations import read_evaluations


@pytest.fixture(scope="module")
def backend(tiny_model: Path) -> GmtTrainLM:
    model: GmtTrainLM = get_model(NAME).create_from_arg_string(
        f"pretrained={tiny_model},fsdp=1,data=8,max_length=64", {"batch_size": "4", "device": None}
    )
    return model


def _requests(*args: Any) -> list[Any]:
    return [SimpleNamespace(args=arg) for arg in args]


def test_a_rolling_likelihood_is_the_sum_of_its_windows(backend: GmtTrainLM) -> None:
    text = "abcdefgh" * 20  # 160 tokens: the last window overlaps no other.
    [whole] = backend.loglikelihood_rolling(_requests((text,)), disable_tqdm=True)
    parts = [("", text[:64]), (text[63:127][:1], text[64:128]), (text[127:128], text[128:])]
    scores = backend.loglikelihood(_requests(*parts), disable_tqdm=True)
    assert whole < -100
    # The prefix token is the end of text; each window sees the token before it, and the last one
    # as many as fit.
    [first, second, _] = [logprob for logprob, _ in scores]
    shorter = backend.loglikelihood_rolling(_requests((text[:128],)), disable_tqdm=True)
    assert shorter[0] == pytest.approx(first + second, abs=1e-3)


def test_completions_stop_at_the_tasks_strings(backend: GmtTrainLM) -> None:
    options = {"until": [], "max_gen_toks": 12, "do_sample": False}
    [whole] = backend.generate_until(_requests(("abc", options)), disable_tqdm=True)
    assert len(whole) > 4
    stop = whole[3:5]
    cut = {**options, "until": [stop]}
    texts = backend.generate_until(
        _requests(("abc", cut), ("abc", options), ("abc", {**cut, "until": stop})), True
    )
    assert texts == [whole[: whole.index(stop)], whole, whole[: whole.index(stop)]]


def test_a_prompt_that_is_too_long_loses_its_first_tokens(backend: GmtTrainLM) -> None:
    options = {"max_gen_toks": 12}
    long, short = "x" * 30 + "abc" * 18, ("abc" * 18)[-52:]
    texts = backend.generate_until(_requests((long, options), (short, options)), True)
    assert texts[0] == texts[1]


def test_samples_are_drawn_by_the_seed(backend: GmtTrainLM) -> None:
    options = {"max_gen_toks": 8, "do_sample": True, "temperature": 1.0, "top_k": 50}
    twice = [backend.generate_until(_requests(("abc", options)), True) for _ in range(2)]
    assert twice[0] == twice[1]
    greedy = backend.generate_until(_requests(("abc", {"max_gen_toks": 8})), True)
    assert greedy != twice[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_beams": 4}, "asks for generation with num_beams; known are do_sample, max_gen_toks"),
        ({"max_gen_toks": 64}, "asks for 64 new tokens, and the model has 64 positions"),
    ],
)
def test_a_generation_that_is_not_known_is_refused(
    options: dict[str, Any], message: str, backend: GmtTrainLM
) -> None:
    with pytest.raises(UserError, match=message):
        backend.generate_until(_requests(("abc", options)), True)


def test_turns_are_the_chat_templates(backend: GmtTrainLM) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": "v"},
    ]
    text = "<|start|>system\ns<|end|>\n<|start|>user\nu<|end|>\n<|start|>assistant\na<|end|>\n"
    whole = backend.apply_chat_template(turns)
    assert whole == text + "<|start|>user\nv<|end|>\n<|start|>assistant\n"
    begun = [*turns, {"role": "assistant", "content": "It is"}]
    assert backend.apply_chat_template(begun, False) == whole + "It is"
    assert backend.chat_template(True) == backend.tokenizer.chat_template


def test_a_template_that_refuses_is_one_line(
    backend: GmtTrainLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = "{{ raise_exception('no system turn') }}"
    monkeypatch.setattr(backend.tokenizer, "chat_template", template)
    with pytest.raises(UserError, match=r"the chat template refuses a prompt .*no system turn"):
        backend.apply_chat_template([{"role": "system", "content": "s"}])


def test_the_results_of_a_run_are_kept_with_it(backend: GmtTrainLM, tmp_path: Path) -> None:
    model = copy(backend)
    model._model = SimpleNamespace(run=SimpleNamespace(folder=tmp_path), step=7)
    model.keep({"results": {"sums": {"acc,none": 0.5}}})
    [record] = read_evaluations(tmp_path)
    assert record == {"step": 7, "results": {"sums": {"acc,none": 0.5}}}
    backend.keep({"results": {}})  # A folder's are not.


def test_results_that_cannot_be_kept_are_shown(
    backend: GmtTrainLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evaluations.jsonl").mkdir()
    model = copy(backend)
    model._model = SimpleNamespace(run=SimpleNamespace(folder=tmp_path), step=7)
    model.keep({"results": {}})
    assert "the results are not kept with the run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype must be float32 or bfloat16, got int8"),
        ({"batch_size": "many"}, "batch_size must be a number, got many"),
        ({"data": 3}, "does not match the 8 devices here"),
        ({"pretrained": "no/such/folder"}, "no/such/folder"),
    ],
)
def test_a_model_that_cannot_be_read_is_refused(
    options: dict[str, Any], message: str, tiny_model: Path
) -> None:
    with pytest.raises(UserError, match=message):
        GmtTrainLM(**{"pretrained": str(tiny_model), **options})


WORDS = ["river", "stone", "cloud", "amber", "violin"]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{text}}",
        "doc_to_choice": ["a river", "b", "c"],
        "doc_to_target": 1,
    },
    "completion": {
        "output_type": "generate_until",
        "doc_to_text": "{{text}}:",
        "doc_to_target": "x",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 12},
    },
    "perplexity": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
    },
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # PyTorch's own.
@pytest.mark.parametrize("chat", [False, True])
def test_scores_and_completions_equal_those_of_the_pytorch_backend(
    chat: bool, tiny_model: Path, write_task: Callable[..., Path]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    texts = [{"text": " ".join(WORDS[: 1 + n % 5] * (1 + n))} for n in range(6)]
    names = [str(write_task(name, texts, **task)) for name, task in TASKS.items()]
    models = {
        NAME: get_model(NAME)(str(tiny_model), batch_size=4),
        "hf": get_model("hf")(str(tiny_model), batch_size=4, dtype="float32", device="cpu"),
    }
    settings = Settings(chat_template=chat, multiturn=chat, system="Be brief." if chat else None)
    results = {
        name: ask(
            model,
            load_tasks(names, {}, num_fewshot=1, run_code=False),
            settings,
            log_samples=True,
        )
        for name, model in models.items()
    }
    for task in TASKS:
        ours, theirs = (results[name]["samples"][task] for name in models)
        for a, b in zip(ours, theirs, strict=True):
            assert a["arguments"] == b["arguments"]
            assert _flat(a["resps"]) == pytest.approx(_flat(b["resps"]), abs=1e-3)
        for metric, value in results["hf"]["results"][task].items():
            if isinstance(value, float):
                assert results[NAME]["results"][task][metric] == pytest.approx(value, rel=1e-4)


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [part for inner in value for part in _flat(inner)]
    return [value]
