"""Reasoning in the text of an answer ends up beside it, and the answer is clean."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obatchd.prompts.reasoning import split_reasoning


@pytest.mark.parametrize(
    ("text", "native", "response", "think"),
    [
        ("yes", "", "yes", ""),
        ("  kept as it is\n", "", "  kept as it is\n", ""),
        ("yes", "native", "yes", "native"),
        ("<think>\nhm\n</think>\n\nyes\n", "", "yes", "hm"),
        ("<think></think>yes", "", "yes", ""),
        ("<THINK>hm</THINK>yes", "", "yes", "hm"),
        ("<thinking>hm</thinking> yes", "", "yes", "hm"),
        ("<think>more</think>yes", "native", "yes", "native\n\nmore"),
        ("<think>never closed", "", "", "never closed"),
        ("an answer <think>and then", "", "an answer", "and then"),
        ("the template opened it\n</think>\nyes", "", "yes", "the template opened it"),
        ("<think>a</think>one<think>b</think> two", "", "one two", "a\n\nb"),
        ("<think>a <think>b</think> c</think>yes", "", "yes", "a\n\nb\n\nc"),
        ("<think>a</think>yes</think> no", "", "yes</think> no", "a"),
        ("I think so, < think > it over", "", "I think so, < think > it over", ""),
        ('{"tag": "<think>data</think>"}', "", '{"tag": "<think>data</think>"}', ""),
    ],
)
def test_the_answer_is_clean_and_no_thought_is_lost(text: str, native: str, response: str, think: str) -> None:
    assert split_reasoning(text, native) == (response, think)


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(st.sampled_from(["<think>", "</think>", "a", " b\n", "<", "think"]), max_size=12).map("".join))
def test_any_tags_lose_no_word(text: str) -> None:
    response, think = split_reasoning(text)
    for word in "ab":
        assert response.count(word) + think.count(word) == text.count(word)
    assert "<think>" not in response or text.lstrip().startswith(("{", "["))
