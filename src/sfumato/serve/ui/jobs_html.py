"""What the tab of jobs shows of them and of recipes, as HTML."""

from collections.abc import Sequence
from html import escape

from ...optimize.recipe import ComponentRecipe, Recipe, Sampling
from ...units import duration
from ..jobs import Job

NOTHING_YET = "<p class='nothing'>Nothing yet. What is started here is listed here, with its progress.</p>"
CSS = """
.jobs { display: grid; gap: .6rem; max-height: 24rem; overflow-y: auto; }
.job { border: 1px solid var(--border-color-primary); border-radius: .5rem; padding: .5rem .75rem; }
.head { display: flex; gap: .75rem; justify-content: space-between; align-items: baseline; }
.title { font-weight: 500; overflow-wrap: anywhere; }
.state { font-size: .85rem; white-space: nowrap; }
.done .state { color: color-mix(in srgb, #2e9d5a 65%, var(--body-text-color)); }
.failed .state, .why { color: var(--error-icon-color); }
.running .state { color: var(--color-accent); font-weight: 600; }
.said { font-size: .85rem; opacity: .85; font-variant-numeric: tabular-nums; }
.why { font-size: .85rem; overflow-wrap: anywhere; }
.bar { height: .35rem; border-radius: 1rem; background: var(--border-color-primary); margin: .4rem 0 .25rem; }
.bar > span { display: block; height: 100%; border-radius: 1rem; background: var(--color-accent); }
.nothing { opacity: .7; }
"""
RECIPE_CSS = """
p { margin: 0 0 .3rem; } dl { display: grid; grid-template-columns: auto 1fr; gap: .1rem .75rem; margin: 0;
font-size: .85rem; } dt { opacity: .7; } dd { margin: 0; }
"""
NAMES = {"vae": "VAE", "default": "the rest"}
FORMS = {
    "keep": "as it is",
    "int8": "8-bit weights and activations",
    "int8-weights": "8-bit weights",
    "int4": "4-bit weights",
    "nf4": "4-bit weights (normal floats)",
}


def overview(jobs: Sequence[Job]) -> str:
    """The jobs as HTML, the newest first."""
    if not jobs:
        return NOTHING_YET
    return f'<div class="jobs" role="list">{"".join(map(_card, reversed(jobs)))}</div>'


def _card(job: Job) -> str:
    said = [job.stage] if job.stage else []
    if job.seconds >= 1:
        said.append(duration(job.seconds))
    if job.left:
        said.append(f"about {duration(job.left)} of this stage left")
    share = job.progress or 0.0
    bar = f'<div class="bar"><span style="width:{share:.1%}"></span></div>' if job.state == "running" else ""
    percent = f" {share:.0%}" if job.state == "running" and job.progress is not None else ""
    why = f'<div class="why">{escape(job.error)}</div>' if job.error else ""
    return (
        f'<div class="job {job.state}" role="listitem"><div class="head">'
        f'<span class="title">{escape(job.title)}</span><span class="state">{job.state}{percent}</span></div>'
        f'{bar}<div class="said">{escape(" · ".join(said))}</div>{why}</div>'
    )


def described(recipe: Recipe) -> str:
    """What a recipe is for and what it does to each component and to the steps, as HTML."""
    said = {
        NAMES.get(name, name.replace("_", " ")): in_words(each) for name, each in recipe.components.items()
    }
    if recipe.sampling is not None:
        said["steps"] = _sampled(recipe.sampling)
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(words)}</dd>" for name, words in said.items())
    return f"<p>{escape(recipe.description)}</p><dl>{rows}</dl>"


def in_words(component: ComponentRecipe) -> str:
    """What is done to a component: `4-bit weights in groups of 128, 85% of them`, and what merges."""
    merging = f"; {component.token_merging:.0%} of the tokens merged" if component.token_merging else ""
    return _rounded(component) + merging


def _rounded(component: ComponentRecipe) -> str:
    match component.mode:
        case "hybrid":
            return f"convolutions in 8 bits, {_weights(component, component.weights)} in linear layers"
        case "int8" if component.weights != "int8":
            return f"8-bit activations, {_weights(component, component.weights)} in linear layers"
        case "int4" | "nf4":
            return _weights(component, component.mode)
    return FORMS[component.mode]


def _sampled(sampling: Sampling) -> str:
    """`reuse fast, the negative prompt at key steps`."""
    reuses, rare = sampling.reuse != "off", sampling.guidance_every > 1
    where = "at key steps" if reuses else f"at one in {sampling.guidance_every}"
    said = [f"reuse {sampling.reuse}"] * reuses + [f"the negative prompt {where}"] * rare
    return ", ".join(said) or "each in full"


def _weights(component: ComponentRecipe, form: str) -> str:
    if form == "int8":
        return FORMS["int8-weights"]
    groups = "whole rows" if component.group_size < 0 else f"groups of {component.group_size}"
    share = "" if component.ratio == 1 else f", {component.ratio:.0%} of them"
    return f"{FORMS[form]} in {groups}{share}"
