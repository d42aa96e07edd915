"""Token merging of a model as it is loaded, whatever its folder says."""

from functools import partial

from ..artifact import Artifact
from ..errors import InvalidRequest
from ..graphs.token_merging import Method, TokenMerging, merge_tokens
from .networks import Edit


def merging_edit(artifact: Artifact, ratio: float | None, method: Method = "match") -> Edit | None:
    """The change to the denoiser that merges this share of its tokens; None for none.

    Raises InvalidRequest for a ratio or method that makes no sense, and for a model that merges already.
    """
    if ratio is None:
        return None
    merging = TokenMerging(ratio, method)
    if artifact.manifest.token_merging is not None:
        raise InvalidRequest(f"{artifact.manifest.name} merges tokens already; leave token merging out")
    if not merging.thousandths:
        return None
    return Edit(f"{method} {merging.thousandths}/1000 tokens", partial(_apply, ratio=ratio, method=method))


def _apply(model: object, ratio: float, method: Method) -> None:
    merge_tokens(model, ratio, method)
