"""`sfumato recipes`: which recipes ship, and what one says."""

from typing import TYPE_CHECKING

import click

from sfumato.cli.common import HelpfulGroup, debug_option, example, json_option, print_json

if TYPE_CHECKING:
    from sfumato.optimize.recipe import ComponentRecipe, Recipe


@click.group(
    cls=HelpfulGroup,
    invoke_without_command=True,
    epilog=example("sfumato recipes", "sfumato recipes show int8 > own.toml"),
)
@json_option
@debug_option
@click.pass_context
def recipes(context: click.Context, as_json: bool) -> None:
    """List the recipes that ship; show one, or check your own.

    A recipe says what `sfumato optimize` does to each component of a model.
    """
    if context.invoked_subcommand is not None:
        return
    from sfumato.optimize.recipe import builtin  # brings pydantic and NumPy: not for --help

    found = builtin()
    if as_json:
        print_json({"recipes": [recipe.document() for recipe in found.values()]})
        return
    for recipe in found.values():
        click.echo(f"{recipe.name:13} {recipe.description}")
        wanted = recipe.sampling
        sampling = [] if wanted is None else shortcuts(wanted.reuse, wanted.guidance_every)
        click.echo(f"{'':13} {', '.join([*_components(recipe), *sampling])}")


@recipes.command(epilog=example("sfumato recipes show int8", "sfumato recipes show ./own.toml"))
@click.argument("recipe", metavar="NAME|FILE")
@json_option
@debug_option
@click.pass_context
def show(context: click.Context, recipe: str, as_json: bool) -> None:
    """Print a recipe that ships, or your own once it is found right, as TOML with every default."""
    from sfumato.optimize.recipe import load_recipe

    loaded = load_recipe(recipe)
    if as_json or (context.parent is not None and context.parent.params["as_json"]):
        print_json(loaded.document())
    else:
        click.echo(loaded.to_toml(), nl=False)


def _components(recipe: "Recipe") -> list[str]:
    """`denoiser int8`, `text_encoders int4 (64, 80%)`: form, group, share in 4 bits."""
    return [f"{name} {_summary(each)}" for name, each in recipe.components.items()]


def shortcuts(reuse: str, guidance_every: int) -> list[str]:
    """`reuse fast`, `guidance_every 2`; nothing where every step runs in full."""
    said = [] if reuse == "off" else [f"reuse {reuse}"]
    return said + ([] if guidance_every == 1 else [f"guidance_every {guidance_every}"])


def _summary(component: "ComponentRecipe") -> str:
    hybrid = component.mode == "hybrid"
    form = component.weights if hybrid else component.mode
    said: list[str] = [form] if hybrid else []
    if form in ("int4", "nf4"):
        said.append("whole rows" if component.group_size < 0 else str(component.group_size))
        said += [] if component.ratio == 1 else [f"{component.ratio:.0%}"]
    return f"{component.mode} ({', '.join(said)})" if said else component.mode
