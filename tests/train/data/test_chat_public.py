"""Records of the shapes that public files have, and the masks or messages that they should give."""

from collections.abc import Callable
from typing import Any

import pytest

from train.data.chat import RecordReader, Renderer
from train.data.tokenize import encode
from train.errors import UserError

TEMPLATE = (
    "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}"
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}({{ c['function']['name'] }}"
    "{% for k, v in c['function']['arguments'].items() %} {{ k }}={{ v }}{% endfor %})"
    "{% endfor %}<e>\n"
    "{% endfor %}{% if add_generation_prompt %}a:{% endif %}"
)
ASKED = {"from": "human", "value": "1"}
SAID = {"from": "gpt", "value": "2"}
TURNS = [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]
ONE = ("u:1E/a:2E/",
       "       ^^")  # fmt: skip
CALLED = ("[f]u:1E/a:(f x=3)E/",
          "          ^^^^^^^^")  # fmt: skip
PLAIN = ("12E", " ^^")
CALL = {"name": "f", "arguments": '{"x": 3}'}
TOOL = {"name": "f", "parameters": {}}


@pytest.fixture
def render(make_tokenizer: Callable[..., Any], draw: Callable[..., Any]) -> Callable[..., Any]:
    tokenizer = make_tokenizer(TEMPLATE)

    def render(row: dict[str, Any], **settings: Any) -> Any:
        [text] = Renderer(RecordReader(**settings), tokenizer).render(row)
        return draw(tokenizer, encode([text], tokenizer)[0])

    return render


@pytest.mark.parametrize(
    ("row", "settings", "drawn"),
    [
        pytest.param({"id": "x_0", "conversations": [ASKED, SAID]}, {}, ONE, id="FastChat"),
        pytest.param({"conversations": [ASKED, SAID], "score": 5.2}, {}, ONE, id="scored ShareGPT"),
        pytest.param(
            {"conversation_id": 1, "conversation": [{"human": "1", "assistant": "2"}]},
            {}, ONE, id="Firefly",
        ),
        pytest.param({"messages": TURNS, "prompt_id": "x"}, {}, ONE, id="UltraChat"),
        pytest.param(
            {"messages": [t | {"weight": 1} for t in TURNS]}, {}, ONE, id="OpenAI with weights"
        ),
        pytest.param(
            {"messages": [
                {"role": t["role"], "content": [{"type": "text", "value": t["content"]}],
                 "loss_weight": float(t["role"] == "assistant")} for t in TURNS
            ]}, {}, ONE, id="LLaMA-Factory's second format",
        ),
        pytest.param(
            {"conversations": [
                ASKED,
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 3}}'},
                {"from": "observation", "value": "7"},
                SAID,
            ], "tools": '[{"name": "f", "parameters": {}}]'}, {},
            ("[f]u:1E/a:(f x=3)E/t:7E/a:2E/",
             "          ^^^^^^^^        ^^"), id="Glaive's tool calls",
        ),
        pytest.param(
            {"messages": [
                TURNS[0],
                {"role": "assistant", "tool_calls": [
                    {"id": "c", "type": "function", "function": CALL}
                ]},
            ], "parallel_tool_calls": False, "tools": [{"type": "function", "function": TOOL}]},
            {}, CALLED, id="OpenAI's tool calls",
        ),
        pytest.param(
            {"messages": [TURNS[0], {"role": "assistant", "function_call": CALL}],
             "functions": [TOOL]},
            {}, CALLED, id="OpenAI's older calls",
        ),
        pytest.param(
            {"instruction": "1", "input": "", "output": "2"}, {}, ONE, id="Stanford Alpaca"
        ),
        pytest.param(
            {"instruction": "1", "output": "2", "system": "s", "history": [["3", "4"]]}, {},
            ("s:sE/u:3E/a:4E/u:1E/a:2E/",
             "            ^^        ^^"), id="Alpaca with a history",
        ),
        pytest.param(
            {"instruction": "1", "context": "", "response": "2", "category": "qa"},
            {"columns": {"instruction": "instruction", "input": "context", "output": "response"}},
            ONE, id="Dolly",
        ),
        pytest.param(
            {"system_prompt": "s", "question": "1", "response": "2"},
            {"columns": {
                "system": "system_prompt", "instruction": "question", "output": "response"
            }},
            ("s:sE/u:1E/a:2E/",
             "            ^^"), id="OpenOrca",
        ),
        pytest.param(
            {"question": "1", "answer": "2"},
            {"columns": {"instruction": "question", "output": "answer"}}, ONE, id="GSM8K",
        ),
        pytest.param(
            {"prompt": "1", "response": "2", "history": []},
            {"columns": {"instruction": "prompt", "output": "response"}}, ONE, id="ChatGLM",
        ),
        pytest.param(
            {"task_id": "x/0", "prompt": "1", "canonical_solution": "2", "test": "x"},
            {"format": "completion", "columns": {
                "prompt": "prompt", "completion": "canonical_solution"
            }},
            PLAIN, id="HumanEval",
        ),
        pytest.param(
            {"task_id": 1, "text": "1", "code": "2", "test_list": []},
            {"columns": {"instruction": "text", "output": "code"}}, ONE, id="MBPP",
        ),
        pytest.param({"prompt": "1", "completion": "2"}, {"format": "completion"}, PLAIN, id="T0"),
        pytest.param({"text": "12", "meta": {"source": "x"}}, {}, ("12E", "^^^"), id="C4"),
        pytest.param(
            {"prompt": "1", "chosen": TURNS, "rejected": TURNS, "score_chosen": 8.0},
            {"columns": {"messages": "chosen"}}, ONE, id="UltraFeedback",
        ),
        pytest.param(
            {"conversations": [ASKED], "chosen": SAID, "rejected": SAID},
            {"columns": {"prompt": "conversations", "completion": "chosen"}}, ONE,
            id="LLaMA-Factory's pairs",
        ),
        pytest.param(
            {"chosen": "\n\nHuman: 1\n\nAssistant: 2", "rejected": "\n\nHuman: 1\n\nAssistant: 3"},
            {"columns": {"messages": "chosen"}}, ONE, id="HH-RLHF",
        ),
        pytest.param(
            {"conversations": [ASKED, SAID], "label": True}, {"ignore": ("label",)}, ONE, id="KTO"
        ),
    ],
)  # fmt: skip
def test_public_records(
    render: Callable[..., Any], row: Any, settings: Any, drawn: tuple[str, str]
) -> None:
    assert render(row, **settings) == drawn


@pytest.mark.parametrize(
    ("row", "said"),
    [
        pytest.param(
            {"conversations": [ASKED, SAID], "label": True}, "set data.ignore to [label]", id="KTO"
        ),
        pytest.param(
            {"conversations": [ASKED], "chosen": SAID, "rejected": SAID},
            "fits the formats conversations and preference; set data.format", id="pairs",
        ),
        pytest.param(
            {"messages": TURNS, "images": ["a.jpg"]}, "set data.ignore to [images]", id="images"
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "part 1 has the type 'image_url', and only parts of the type 'text'", id="image parts",
        ),
        pytest.param(
            {"prompt": "1", "completion": "2"}, "has a chat template: set data.format", id="T0"
        ),
        pytest.param(
            {"id": "x", "instruction": "1", "instances": [{"input": "", "output": "2"}]},
            "has no output, or it is null", id="self-instruct",
        ),
        pytest.param(
            {"question_id": 81, "category": "writing", "turns": ["1", "2"]},
            "and has 'category', 'question_id', 'turns'; map other", id="MT-Bench",
        ),
        pytest.param(
            {"data_source": "x", "prompt": TURNS[:1], "reward_model": {"ground_truth": "2"}},
            "has no completion, or it is null", id="prompts for RL",
        ),
        pytest.param(
            {"conversation": [t | {"toxic": False} for t in TURNS]},
            "set data.ignore to [toxic]", id="WildChat",
        ),
    ],
)  # fmt: skip
def test_public_records_that_are_asked_about(
    render: Callable[..., Any], row: Any, said: str
) -> None:
    with pytest.raises(UserError) as caught:
        render(row)
    assert said in str(caught.value)
