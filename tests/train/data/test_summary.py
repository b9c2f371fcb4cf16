"""What is said of the data in few lines."""

import numpy as np

from train.data.chat import CONTROL, FORGETS, PAIR, SPLIT, Understood
from train.data.records import Reading
from train.data.summary import describe, describe_notes, group_faults


def test_each_way_of_reading_is_a_line() -> None:
    chat = Understood(Reading("messages", ("messages", "tools"), ("id", "source")), True)
    text = Understood(Reading("text", ("text",), ()), False)
    assert describe("a.jsonl", [(chat, 1200), (text, 3), (text, 2), (text, 1), (text, 1)]) == [
        "a.jsonl: 1,200 records read as messages (columns: messages, tools, not used: id, source), "
        "with the chat template",
        "a.jsonl: 3 records read as text (columns: text), without the chat template",
        "a.jsonl: 2 records read as text (columns: text), without the chat template",
        "a.jsonl: 2 records with other columns",
    ]


def test_faults_of_one_kind_are_one_line_with_their_first_places() -> None:
    faults = [(f"a:{n}", f"turn {n} has the role 'r{n}'; use another") for n in range(1, 6)]
    faults.insert(2, ("a:9", "is blank"))
    assert group_faults(faults) == [
        "a:1: turn 1 has the role 'r1'; use another (the same: a:2, a:3 and 2 more)",
        "a:9: is blank",
    ]
    assert group_faults(faults[:2]) == [
        "a:1: turn 1 has the role 'r1'; use another (the same: a:2)"
    ]
    assert group_faults([]) == []


def test_notes_are_counted() -> None:
    notes = np.array([0, PAIR, SPLIT, SPLIT | CONTROL, FORGETS | SPLIT], np.uint8)
    assert describe_notes([notes[:1], notes[1:]]) == [
        "3 from conversations that the chat template makes several examples of",
        "1 whose contents spell control tokens (data.control_tokens)",
        "1 without thoughts of earlier turns",
    ]
    assert describe_notes([notes[:2]]) == []
