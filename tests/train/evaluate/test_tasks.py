"""Tasks by name and from files, the data they are given, and what is refused before it begins."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval.tasks import TaskManager

from train.errors import UserError
from train.evaluate.tasks import load_tasks, parse_data, pass_at_1

TASKS = Path(__file__).parents[3] / "configs/tasks"
SUMS = [{"question": f"{n}+1?", "answer": f"Add.\n#### {n + 1}"} for n in range(4)]
MBPP = [
    {
        "task_id": number,
        "text": f"Add {number}.",
        "code": f"def add(x): return x + {number}",
        "test_setup_code": "",
        "test_list": [f"assert add(1) == {number + 1}", f"assert add(2) == {number + 2}"],
    }
    for number in (1, 2, 3, 4, 10, 11, 510, 511)
]
HUMAN = [
    {
        "task_id": "HumanEval/0",
        "prompt": "def two():\n",
        "entry_point": "two",
        "canonical_solution": "    return 2\n",
        "test": "def check(candidate):\n    assert candidate() == 2\n",
    }
]


def _load(name: Any, data: list[str], **options: Any) -> Any:
    given = {"num_fewshot": None, "run_code": False} | options
    [task] = load_tasks([str(name)], parse_data(data), **given)["tasks"].values()
    task.set_fewshot_seed(1)
    return task


@pytest.fixture
def write(write_task: Callable[..., Path]) -> Callable[[str, Any], str]:
    """Writes records and returns their path."""
    return lambda name, records: str(write_task(name, records).with_suffix(".jsonl"))


def test_gsm8k_is_asked_with_examples_of_its_training_file(write: Any) -> None:
    train = write("train", [{"question": "9+9?", "answer": "#### 18"}] * 5)
    data = [f"train={train}", f"gsm8k_file.test={write('test', SUMS)}"]
    task = _load(TASKS / "gsm8k.yaml", data)
    [doc, *_] = task.test_docs()
    prompt = task.fewshot_context(doc, num_fewshot=2)
    assert prompt == "Question: 9+9?\nAnswer: #### 18\n\n" * 2 + "Question: 0+1?\nAnswer:"
    for text, strict, flexible in (("It is\n#### 1", 1, 1), ("It is 1.", 0, 1), ("None.", 0, 0)):
        for name, expected in (("strict-match", strict), ("flexible-extract", flexible)):
            [chain] = [f for f in task._filters if f.name == name]
            [answer] = _filtered(chain, text, doc)
            assert task.process_results(doc, [answer])["exact_match"] == expected


def _filtered(chain: Any, text: str, doc: Any) -> list[Any]:
    resps: Any = [[text]]
    for make in chain.filters:
        resps = list(make().apply(resps, [doc]))
    return resps


def test_the_number_of_examples_is_the_tasks_unless_another_is_asked_for(
    write: Any, write_task: Callable[..., Path]
) -> None:
    data = [f"train={write('train', SUMS)}", f"test={write('test', SUMS)}"]
    for asked, expected in ((None, 5), (2, 2), (0, 0)):
        task = _load(TASKS / "gsm8k.yaml", data, num_fewshot=asked)
        assert task.get_config("num_fewshot") == expected
    keys = {"output_type": "generate_until", "doc_to_text": "x", "doc_to_target": "y"}
    for own, asked, expected in ((None, None, 0), (None, 3, 3), (0, 3, 0)):
        task = _load(write_task("mine", SUMS, num_fewshot=own, **keys), [], num_fewshot=asked)
        assert task.get_config("num_fewshot") == expected


def test_examples_need_a_file_unless_none_are_asked_for(write: Any) -> None:
    data = [f"test={write('test', SUMS)}"]
    with pytest.raises(UserError, match=r"gsm8k_file: data of train: gsm8k/train\.jsonl does not"):
        _load(TASKS / "gsm8k.yaml", data)
    task = _load(TASKS / "gsm8k.yaml", data, num_fewshot=0)
    assert len(list(task.test_docs())) == 4


def test_mbpp_asks_its_test_split_after_three_examples(write: Any) -> None:
    task = _load(TASKS / "mbpp.yaml", [f"test={write('mbpp', MBPP)}"], run_code=True)
    docs = list(task.test_docs())
    assert [doc["task_id"] for doc in docs] == [11, 510]
    prompt = task.fewshot_context(docs[0], num_fewshot=3)
    shots = prompt.split("You are an expert Python programmer, and here is your task: ")[1:]
    assert [shot.splitlines()[0].split(" Your")[0] for shot in shots] == [
        "Add 2.", "Add 3.", "Add 4.", "Add 11."
    ]  # fmt: skip
    assert shots[0].endswith("[BEGIN]\ndef add(x): return x + 2\n[DONE]\n\n")
    assert prompt.endswith("assert add(1) == 12\nassert add(2) == 13\n[BEGIN]\n")
    [chain] = task._filters
    for text, passes in (
        (" def wrong(): pass", 0),
        ("def add(x): return x + 11\n", 1),
        ("Here:\n```python\ndef add(x):\n    return x + 11\n```\nIt adds.", 1),
        ("def add(x): return 12\nraise SystemExit(0)", 0),
    ):
        [code] = _filtered(chain, text, docs[0])
        assert task.process_results(docs[0], [code]) == {"pass@1": passes}


def test_humaneval_completes_a_function(write: Any) -> None:
    task = _load(TASKS / "humaneval.yaml", [f"test={write('human', HUMAN)}"], run_code=True)
    [doc] = task.test_docs()
    assert task.fewshot_context(doc, num_fewshot=0) == "def two():\n"
    [chain] = task._filters
    for text, passes in (("    return 2\n", 1), ("    return 3\n", 0)):
        [code] = _filtered(chain, text, doc)
        assert task.process_results(doc, [code]) == {"pass@1": passes}


def test_humaneval_as_a_chat_is_asked_for_the_whole_function(write: Any) -> None:
    human = [{**HUMAN[0], "prompt": 'import math\n\ndef two():\n    """2"""\n'}]
    task = _load(TASKS / "humaneval-chat.yaml", [f"test={write('human', human)}"], run_code=True)
    [doc] = task.test_docs()
    question = task.fewshot_context(doc, num_fewshot=0)
    assert question.startswith(
        "Complete this Python function.\n\n```python\nimport math\n\ndef two"
    )
    assert question.endswith('"""2"""\n```')
    [chain] = task._filters
    for text, passes in (
        ("```python\ndef two():\n    return math.floor(2.5)\n```", 1),
        ("def two():\n    return 2", 1),
        ("```python\ndef two():\n    return 3\n```", 0),
        ("I cannot.", 0),
        ("", 0),
    ):
        [code] = _filtered(chain, text, doc)
        assert task.process_results(doc, [code]) == {"pass@1": passes}


def test_the_share_of_programs_that_pass() -> None:
    assert pass_at_1(["assert x == 1", "assert x == 1"], ["x = 1", "x = 2"]) == 0.5


def test_code_is_run_only_when_asked_for(write: Any) -> None:
    with pytest.raises(UserError, match="mbpp_file: runs the model's code, in a sandbox; ask for"):
        _load(TASKS / "mbpp.yaml", [f"test={write('mbpp', MBPP)}"])


def test_code_is_not_run_outside_the_sandbox(write_task: Callable[..., Path]) -> None:
    keys = {"output_type": "generate_until", "doc_to_text": "x", "doc_to_target": "y"}
    task = write_task("other", SUMS, unsafe_code=True, **keys)
    with pytest.raises(UserError, match="other: runs code outside this program's sandbox"):
        _load(task, [], run_code=True)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("test", "--data test: write SPLIT=FILE or TASK.SPLIT=FILE"),
        ("test=", "--data test=: write SPLIT=FILE"),
        ("test=missing.jsonl", "--data test=missing.jsonl: missing.jsonl does not exist"),
        ("sums.train={file}", "--data sums.train: its splits are test"),
        ("other.test={file}", "--data other.test: no file of --tasks takes it"),
    ],
)
def test_data_that_no_task_takes_is_refused(
    data: str, message: str, write_task: Callable[..., Path]
) -> None:
    keys = {"output_type": "generate_until", "doc_to_text": "x", "doc_to_target": "y"}
    task = write_task("sums", SUMS, **keys)
    file = task.with_suffix(".jsonl")
    with pytest.raises(UserError, match=message):
        _load(task, [data.format(file=file)])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset_path: json", "has neither task nor group"),
        ("- a list", "is no task"),
        ("a: [", "task.yaml: "),
        ("include: task.yaml", "includes itself"),
        ("task: broken\ndataset_path: missing/data", "--tasks: a task cannot be loaded"),
    ],
)
def test_a_file_without_a_task_is_refused(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message):
        _load(file, [])
    with pytest.raises(UserError, match=r"missing\.yaml: No such file"):
        _load("missing.yaml", [])


def test_an_unknown_name_is_refused_with_near_ones(
    write_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"output_type": "generate_until", "doc_to_text": "x", "doc_to_target": "y"}
    folder = write_task("gsm8k", SUMS, **keys).parent
    few = TaskManager(include_path=folder, include_defaults=False)
    monkeypatch.setattr("train.evaluate.tasks.TaskManager", lambda **_: few)
    with pytest.raises(UserError, match="--tasks gsm8q: no such task; near it: gsm8k"):
        _load("gsm8q", [])
    assert _load("gsm8*", []).config.task == "gsm8k"
    module = folder / "runs.py"  # Would be run by loading the task.
    module.write_text("raise AssertionError")
    text = "task: coded\nunsafe_code: true\nprocess_docs: !function runs.f\n"
    (folder / "coded.yaml").write_text(text)
    few = TaskManager(include_path=folder, include_defaults=False)
    with pytest.raises(UserError, match="coded: runs code outside this program's sandbox"):
        _load("coded", [], run_code=True)


def test_a_file_may_include_another_with_functions(write: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({"include": str(TASKS / "mbpp.yaml"), "task": "mine"}))
    task = _load(file, [f"mine.test={write('mbpp', MBPP)}"], run_code=True)
    assert len(list(task.test_docs())) == 2


def test_a_block_that_is_not_closed_is_code_to_its_end() -> None:
    spec = importlib.util.spec_from_file_location("answers", TASKS / "answers.py")
    assert spec is not None
    assert spec.loader is not None
    answers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(answers)
    texts = ["```py\na = 1\n", "a = 2", "```\na = 3```\n```\nb = 4```"]
    assert answers.code_blocks([texts], [{}]) == [["a = 1\n", "a = 2", "a = 3"]]
