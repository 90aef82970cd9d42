"""langchain-ollama: the first examples of its README, and what else its users do first."""

import asyncio
import os

from langchain_core.messages import HumanMessage
from langchain_core.tools import tool
from langchain_ollama import ChatOllama, OllamaEmbeddings, OllamaLLM
from pydantic import BaseModel


class Patient(BaseModel):
    """Somebody in a note."""

    age: int


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


model = os.environ["MODEL"]
llm = ChatOllama(model=model)
answer = llm.invoke("Sing a ballad of LangChain.")
assert answer.content and answer.response_metadata["done_reason"] == "stop", answer
assert answer.usage_metadata["output_tokens"] > 0, answer
assert "".join(piece.content for piece in llm.stream([HumanMessage("hello")])).strip()
assert asyncio.run(llm.ainvoke("hello")).content
assert len(llm.batch(["one", "two", "three"])) == 3
structured = ChatOllama(model=model, temperature=0).with_structured_output(Patient, method="json_schema")
assert isinstance(structured.invoke("A man of 61."), Patient)
called = ChatOllama(model=model, num_ctx=8192).bind_tools([add]).invoke("1 + 2?")
assert [call["name"] for call in called.tool_calls] == ["add"], called

assert OllamaLLM(model=model).invoke("The meaning of life is").strip()

embeddings = OllamaEmbeddings(model=model)
assert len(embeddings.embed_query("What is the meaning of life?")) > 8
assert len(embeddings.embed_documents(["one", "two"])) == 2
print("good")
