"""The form that answers of a job must have: a JSON Schema, or a type that pydantic knows and makes instances of."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from obatchd.errors import ControlError

D = TypeVar("D")
_PROBLEMS = 3  # of one answer that are told
_Reader = Callable[[str], Any]


class Form(Generic[D]):
    """The form of the answers of one job."""

    def __init__(self, schema: dict[str, Any], read: _Reader | None = None) -> None:
        """``read`` makes an instance of the JSON text of an answer's data; without it the data are the instance."""
        self.schema = schema  # JSON Schema
        self._read = read

    @classmethod
    def of(cls, schema: type[D] | dict[str, Any]) -> Form[D]:
        """The form that a JSON Schema or a type says: a model of pydantic, a dataclass, ``list[Model]`` ….

        Raises ControlError (``schema``) where it is neither.
        """
        if isinstance(schema, dict):
            return cls(schema)
        if isinstance(schema, str):  # which pydantic would take for the name of a type
            raise ControlError('schema must be a type or a JSON Schema; for any JSON give format="json"', code="schema")
        from pydantic import TypeAdapter
        from pydantic.errors import PydanticUserError

        try:
            adapter = TypeAdapter(schema)
            return cls(adapter.json_schema(), adapter.validate_json)
        except PydanticUserError as error:
            reason = error.message.splitlines()[0]
            raise ControlError(f"schema: pydantic can make no JSON Schema of it: {reason}", code="schema") from None

    def read(self, data: Any) -> D:
        """The data of an answer as an instance. Raises ValueError, in plain words, where they do not fit the type."""
        if self._read is None:
            return data  # type: ignore[no-any-return]  # of a schema that is a dict, D is Any
        from pydantic import ValidationError

        try:
            return self._read(json.dumps(data))  # type: ignore[no-any-return]  # which the type makes
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            told = [": ".join(filter(None, (".".join(map(str, one["loc"])), one["msg"]))) for one in found[:_PROBLEMS]]
            more = f"; and {len(found) - _PROBLEMS} more" if len(found) > _PROBLEMS else ""
            raise ValueError("; ".join(told) + more) from None
