"""The reader of compiled programs, against texts written by hand."""

from collections import Counter

import pytest

from train.plan.hlo import Collective, find_collectives, program_cost

HEADER = "HloModule jit_step, num_partitions=8\n\n"


@pytest.mark.parametrize(
    ("line", "kind", "size", "group"),
    [
        (
            "%r = f32[32,4]{1,0:T(8,128)} all-reduce(%x), replica_groups={{0,1},{2,3}}",
            "all-reduce",
            512,
            2,
        ),
        ("%r = f32[] all-reduce(%x), channel_id=1, to_apply=%sum", "all-reduce", 4, 8),
        (
            "%r = (f32[2]{0}, /*index=1*/bf16[3]{0}) all-reduce(%x, %y), replica_groups=[2,4]<=[8]",
            "all-reduce",
            14,
            4,
        ),
        (
            "%r = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%sum",
            "all-reduce",
            16,
            4,
        ),
        (
            "%r = f32[4]{0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'a','b':(2)2}",
            "all-reduce",
            16,
            4,
        ),
        (
            "%g = (bf16[2,8]{1,0}, bf16[16,8]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%x), "
            "replica_groups=[1,8]<=[8]",
            "all-gather",
            256,
            8,
        ),
        (
            "%g = ((f32[1]{0}, f32[2]{0}), (f32[8]{0}, f32[16]{0})) all-gather-start(%x, %y), "
            "replica_groups=[1,8]<=[8]",
            "all-gather",
            96,
            8,
        ),
        (
            "%p = (bf16[4]{0:S(1)}, bf16[4]{0}, u32[]{:S(2)}, u32[]{:S(2)}) "
            "collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            8,
            8,
        ),
        ("%s = f32[4]{0} reduce-scatter(%x), replica_groups=[1,8]<=[8]", "reduce-scatter", 16, 8),
    ],
)
def test_a_collective_is_read(line: str, kind: str, size: int, group: int) -> None:
    assert list(find_collectives(f"  {line}\n", 8)) == [Collective(kind, size, group)]


@pytest.mark.parametrize(
    "line",
    [
        "%d = f32[8]{0} all-gather-done(%g)",
        "%f = f32[8]{0} fusion(%all-reduce.1), kind=kLoop, calls=%fused",
        '%a = f32[8]{0} add(%x, %y), metadata={op_name="all-reduce(x)"}',
    ],
)
def test_what_only_mentions_a_collective_is_none(line: str) -> None:
    assert not list(find_collectives(f"  {line}\n"))


@pytest.mark.parametrize(
    ("kind", "size", "sent"),
    [
        ("all-reduce", 800, 1400),  # a reduce-scatter and an all-gather
        ("all-gather", 800, 700),  # 100 bytes from each other device pass by
        ("reduce-scatter", 100, 700),
        ("all-to-all", 800, 700),
        ("collective-permute", 100, 100),
    ],
)
def test_bytes_sent_in_a_ring_of_eight(kind: str, size: int, sent: float) -> None:
    assert Collective(kind, size, 8).sent == sent


def loop(condition: str, body: str, more: str = "") -> str:
    return f"""%cond (p: (s32[], f32[8])) -> pred[] {{
{condition}
}}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {{
{body}
}}

ENTRY %main (x: f32[8]) -> f32[8] {{
  %once = f32[8]{{0}} all-reduce(%x), backend_config={{"estimated_cycles":"100"}}
  %w = (s32[], f32[8]) while(%init), condition=%cond, body=%body{more}
  ROOT %r = f32[8]{{0}} get-tuple-element(%w), index=1
}}
"""


COUNTS = """  %n = s32[] constant(32)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT"""
DEPENDS = """  ROOT %done = pred[] not(%fusion)"""
BODY = """  %i = s32[] get-tuple-element(%p), index=0
  %stride = s32[] constant(2)
  %next = s32[] add(%i, %stride)
  %g = f32[8]{0} all-gather(%part), backend_config={"estimated_cycles":"7"}
  ROOT %t = (s32[], f32[8]) tuple(%next, %g)"""
REDUCE, GATHER = Collective("all-reduce", 32, 8), Collective("all-gather", 32, 8)


def test_a_loop_that_counts_is_followed_through_all_its_rounds() -> None:
    step, passes = program_cost(HEADER + loop(COUNTS, BODY))
    assert step.collectives == Counter({REDUCE: 1, GATHER: 16})
    assert step.cycles == 100 + 16 * 7
    assert passes == []


def test_a_loop_whose_length_the_compiler_states() -> None:
    count = ', backend_config={"known_trip_count":{"n":"5"}}'
    step, _ = program_cost(HEADER + loop(DEPENDS, BODY, count))
    assert step.collectives[GATHER] == 5


def test_a_loop_that_depends_on_the_data_is_listed_with_one_round() -> None:
    step, [one_pass] = program_cost(HEADER + loop(DEPENDS, BODY))
    assert step.collectives == Counter({REDUCE: 1})
    assert one_pass.collectives == Counter({GATHER: 1})
    assert one_pass.cycles == 7


def test_branches_and_fused_computations_are_followed() -> None:
    text = """%a (x: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%x)
}

%b (x: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-reduce(%x), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %c = f32[8]{0} conditional(%p, %x, %x), branch_computations={%a, %b}
  %f = f32[8]{0} fusion(%x), kind=kCustom, calls=%b, backend_config={"estimated_cycles":"1"}
  %s = f32[8]{0} async-start(%x), calls=%a
  ROOT %d = f32[8]{0} async-done(%s), calls=%a
}
"""
    step, _ = program_cost(HEADER + text)
    assert step.collectives == Counter({GATHER: 2, REDUCE: 2})
    assert step.cycles == 9 + 1  # The branch's kernel, and the fusion as counted where it starts.


def test_the_steps_of_one_collective_share_its_channel() -> None:
    steps = """%first (x: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%x), channel_id=3
}

%last (x: f32[8]) -> f32[8] {
  %g = f32[8]{0} all-gather(%x), channel_id=3
}

"""
    body = BODY.replace("all-gather(%part)", "fusion(%f), calls=%last").replace(
        "  %g", "  %f = f32[8] fusion(%x), calls=%first\n  %g"
    )
    step, _ = program_cost(HEADER + steps + loop(COUNTS, body))
    assert step.collectives == Counter({REDUCE: 1, GATHER: 16})


def test_a_kernel_s_own_text_in_a_body_does_not_end_it() -> None:
    kernel = """  %k = f32[8]{0} custom-call(%x), backend_config={"module":"{
}
"}
"""
    text = loop(COUNTS, kernel + BODY)
    assert program_cost(HEADER + text) == program_cost(HEADER + loop(COUNTS, BODY))
