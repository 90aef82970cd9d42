"""Reasoning that a model wrote into its answer instead of beside it.

Ollama splits reasoning off for models whose template it knows. With others, and with old versions, the tags stay in the
text; a template that opens the tag itself leaves only the closing one (deepseek-r1); a token limit leaves only the
opening one.
"""

from __future__ import annotations

import re

_TAGS = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_JSON_BEGINS = ("{", "[")


def split_reasoning(text: str, think: str = "") -> tuple[str, str]:
    """The answer without reasoning, and the reasoning: the part given apart (``think``) and the part in the text.

    A tag that is never closed holds all that follows. JSON is left as it is: tags in it are data.
    """
    if ("think" not in text and "THINK" not in text) or text.lstrip().startswith(_JSON_BEGINS):
        return text, think
    kept: list[str] = []
    thoughts = [think] if think else []
    end, depth, found = 0, 0, False
    for tag in _TAGS.finditer(text):
        closing = bool(tag[1])
        if closing and not depth and found:
            continue  # one too many: it is text
        piece = text[end : tag.start()]
        (thoughts if depth or closing else kept).append(piece)
        depth = depth - 1 if closing and depth else depth + (not closing)
        end, found = tag.end(), True
    if not found:
        return text, think
    (thoughts if depth else kept).append(text[end:])
    return "".join(kept).strip(), "\n\n".join(stripped for thought in thoughts if (stripped := thought.strip()))
