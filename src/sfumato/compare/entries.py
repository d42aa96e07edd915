"""Who takes part in a comparison: models as they are, and as they are with shortcuts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from ..artifact import find_model, load_manifest
from ..errors import InvalidRequest
from ..manifest import Reuse
from .measure import unique_names
from .worker import TORCH, short_name

NONE_REUSES = "reuse: checkpoints in PyTorch have none, and no model here is a model folder; leave it out"


@dataclass(frozen=True)
class Entry:
    """A model as the command named it, and its unique name in the report.

    token_merging, reuse: None for the model as it is.
    """

    name: str
    source: str
    token_merging: float | None = None
    reuse: Reuse | None = None

    def besides(self, ratios: Sequence[float], reuses: Sequence[Reuse]) -> "list[Entry]":
        """The model with each of these, and with each two of both; what it does as it is, is left out."""
        manifest = load_manifest(find_model(self.source))
        tried = dict.fromkeys(ratios) if manifest.token_merging is None else ()
        merging = [None, *(ratio for ratio in tried if ratio)]
        reusing = [None, *(reuse for reuse in dict.fromkeys(reuses) if reuse != manifest.sampling.reuse)]
        return [self._with(*pair) for pair in product(merging, reusing) if pair != (None, None)]

    def _with(self, ratio: float | None, reuse: Reuse | None) -> "Entry":
        said = [self.name]
        said += [] if ratio is None else [f"merging {ratio:g}"]
        said += [] if reuse is None else [f"reuse {reuse}"]
        return Entry(" ".join(said), self.source, ratio, reuse)


def take_part(
    models: Sequence[str | Path],
    reference: str | Path | None,
    ratios: Sequence[float] = (),
    reuses: Sequence[Reuse] = (),
) -> tuple[list[Entry], int]:
    """The models with unique names, and which is the reference: one of them, or one more at the front.

    ratios, reuses: each model takes part as it is and with each of them (see `Entry.besides`). A reference
    that is not among the models, and a checkpoint in PyTorch, take part as they are.
    Raises InvalidRequest for an unknown model, fewer than two, or ways of reuse where none can reuse.
    """
    sources = [str(model) for model in models]
    places = [_place(source) for source in sources]
    first = 0
    if reference is not None:
        place = _place(str(reference))
        if place in places:
            first = places.index(place)
        else:
            sources.insert(0, str(reference))
    swept = {str(model) for model in models if not str(model).startswith(TORCH)}
    if sources and not swept and reuses:
        raise InvalidRequest(NONE_REUSES)
    names = unique_names([short_name(source) for source in sources])
    plain = [Entry(*pair) for pair in zip(names, sources, strict=True)]
    entries = [*plain]
    for entry in plain:
        if entry.source in swept:
            entries += entry.besides(ratios, reuses)
    if len(entries) < 2:
        given = f"only {sources[0]!r}" if sources else "no model"
        raise InvalidRequest(f"{given} to compare: give two models or more, or another as the reference")
    return entries, first


def unable(entries: Sequence[Entry], ratios: Sequence[float], reuses: Sequence[Reuse]) -> list[str]:
    """A sentence for each model that takes part without some of what was asked of all."""
    plain = [entry for entry in entries if entry == Entry(entry.name, entry.source)]
    said = unable_to_reuse({entry.name: entry.source for entry in plain}) if reuses else []
    if any(ratios):
        why = "merges tokens already: it takes part with its own ratio alone."
        said += [f"{entry.name} {why}" for entry in plain if _merges(entry)]
    return said


def unable_to_reuse(sources: Mapping[str, str]) -> list[str]:
    """A sentence for each checkpoint in PyTorch. sources: by name, what the command named."""
    return [
        f"{name} is a checkpoint in PyTorch, which has no reuse between steps: it takes part as it is."
        for name, source in sources.items()
        if source.startswith(TORCH)
    ]


def _merges(entry: Entry) -> bool:
    if entry.source.startswith(TORCH):
        return False
    return load_manifest(find_model(entry.source)).token_merging is not None


def _place(source: str) -> str:
    """What two spellings of one model have in common. Raises InvalidRequest for an unknown one."""
    if source.startswith(TORCH):
        return TORCH + str(Path(source.removeprefix(TORCH)).resolve())
    path = find_model(source)
    load_manifest(path)
    return str(path.resolve())
