"""A recipe's wishes for sampling, held against the model: what pays stands in what the recipe makes."""

import logging

from ..manifest import Manifest, Sampling
from ..runtime.reuse import LEAST_STEPS
from .recipe import Recipe

log = logging.getLogger(__name__)


def sampled_by(recipe: Recipe, model: Manifest) -> Sampling:
    """A model's sampling as a recipe wants it; what has no use with its steps or guidance is left out.

    That is logged as a warning.
    """
    own = model.sampling
    if recipe.sampling is None:
        return own
    embedded = model.conditioning.embeds_guidance
    unguided = embedded or own.guidance <= 1
    wanted = recipe.sampling.model_dump(exclude={"fit"})
    idle = {
        "reuse": wanted["reuse"] != "off" and own.steps < LEAST_STEPS,
        "guidance_every": wanted["guidance_every"] > 1 and (own.steps < LEAST_STEPS or unguided),
    }
    left = [f"{name} {wanted.pop(name)}" for name, useless in idle.items() if useless]
    if left:
        log.warning(
            "recipe %s: %s left out, as the model takes %d %s at guidance %g%s",
            recipe.name,
            " and ".join(left),
            own.steps,
            "step" if own.steps == 1 else "steps",
            own.guidance,
            ", without a negative prompt" if embedded else "",
        )
    return own.model_copy(update=wanted)


def in_full(own: Sampling) -> Sampling:
    """The same sampling with every step in full, as it is where networks are looked at."""
    return own.model_copy(update={"reuse": "off", "guidance_every": 1})
