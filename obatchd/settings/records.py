"""Settings that only a job has: how its records become prompts, and which of them are run."""

from __future__ import annotations

from pydantic import Field, field_validator, model_validator

from obatchd.prompts.template import template_problem
from obatchd.settings.base import Section


class RecordSettings(Section):
    """How a job's records become prompts. Only a job has these, and none is given where lines are requests already."""

    template: str | None = Field(None, description="The prompt, with fields of the record in braces: {note}.")
    text_column: str | None = Field(None, min_length=1, description="The field or column that is the prompt.")
    id_column: str | None = Field(None, min_length=1, description="The field or column that is the id.")

    @field_validator("template")
    @classmethod
    def _has_a_field(cls, value: str | None) -> str | None:
        if value is not None and (problem := template_problem(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _one_prompt(self) -> RecordSettings:
        if self.template is not None and self.text_column is not None:
            raise ValueError("template and text_column both say what the prompt is; give one of them")
        return self


class SelectionSettings(Section):
    """Which requests of a drop are run. Only a job has these."""

    sample: int | None = Field(None, ge=1, le=10_000, description="Run only so many requests, chosen at random.")
    skip_done: bool | str | None = Field(
        None, description="Copy the answers that the same requests got in earlier jobs, or in the one with this id."
    )
