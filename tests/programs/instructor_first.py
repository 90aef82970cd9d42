"""instructor: the first example of its README, in the ways by which it asks a model for the form of an answer."""

import os

import instructor
from openai import OpenAI
from pydantic import BaseModel


class User(BaseModel):
    """Somebody in a text."""

    name: str
    age: int


messages = [{"role": "user", "content": "Extract: Jason is 25 years old"}]
for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA):
    client = instructor.from_openai(OpenAI(), mode=mode)
    user = client.chat.completions.create(
        model=os.environ["MODEL"], response_model=User, messages=messages, max_retries=0
    )
    assert isinstance(user, User), (mode, user)
client = instructor.from_provider(f"openai/{os.environ['MODEL']}")
assert isinstance(client.chat.completions.create(response_model=User, messages=messages), User)
pieces = [*client.chat.completions.create_partial(response_model=User, messages=messages)]
assert isinstance(pieces[-1].age, int) and pieces[-1].name is not None, pieces
print("good")
