"""What a model is told: prompts, messages with their roles and parts, pictures, and texts to be made into vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from obatchd.jobs.formats.reader.fields import IF_DATA, Fields, parsed, quoted, shown
from obatchd.jobs.model import RequestRefused

# Names that data sets give to the text that a model is asked, the first one first; and to chats.
TEXT_NAMES = ("prompt", "text", "content", "question", "query", "instruction")
CHAT_NAMES = ("messages", "conversations", "conversation", "dialogue", "dialog")
MATERIAL = ("input", "context")  # of an instruction
_IMAGE_NAMES = frozenset({"images", "image", "image_url"})
BESIDE_PROMPTS = _IMAGE_NAMES | {"messages", "role"}
_DOCUMENTED = ("prompt", "content")
_ANSWERS = frozenset(
    {"output", "outputs", "target", "targets", "ideal", "answer", "expected", "expected_output", "completion",
     "response"}
)  # fmt: skip
_ROLES = {
    name: role
    for role, names in {
        "system": ("developer", "system"),
        "user": ("human", "prompter", "user"),
        "assistant": ("ai", "assistant", "bot", "chatbot", "chatgpt", "function_call", "gpt", "model"),
        "tool": ("function", "function_response", "ipython", "observation", "tool", "tool_response"),
    }.items()
    for name in names
}
_CONTENTS = ("content", "value", "text", "parts")
_MAY_BE_NULL = (*_CONTENTS, "thinking", "reasoning_content", "tool_calls", "function_call")  # of an assistant
_PARTS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}
_ENDS_WITH_ASSISTANT = (
    "the conversation ends with the assistant: the model goes on with that message; leave it out to have the one "
    "before it answered"
)


def said(fields: Fields) -> dict[str, Any]:
    """What a plain line asks: ``prompt`` or ``messages``, else ``embed``. Raises RequestRefused where it is nothing."""
    if BESIDE_PROMPTS.isdisjoint(fields.raw) and is_prompt(prompt := fields.take("prompt")):  # as in most lines
        return {"prompt": prompt}
    chat = _chat(fields)
    if chat is not None:
        return chat
    found = _prompt(fields)
    images = images_of(fields)
    if images and "messages" in found:
        found["messages"][-1].setdefault("images", []).extend(images)
    elif images:
        found["images"] = images
    elif found.get("prompt", "").isspace():
        raise RequestRefused("missing_prompt", "the prompt is nothing but white space")
    if found:
        return found
    if "input" in fields.raw:
        return _of_input(fields)
    if (renamed := _usually_called(fields.raw)).keys() != fields.raw.keys():
        fields.raw = renamed
        return said(fields)
    names = quoted(name for name in fields.raw)
    raise RequestRefused(
        "missing_prompt",
        f'there is no prompt: give "prompt" or "messages" some text, or "input" to embed, or say with --text-column or '
        f"--template which fields it is made of; it has the fields {names}",
    )


def _usually_called(raw: dict[str, msgspec.Raw]) -> dict[str, msgspec.Raw]:
    """The fields with their names in the usual spelling: ``Prompt`` is a prompt, too."""
    small = {name: name.lower() for name in raw}
    usual = {*TEXT_NAMES, *CHAT_NAMES, *(MATERIAL if "instruction" in small.values() else ())}
    return {small[name] if small[name] in usual else name: value for name, value in raw.items()}


def is_prompt(value: Any) -> bool:
    """Whether a value needs no second look to be a prompt."""
    return isinstance(value, str) and value != "" and not value.isspace()


def _chat(fields: Fields) -> dict[str, Any] | None:
    """The messages of a line that has some; None where it has none."""
    prompt = fields.take("prompt")
    for name in ("messages", "prompt") if prompt else CHAT_NAMES:
        value = fields.take(name)
        if not value or (name != "messages" and not _is_chat(value)):
            if value:
                fields.give_back(name)
            continue
        if prompt and name == "messages":
            fields.give_back("prompt")
            fields.notes.append('it has "prompt" and "messages": the messages are sent, the prompt is not')
        if name == "prompt":
            fields.notes.append('its "prompt" is a list of messages, and is sent as a conversation')
        if images_of(fields):
            raise RequestRefused("wrong_type", f'it has "images" and "{name}"; put the images into a message')
        return {"messages": messages_of(fields, name, value)}
    return None


def _is_chat(value: Any) -> bool:
    """Whether a value is a list of messages, or one."""
    message = value[0] if isinstance(value, list) and value else value
    return isinstance(message, dict) and ("role" in message or "from" in message)


def _prompt(fields: Fields) -> dict[str, Any]:
    """The prompt of a line without messages; nothing where it has none."""
    for name in TEXT_NAMES:
        value = fields.take(name) if name in fields.raw else None
        if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
            value = value[0]
        if isinstance(value, list) and value and name in _DOCUMENTED:
            if isinstance(value[0], str):
                raise RequestRefused("wrong_type", f"{name} must be one text; give each prompt a line of its own")
            if isinstance(value[0], dict):  # parts, as in a message
                message = {"role": fields.take("role") or "user", "content": value}
                return {"messages": messages_of(fields, name, [message])}
        if value is not None and not isinstance(value, str):
            raise fields.wrong(name, "a text", value)
        if name == "instruction" and value is not None:
            return _instructed(fields, value)
        if value:
            found: dict[str, Any] = {"prompt": value}
            if name not in _DOCUMENTED and (others := _others(fields)):
                fields.notes.append(f'"{name}" is the prompt; --template puts other fields into it: {quoted(others)}')
            role = fields.take("role") if name in _DOCUMENTED else None
            return found | ({} if role is None else {"role": role_of(role, IF_DATA)})
    return {}


def _others(fields: Fields) -> list[str]:
    return [name for name in fields.rest() if name not in ("id", "custom_id", "model", "options", "system")]


def _instructed(fields: Fields, instruction: str) -> dict[str, Any]:
    """Rows of Alpaca, Dolly and their like: an instruction, its material, and the turns before it."""
    material = next((name for name in MATERIAL if isinstance(fields.peek(name), str) and fields.peek(name)), None)
    prompt = instruction
    if material is not None:
        prompt = f"{instruction}\n\n{fields.take(material)}".lstrip("\n")
        fields.notes.append(f'the prompt is made of "instruction" and "{material}"')
    elif others := [name for name in MATERIAL if fields.peek(name)]:
        fields.notes.append(f'"instruction" is the prompt; --template puts other fields into it: {quoted(others)}')
    if not prompt:
        return {}
    history = fields.peek("history")
    if not isinstance(history, list) or not history:
        return {"prompt": prompt}
    fields.take("history")
    turns = []
    for turn in history:
        if not isinstance(turn, list) or len(turn) != 2:
            raise fields.wrong("history", "a list of questions with their answers", history)
        turns += [["user", turn[0]], ["assistant", turn[1]]]
    return {"messages": messages_of(fields, "history", [*turns, ["user", prompt]])}


def instructed_columns(names: Mapping[str, str]) -> list[str]:
    """The columns whose texts make the prompt of a table like Alpaca's, by small names; none where it is no such."""
    if "instruction" not in names:
        return []
    return [names["instruction"], *(names[name] for name in MATERIAL if name in names)][:2]


def _of_input(fields: Fields) -> dict[str, Any]:
    """A line with nothing but ``input``: texts for vectors, unless it is a chat or a row of questions and answers."""
    texts = fields.take("input")
    if _is_chat(texts):
        return {"messages": messages_of(fields, "input", texts)}
    if problem := embed_problem(texts):
        raise RequestRefused("wrong_type", problem)
    if answers := sorted(_ANSWERS & fields.raw.keys()):
        raise RequestRefused(
            "missing_prompt",
            f'it has "input" and {quoted(answers)}: submit it with --text-column input where the input is a prompt, '
            "or without the latter where it is to be made into a vector",
        )
    return {"embed": texts, "prompt": texts if isinstance(texts, str) else ""}


def embed_problem(texts: Any, dimensions: Any = None) -> str:
    """Why something cannot be embedded; empty when it can."""
    given = [texts] if isinstance(texts, str) else texts
    if not isinstance(given, list) or not given or not all(isinstance(text, str) for text in given):
        return "input must be a text or a list of texts; tokens are not supported"
    if not all(text.strip() for text in given):
        return "a text of input is empty"
    if dimensions is not None and (isinstance(dimensions, bool) or not isinstance(dimensions, int) or dimensions < 1):
        return "dimensions must be a number"
    return ""


# Messages.


def last_said(messages: Sequence[dict[str, Any]]) -> str:
    """The last text of a user."""
    for message in reversed(messages):
        if message["role"] == "user":
            return str(message["content"])
    return ""


def messages_of(fields: Fields, name: str, value: Any) -> list[dict[str, Any]]:
    """The messages in the field ``name`` as Ollama has them; also one alone, a text, and pairs of role and text."""
    if isinstance(value, str):
        inner = parsed(value)
        value = inner if _is_chat(inner) else [["user", value]]
    given = [value] if isinstance(value, dict) else value
    if not isinstance(given, list) or not given:
        raise fields.wrong(name, "a list of messages", value)
    calls: dict[str, str] = {}
    messages = [_message(fields, name, message, calls) for message in given]
    if not any(m["content"].strip() or m.get("images") or m.get("tool_calls") for m in messages):
        raise RequestRefused("wrong_type" if fields.strict else "missing_prompt", f"there is no text in its {name}")
    if messages[-1]["role"] == "assistant":
        fields.notes.append(_ENDS_WITH_ASSISTANT)
    return messages


def role_of(role: Any, advice: str = "") -> str:
    """Ollama's name of a role. The template of a model leaves out messages whose role it does not know."""
    known = _ROLES.get(role) or _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        roles = ", ".join(dict.fromkeys(_ROLES.values()))
        raise RequestRefused("wrong_type", f"the role {shown(role)} is none of {roles}{advice}")
    return known


def _message(fields: Fields, name: str, message: Any, calls: dict[str, str]) -> dict[str, Any]:
    """A message as Ollama has it; ``calls``: names of the functions called so far, by the id of the call."""
    if isinstance(message, dict) and len(message) == 2 and isinstance(message.get("content"), str):  # as most are
        return {"role": role_of(message.get("role", message.get("from"))), "content": message["content"]}
    if isinstance(message, list) and len(message) == 2:
        message = {"role": message[0], "content": message[1]}
    role = _first(message, ("role", "from")) if isinstance(message, dict) else None
    if role is None:
        raise RequestRefused(
            "wrong_type", f"every message in {name} needs a role and a content, as {shown(message)} lacks"
        )
    content = _first(message, _CONTENTS)
    texts, images = _content(fields, content)
    own = message.get("images") or []
    images = [*(own if isinstance(own, list) else [own]), *images]
    made: dict[str, Any] = {"role": role_of(role), "content": "\n".join(texts)}
    if images:
        made["images"] = [image_text(image) for image in images]
    given = message.get("tool_calls") or message.get("function_call") or []
    if given:
        made["tool_calls"] = [_tool_call(call, calls) for call in (given if isinstance(given, list) else [given])]
    elif content is None and not images and (made["role"] != "assistant" or message.keys().isdisjoint(_MAY_BE_NULL)):
        raise RequestRefused("wrong_type", f"every message in {name} needs a content, as {shown(message)} lacks")
    thinking = message.get("thinking") or message.get("reasoning_content")
    if thinking and isinstance(thinking, str):
        made["thinking"] = thinking
    if made["role"] == "tool":
        tool = message.get("tool_name") or calls.get(str(message.get("tool_call_id"))) or message.get("name")
        if isinstance(tool, str):
            made["tool_name"] = tool
    return made


def _first(message: dict[str, Any], names: Iterable[str]) -> Any:
    return next((message[name] for name in names if message.get(name) is not None), None)


def _tool_call(call: Any, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise RequestRefused("wrong_type", "a tool call needs a function with a name")
    arguments = function.get("arguments") or {}
    arguments = parsed(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(arguments, dict):
        raise RequestRefused("wrong_type", "the arguments of a tool call must be a JSON object")
    names[str(call.get("id") or call.get("call_id"))] = function["name"]
    return {"function": {"name": function["name"], "arguments": arguments}}


def _content(fields: Fields, content: Any) -> tuple[list[str], list[Any]]:
    """The texts and the pictures in the content of a message."""
    if content is None or isinstance(content, str):
        return [content or ""], []
    texts: list[str] = []
    images: list[Any] = []
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text") if isinstance(part, dict) else None
        if isinstance(kind, str) and isinstance(part.get(_PARTS.get(kind)), str):
            texts.append(part[_PARTS[kind]])
        elif kind in ("image_url", "input_image", "image") and (image := _image_in(part)):
            images.append(image)
        elif kind not in ("thinking", "reasoning"):
            raise RequestRefused(
                "wrong_type",
                "the content of a message must be a text, or a list of texts and images"
                + (f"; a part of the type {kind} cannot be sent" if isinstance(kind, str) else ""),
            )
    return texts, images


# Pictures. Whether they are any is looked at when a request is indexed (jobs.formats.images).


def images_of(fields: Fields) -> list[Any]:
    """The pictures beside a prompt."""
    found: list[Any] = []
    if _IMAGE_NAMES.isdisjoint(fields.raw):
        return found
    for name in ("images", "image"):
        value = fields.take(name) if name in fields.raw else None
        found += value if isinstance(value, list) else [] if value in (None, "") else [value]
    url = fields.peek("image_url") if "image_url" in fields.raw else None
    url = url.get("url") if isinstance(url, dict) else url
    if isinstance(url, str) and url.startswith(("http:", "https:")):
        fields.cannot("image_url", "pictures must be base64 or files of a dropped folder; addresses are not fetched")
    elif url:
        fields.take("image_url")
        found.append(url)
    return [image_text(image) for image in found]


def image_text(image: Any) -> Any:
    """A picture as a text: what is in the object that some APIs put around it."""
    if isinstance(image, dict):
        return image.get("url") or image.get("data") or image.get("bytes") or image
    return image


def _image_in(part: dict[str, Any]) -> Any:
    """The picture in a part of a message, as base64 or a data URL; None where there is none."""
    value = next((part[key] for key in ("image_url", "image", "source", "url", "data") if part.get(key)), None)
    value = image_text(value)
    if isinstance(value, str) and value.startswith(("http:", "https:")):
        raise RequestRefused("not_supported", "images must be data URLs; addresses are not fetched")
    return value
