"""`sfumato models`: which models there are, what is in one, and whether its files are whole."""

from pathlib import Path
from typing import Any

import click

from sfumato.artifact import find_model, known_models, load_artifact, load_manifest, verify
from sfumato.cli.common import HelpfulGroup, debug_option, example, json_option, print_json
from sfumato.errors import ArtifactError
from sfumato.files import human_bytes
from sfumato.manifest import Manifest


@click.group(
    cls=HelpfulGroup,
    invoke_without_command=True,
    epilog=example("sfumato models", "sfumato models inspect mini"),
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
@debug_option
@click.pass_context
def models(context: click.Context, as_json: bool) -> None:
    """List the models that have a name here; inspect or verify a model.

    Those that ship with the package, and your own in SFUMATO_MODELS (or your data folder).
    """
    if context.invoked_subcommand is not None:
        return
    found: dict[str, tuple[Path, Manifest]] = {}
    for name, path in known_models().items():
        try:
            found[name] = path, load_manifest(path)
        except ArtifactError as error:  # the others are still worth listing
            click.echo(f"warning: {error}", err=True)
    if as_json:
        rows = [{"path": str(path), **_summary(name, manifest)} for name, (path, manifest) in found.items()]
        print_json({"models": rows})
        return
    for name, (_, manifest) in found.items():
        width, height = manifest.latents.default_size
        click.echo(
            f"{name:12} {manifest.family:6} {width}x{height:<6} {manifest.sampling.steps:3} steps  "
            f"{human_bytes(manifest.bytes)}"
        )
    if not found:
        click.echo("no model is installed; make a model folder with `sfumato convert`", err=True)


@models.command(epilog=example("sfumato models inspect mini", "sfumato models inspect ./my-model --json"))
@click.argument("model")
@json_option
@debug_option
def inspect(model: str, as_json: bool) -> None:
    """Show what MODEL (a folder or a name) is made of and its defaults."""
    artifact = load_artifact(find_model(model))
    manifest = artifact.manifest
    if as_json:
        document = manifest.model_dump(mode="json")
        print_json({"path": str(artifact.path), "bytes": manifest.bytes, **document})
        return
    sampling, latents = manifest.sampling, manifest.latents
    width, height = latents.default_size
    click.echo(
        f"{manifest.name}: family {manifest.family}, {manifest.precision}, {human_bytes(manifest.bytes)}"
    )
    click.echo(f"  path      {artifact.path}")
    click.echo(f"  made of   {manifest.source.get('checkpoint', 'unknown')}")
    for lora in manifest.loras:
        click.echo(f"  lora      {lora.file} at {lora.scale:g}")
    longest = f", {latents.largest_side} at most" if latents.largest_side else ""
    click.echo(f"  size      {width}x{height}; sides are multiples of {latents.size_multiple}{longest}")
    embedded = manifest.conditioning.embeds_guidance
    guided = f"guidance {sampling.guidance:g}" + (" as an input, no negative prompt" if embedded else "")
    click.echo(f"  sampling  {sampling.sampler}, {sampling.steps} steps, {guided}")
    click.echo("  parts")
    for name, component in manifest.components.items():
        tokens = f", {component.max_tokens} tokens" if component.max_tokens else ""
        click.echo(f"    {name:16} {human_bytes(_part_bytes(manifest, name)):>9}  {component.kind}{tokens}")


@models.command("verify", epilog=example("sfumato models verify ./my-model"))
@click.argument("model")
@json_option
@debug_option
def verify_command(model: str, as_json: bool) -> None:
    """Check every file of MODEL against its SHA-256; exit 2 names the first damaged file."""
    path: Path = find_model(model)
    manifest = verify(path)
    if as_json:
        print_json({"model": manifest.name, "path": str(path), "files": len(manifest.files), "ok": True})
    else:
        click.echo(
            f"{manifest.name}: {len(manifest.files)} files, {human_bytes(manifest.bytes)}, all as written"
        )


def _summary(name: str, manifest: Manifest) -> dict[str, Any]:
    return {
        "name": name,
        "family": manifest.family,
        "precision": manifest.precision,
        "size": list(manifest.latents.default_size),
        "steps": manifest.sampling.steps,
        "guidance": manifest.sampling.guidance,
        "bytes": manifest.bytes,
    }


def _part_bytes(manifest: Manifest, component: str) -> int:
    return sum(info.bytes for file, info in manifest.files.items() if file.startswith(f"{component}/"))
