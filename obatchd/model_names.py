"""Names of models: Ollama takes several for one, and looks past their case (types/model/name.go, getExistingName)."""

from __future__ import annotations

_TAG = ":latest"  # of a name without a tag
_REGISTRY, _NAMESPACE = "registry.ollama.ai", "library"  # of a name without those


def plain(model: str) -> str:
    """A name without what Ollama adds: ``llama3`` for ``llama3:latest`` and ``library/llama3``. Case is kept."""
    if "/" in model:
        parts = model.split("/")
        if len(parts) == 3 and parts[0].lower() == _REGISTRY:
            del parts[0]
        if len(parts) == 2 and parts[0].lower() == _NAMESPACE:
            del parts[0]
        model = "/".join(parts)
    return model[: -len(_TAG)] if model.lower().endswith(_TAG) else model


def canonical(model: str) -> str:
    """A name as Ollama lists it, with its tag."""
    found = plain(model)
    return found if ":" in found.rpartition("/")[2] else found + _TAG


def folded(model: str) -> str:
    """What all names of a model have in common, and no other model's."""
    return canonical(model).casefold()
