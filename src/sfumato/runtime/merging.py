"""Token merging of a model as it is loaded, whatever its folder says."""

from functools import partial

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..graphs.token_merging import Method, TokenMerging, merge_tokens
from .networks import Edit


def merging_of(artifact: Artifact, ratio: float | None, method: Method = "match") -> TokenMerging | None:
    """How a model is to merge as it is loaded; None where it is not.

    Raises InvalidRequest for a ratio or method that makes no sense, and for a model that merges already.
    """
    merging = TokenMerging(ratio or 0.0, method)
    if not merging.thousandths:
        return None
    if artifact.manifest.token_merging is not None:
        raise InvalidRequest(f"{artifact.manifest.name} merges tokens already; leave token merging out")
    return merging


def merging_edit(merging: TokenMerging | None) -> Edit | None:
    """The change to a denoiser that merges so; None for none."""
    if merging is None:
        return None
    name = f"{merging.method} {merging.thousandths}/1000 tokens"
    return Edit(name, partial(_apply, ratio=merging.ratio, method=merging.method))


def _apply(model: object, ratio: float, method: Method) -> None:
    merge_tokens(model, ratio, method)
