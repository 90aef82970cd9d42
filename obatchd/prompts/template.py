"""Templates of prompts: text with the names of fields in braces, and nothing else that could be evaluated."""

from __future__ import annotations

import re

# A double pair of braces is a literal one. Braces before a quotation mark are JSON in the prompt, not a field.
_PLACEHOLDER = re.compile(r"\{\{([^{}\n]*)\}\}|\{[ \t]*([^\s{}\"'][^{}\"\n]*?)[ \t]*\}")


def template_parts(template: str) -> list[tuple[str, str | None]]:
    """Literal text, as (text, None), and fields, as ("", name), in order."""
    parts: list[tuple[str, str | None]] = []
    end = 0
    for match in _PLACEHOLDER.finditer(template):
        parts.append((template[end : match.start()], None))
        parts.append(("{" + match[1] + "}", None) if match[1] is not None else ("", match[2]))
        end = match.end()
    return [*parts, (template[end:], None)]


def template_problem(template: str) -> str:
    """The fault of a template, whatever its records are; empty when there is none."""
    if any(field for _, field in template_parts(template)):
        return ""
    return "has no placeholder: write the name of a field in braces, as in {note}"
