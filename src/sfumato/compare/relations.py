"""What a model is to the reference: whether their pictures can be held together, how much smaller, faster."""

from .records import Model, Speed

STAGES = ("step", "decode", "total")


def not_comparable(model: Model, base: Model) -> str | None:
    """Why a model's pictures are not the reference's even if nothing is lost; None where they are."""
    if model.family != base.family:
        what = f"are of the families {model.family} and {base.family}"
    elif None not in (model.latent_channels, base.latent_channels) and (
        model.latent_channels != base.latent_channels
    ):
        what = f"have {model.latent_channels} and {base.latent_channels} latent channels"
    else:
        return None
    return (
        f"{model.name} and {base.name} {what}: one seed does not give the same picture, "
        "so there is no fidelity between them."
    )


def compression(model: Model, base: Model) -> dict[str, float]:
    """How many times smaller than in the reference each component is, and "total", the whole model.

    Where one side has the autoencoder in one piece (`vae`), the other's two halves count together.
    """
    mine, theirs = dict(model.components), dict(base.components)
    for parts, other in ((mine, theirs), (theirs, mine)):
        if "vae" in other and "vae" not in parts:
            parts["vae"] = sum(parts.pop(name, 0) for name in ("vae_encoder", "vae_decoder"))
    rates = {name: theirs[name] / count for name, count in mine.items() if count and theirs.get(name)}
    return rates | ({"total": base.disk_bytes / model.disk_bytes} if model.disk_bytes else {})


def speedup(speed: Speed, base: Speed) -> dict[str, float]:
    """How many times faster than the reference, by medians."""
    pairs = {name: (base.seconds[name].median, speed.seconds[name].median) for name in STAGES}
    return {name: theirs / mine for name, (theirs, mine) in pairs.items() if mine}
