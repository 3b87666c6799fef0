"""Chat templates are untrusted code: limits, normal form, and text that cannot become control tokens."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeqwen.engine.protocol import ChatMessage
from edgeqwen.errors import EngineError, InvalidInput
from edgeqwen.worker.template import Template, normalise

CONTROLS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def say(*messages: tuple[Any, Any]) -> list[ChatMessage]:
    return [ChatMessage(role=role, content=content) for role, content in messages]


def nested(depth: int) -> object:
    inner: object = 1
    for _ in range(depth):
        inner = [inner]
    return inner


def rendered(template: str | None, messages: list[ChatMessage], think: bool | None = None) -> str:
    return "".join(part.text for part in Template(template, CONTROLS).render(messages, think, []))


def test_without_a_template_it_is_chatml() -> None:
    assert rendered(None, say(("system", "be brief"), ("user", "hi"))) == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_thinking_switch_reaches_the_template() -> None:
    source = "{{ 'unset' if enable_thinking is not defined else enable_thinking }}"
    said = [rendered(source, say(("user", "x")), think) for think in (None, True, False)]
    assert said == ["unset", "True", "False"]


@given(
    st.text(max_size=30), st.lists(st.sampled_from([*CONTROLS, "<|im_", "end|>", "\ue000", "x"]), max_size=6)
)
def test_no_text_becomes_a_control_token(before: str, parts: list[str]) -> None:
    content = (before + "".join(parts)).encode("utf-8", "replace").decode()
    segments = Template(None, CONTROLS).render(say(("user", content)), None, [])
    assert "".join(segment.text for segment in segments) == rendered(None, say(("user", content)))
    special = [segment.text for segment in segments if segment.special]  # each is tokenized by itself
    n_controls = sum(text.count(control) for text in special for control in CONTROLS)
    assert n_controls == 3, "start, end, start: the template's own"
    assert content in "".join(segment.text for segment in segments)


def test_tools_and_calls_are_shielded_too() -> None:
    source = (
        "{{ tools | tojson }}"
        "{% for m in messages %}{{ m.content }}{{ m.tool_calls | tojson if m.tool_calls }}{% endfor %}"
    )
    call = {"function": {"name": "f", "arguments": '{"a": "<|im_end|>", "role": "<|im_start|>"}'}}
    messages = [ChatMessage(role="user", content="x"), ChatMessage(role="assistant", tool_calls=[call])]
    segments = Template(source, CONTROLS).render(messages, None, [{"name": "<|im_start|>"}])
    assert all("<|im_" not in segment.text for segment in segments if segment.special)
    assert '"arguments": {"a": "<|im_end|>", "role"' in "".join(segment.text for segment in segments)


def test_messages_take_their_normal_form() -> None:
    messages = say(
        ("user", [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]),
        ("assistant", None),
        ("system", "s"),
    )
    assert normalise(messages) == [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": ""},
    ]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "at least one user message"),
        (say(("system", "x")), "at least one user message"),
        (say(("user", [{"type": "image_url"}])), "not image_url parts"),
        (
            [
                ChatMessage(role="user"),
                ChatMessage(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "{"}}]),
            ],
            "not valid JSON",
        ),
        (
            [
                ChatMessage(role="user"),
                ChatMessage(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": "[]"}}]),
            ],
            "not an object",
        ),
        ([ChatMessage(role="user"), ChatMessage(role="assistant", tool_calls=[{"function": 3}])], "function"),
        (
            [
                ChatMessage(role="user"),
                ChatMessage(role="assistant", tool_calls=[{"function": {"arguments": {"a": nested(5000)}}}]),
            ],
            "nested too deeply",
        ),
    ],
)
def test_what_no_template_can_take_is_refused(messages: list[ChatMessage], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        Template(None, CONTROLS).render(messages, None, [])


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("{% for x in range(10) %}", "broken"),
        ("{{ raise_exception('no system prompt here') }}", "no system prompt here"),
        ("{{ messages.append(1) }}", "refused"),
        ("{{ ''.__class__.__mro__ }}", "refused"),
        ("{{ messages[99].content }}", "refused"),
        ("{{ 1 / 0 }}", "refused"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested too deeply"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more than 2 s",
        ),
        ("{{ 9**(9**9) }}", "more than 2 s"),  # computed while it is compiled
        ("{% for x in 'a' %}" * 25 + "{% endfor %}" * 25, "refused"),
        ("{{ cycler() }}", "refused"),
    ],
)
def test_hostile_templates_end_in_one_sentence(source: str, words: str) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        rendered(source, say(("user", "hi")))
    assert str(caught.value).isprintable()


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is bounded on Linux alone")
def test_a_template_cannot_fill_the_memory() -> None:
    source = "{% set ns = namespace(x='y') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}"
    with pytest.raises(EngineError, match="memory"):
        rendered(source, say(("user", "hi")))


def test_a_prompt_without_end_is_refused() -> None:
    with pytest.raises(InvalidInput, match="at most 16,777,216"):
        rendered("{{ 'x' * 17000000 }}", say(("user", "hi")))
