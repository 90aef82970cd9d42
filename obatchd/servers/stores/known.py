"""What is known of the models in the stores, and whether one name means one model in all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import attrs
import msgspec
from msgspec import UNSET

import obatchd.log
from obatchd.documents import excerpt, native
from obatchd.model_names import canonical, folded
from obatchd.ollama.api import StoredModel

log = obatchd.log.get(__name__)

LOCAL = "local"  # the store of the managed servers here; the others are called like their server or their host
_DIGITS = 12  # of a digest, as `ollama list` shows it


class ModelInfo(msgspec.Struct, frozen=True):
    """Facts about a model in a store. Texts are empty and numbers 0 where Ollama does not tell."""

    name: str
    digest: str
    quantization: str
    parameter_size: str
    context_length: int  # tokens it was trained for
    capabilities: list[str]  # completion, vision, tools, thinking, embedding, insert; "opens <think>" of the template
    size_bytes: int
    store: str = LOCAL


@attrs.define(eq=False)
class KnownModels:
    """The facts about models, by store and name."""

    _infos: dict[tuple[str, str], ModelInfo] = attrs.field(factory=dict, init=False)
    _told: dict[str, str] = attrs.field(factory=dict, init=False)  # last words on a model that differs, by name

    def get(self, store: str, model: str) -> ModelInfo | None:
        return self._infos.get((store, folded(model)))

    def of(self, model: str) -> ModelInfo | None:
        """As any store has it."""
        wanted = folded(model)
        return next((info for (_, name), info in self._infos.items() if name == wanted), None)

    def learn(self, info: ModelInfo) -> None:
        name = folded(info.name)
        self._infos[info.store, name] = info
        differing = self._differing(name, {store for store, _ in self._infos})
        if differing and self._told.get(name) != differing:
            log.warning("model_differs", model=name, reason=differing)
        self._told[name] = differing

    def compare(self, store: str, digests: Mapping[str, str]) -> None:
        """Learn the digests that a store lists: somebody may have put another model below a name that is known."""
        for name, digest in digests.items():
            known = self.get(store, name)
            if known is not None and known.digest != digest:
                self.learn(msgspec.structs.replace(known, digest=digest))

    def forget(self, model: str, store: str | None = None) -> None:
        """Nothing is known of it any more, in one store or in any."""
        wanted = folded(model)
        for where, name in list(self._infos):
            if name == wanted and store in (None, where):
                del self._infos[where, name]

    def notices(self, stores: Collection[str]) -> list[str]:
        """Notices for administrators: one name for models that are not the same in these stores."""
        names = dict.fromkeys(name for _, name in self._infos)
        return list(filter(None, (self._differing(name, stores) for name in names)))

    def _differing(self, model: str, stores: Collection[str]) -> str:
        """That a model is not the same in these stores, in words; empty where it is."""
        found: dict[str, list[str]] = {}  # stores by digest
        shown = model
        for (store, name), info in self._infos.items():
            if name == model and info.digest and store in stores:
                shown = canonical(info.name)
                found.setdefault(info.digest, []).append("this host" if store == LOCAL else store)
        if len(found) < 2:
            return ""
        *rare, (most, _) = sorted(found.items(), key=lambda entry: len(entry[1]))
        others = "; ".join(f"{', '.join(where)} has {_short(digest)}" for digest, where in rare)
        ours = not any(store.startswith("remote-") for where in found.values() for store in where)
        pull = f"obatchctl models pull {shown}`" if ours else f"ollama pull {shown}` on each host"
        return (
            f"{shown} is not the same model on all servers: {others}, the others {_short(most)}; jobs get answers of "
            f"both. Run `{pull}, then `obatchctl models`, which looks again"
        )


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:_DIGITS]


def as_told(entry: StoredModel) -> native.StoredModel:
    """A model of a store as Ollama's own API shows it."""
    details = entry.details
    shown = excerpt(
        native.Details,
        details,
        context_length=details.context_length or UNSET,
        embedding_length=details.embedding_length or UNSET,
    )
    able = UNSET if entry.capabilities is None else entry.capabilities
    return excerpt(native.StoredModel, entry, name=entry.model, details=shown, capabilities=able)
