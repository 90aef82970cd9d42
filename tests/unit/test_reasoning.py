"""Reasoning in the text of an answer ends up beside it, the answer is clean, and a mention of a tag stays in it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from obatchd.prompts.reasoning import opened_by, split_reasoning
from obatchd.results.answers import parse_answer


@pytest.mark.parametrize(
    ("text", "native", "response", "think"),
    [
        ("yes", "", "yes", ""),
        ("  kept as it is\n", "", "  kept as it is\n", ""),
        ("yes", "native", "yes", "native"),
        ("<think>\nhm\n</think>\n\nyes\n", "", "yes", "hm"),
        ("<think></think>yes", "", "yes", ""),
        ("<think>\n\n</think>\n\nParis", "", "Paris", ""),
        ("\n<THINK>hm</THINK>yes", "", "yes", "hm"),
        ("<thinking>hm</thinking> yes", "", "yes", "hm"),
        ("<think>more</think>yes", "native", "yes", "native\n\nmore"),
        ("<think>a</think>\n<think>b</think> two", "", "two", "a\n\nb"),
        ("<think>a</think>yes</think> no", "", "yes</think> no", "a"),
        ("<think>a</think>one<think>b</think> two", "", "one<think>b</think> two", "a"),
        ("[THINK]plan[/THINK]Paris", "", "Paris", "plan"),
        ("<thought>plan</thought>Paris", "", "Paris", "plan"),
        ("<reasoning>plan</reasoning>Paris", "", "Paris", "plan"),
        ("◁think▷plan◁/think▷Paris", "", "Paris", "plan"),
        ("<seed:think>plan</seed:think>Paris", "", "Paris", "plan"),
        ("<|START_THINKING|>plan<|END_THINKING|><|START_RESPONSE|>Paris<|END_RESPONSE|>", "", "Paris", "plan"),
        (
            "<|begin_of_thought|>plan<|end_of_thought|>\n<|begin_of_solution|>Paris<|end_of_solution|>",
            "", "Paris", "plan",
        ),
        ("<|channel>thought\nplan<channel|>Paris", "", "Paris", "plan"),
        (
            "<|channel|>analysis<|message|>plan<|end|><|start|>assistant<|channel|>final<|message|>Paris",
            "", "Paris", "plan",
        ),
        (
            "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=f "
            "<|constrain|>json<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>Paris<|return|>",
            "", "Paris", "a\n\nb",
        ),
        ("<|channel|>final<|message|>Paris", "", "Paris", ""),
        ('<think>p</think>{"a":"x"}', "", '{"a":"x"}', "p"),
    ],
)  # fmt: skip
def test_the_answer_is_clean_and_no_thought_is_lost(text: str, native: str, response: str, think: str) -> None:
    assert split_reasoning(text, native) == (response, think)


@pytest.mark.parametrize(
    "text",
    [
        "DeepSeek wraps its reasoning in a <think> tag before the answer. Strip it with a regular expression.",
        "Use `<think>` to open and `</think>` to close the reasoning. Then print the rest.",
        "`</think>` ends it.",
        "</think> ends it.",
        "<think> opens the reasoning of DeepSeek.",
        "[THINK] is Magistral's, [/INST] is not.",
        "The final channel begins with <|channel|>final<|message|> in Harmony.",
        "First.\n<think>a second thought</think>\nLast.",
        "I think so, < think > it over",
        '{"tag": "<think>data</think>"}',
        '["[THINK]", "[/THINK]"]',
    ],
)
@pytest.mark.parametrize("cut", [False, True])
def test_a_mention_of_a_tag_eats_no_text(text: str, cut: bool) -> None:
    if not cut or not text.startswith(("<think>", "[THINK]")):
        assert split_reasoning(text, cut=cut) == (text, "")


@pytest.mark.parametrize(
    ("text", "opened", "response", "think"),
    [
        ("plan\n</think>\nyes", "<think>", "yes", "plan"),
        ("<think>plan</think>yes", "<think>", "yes", "plan"),
        ("plan[/THINK]yes", "[THINK]", "yes", "plan"),
        ("plan</think>yes", "[THINK]", "plan</think>yes", ""),
        ("no reasoning this time", "<think>", "no reasoning this time", ""),
        ('{"tag": "</think>"}', "<think>", '{"tag": "</think>"}', ""),
        (
            "plan<|end|><|start|>assistant<|channel|>final<|message|>yes", "<|channel|>analysis<|message|>",
            "yes", "plan",
        ),
    ],
)  # fmt: skip
def test_a_tag_that_the_template_opened_is_closed_in_the_text(
    text: str, opened: str, response: str, think: str
) -> None:
    assert split_reasoning(text, opened=opened) == (response, think)
    assert split_reasoning(text, "native", opened=opened)[1].startswith("native")


def test_reasoning_that_a_token_limit_cut_is_no_answer() -> None:
    assert split_reasoning("<think>never closed", cut=True) == ("", "never closed")
    assert split_reasoning("never closed", opened="<think>", cut=True) == ("", "never closed")
    assert split_reasoning("an answer <think>and then", cut=True) == ("an answer <think>and then", "")


@pytest.mark.parametrize(
    ("template", "opened"),
    [
        ("{{ .Prompt }}", ""),
        ("{{ .System }}<|User|>{{ .Prompt }}<|Assistant|><think>\n", "<think>"),
        ("<|Assistant|><think>\n{{ .Response }}<|end|>", "<think>"),
        ("{{- if $last }}<|im_start|>assistant\n<think>\n{{ end }}{{- end }}", "<think>"),
        ("{{ if .Think }}[THINK]{{ else }}x{{ end }}", "[THINK]"),
        ("{{ if .Thinking }}<think>{{ .Thinking }}</think>{{ end }}{{ .Response }}", ""),
        ("Put your reasoning into <think> tags. {{ .Prompt }}", ""),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>", "<|start|>assistant<|channel|>analysis<|message|>"),
    ],
)
def test_what_a_template_opens(template: str, opened: str) -> None:
    assert opened_by(template) == opened


@settings(max_examples=200, deadline=None, database=None)
@given(
    st.lists(st.sampled_from(["<think>", "</think>", "[THINK]", "a", " b\n", "<", "think"]), max_size=12).map("".join),
    st.sampled_from(["", "<think>", "[THINK]"]),
    st.booleans(),
)
def test_any_tags_lose_no_word(text: str, opened: str, cut: bool) -> None:
    response, think = split_reasoning(text, opened=opened, cut=cut)
    for word in "ab":
        assert response.count(word) + think.count(word) == text.count(word)


def test_an_export_passes_over_reasoning_as_the_daemon_does() -> None:
    assert parse_answer('[THINK]{"a": 0}[/THINK]{"a": 1}').data == {"a": 1}
