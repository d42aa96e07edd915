"""The optimization itself: one component after the other into a folder that appears when all is done."""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..artifact import MANIFEST, Artifact, load_artifact, seal, verify, write_artifact
from ..errors import InvalidRequest
from ..files import check_space
from ..graphs.deep_features import tell_features
from ..graphs.token_merging import TokenMerging
from ..manifest import AppliedRecipe, Sampling
from ..runtime.devices import Device, core
from ..runtime.reuse import plan_of
from . import OnProgress, OnSample
from .apply import check, rewrite
from .calibration import Plan, Seen, calibrate, plan
from .job import Job
from .key_steps import fitted
from .prompts import load_prompts, pick, shipped
from .ranges import Grid
from .recipe import ComponentRecipe, Recipe
from .sampling import sampled_by
from .search import search

FLOATING = ("fp16", "fp32", "bf16")
IR = "openvino_model.xml"
NOTHING: Mapping[str, Mapping[str, Grid]] = {}


def prepare(artifact: Artifact, recipe: Recipe, given: Sequence[str] = ()) -> Job:
    """Find what the recipe means for this model. given: options for the calibration that were given.

    Raises InvalidRequest where it means nothing, and ArtifactError for a damaged model: OpenVINO may crash on
    one, and its files would be sealed as right ones.
    """
    manifest = artifact.manifest
    if manifest.recipe is not None or manifest.precision not in FLOATING:
        made = f"recipe {manifest.recipe.name!r}" if manifest.recipe else f"weights {manifest.precision}"
        raise InvalidRequest(
            f"{artifact.path}: optimized already ({made}); give the model as it was converted"
        )
    denoiser = artifact.family.denoiser
    chosen = {
        name: recipe.of(name, info.kind, name == denoiser) for name, info in manifest.components.items()
    }
    changing = {name: each for name, each in chosen.items() if each.changes}
    sampling = sampled_by(recipe, manifest)
    if not changing and sampling == manifest.sampling:
        raise InvalidRequest(
            f"recipe {recipe.name!r} changes nothing of {manifest.name} ({manifest.family}), which has "
            f"{', '.join(manifest.components)}; name one of these, or denoiser, text_encoders, vae or default"
        )
    _check_merging(artifact, changing)
    sampled = any(each.needs_samples for each in changing.values())
    if recipe.search is not None and not any(each.mode in ("int8", "hybrid") for each in changing.values()):
        raise InvalidRequest(f"recipe {recipe.name!r}: [search] needs a component with mode int8 or hybrid")
    if given and not sampled:
        raise InvalidRequest(f"recipe {recipe.name!r} takes no samples; leave out {' and '.join(given)}")
    verify(artifact.path)
    _check_reuse(artifact, sampling)
    for each in dict.fromkeys(changing.values()):
        check({name: artifact.path / name / IR for name, its in changing.items() if its == each}, each)
    job = Job(artifact, recipe, changing, sampling)
    if (job.sampled or job.fitting) and manifest.conditioning.aesthetic_score:
        raise InvalidRequest(
            f"{manifest.name} is a refiner, which makes no pictures of prompts alone to learn from; choose a "
            "recipe that takes no samples, such as int8-weights"
        )
    return job


def _check_merging(artifact: Artifact, changing: Mapping[str, ComponentRecipe]) -> None:
    """Raise InvalidRequest where tokens cannot merge, or do so already."""
    merging = [name for name, each in changing.items() if each.token_merging]
    for name in merging:
        if name != artifact.family.denoiser:
            raise InvalidRequest(
                f"[{name}] token_merging: only a denoiser has tokens that merge; leave it out"
            )
    if merging and artifact.manifest.token_merging is not None:
        raise InvalidRequest(
            f"{artifact.path}: merges tokens already; leave token_merging out of the recipe, or give a model "
            "that was converted without it"
        )


def _check_reuse(artifact: Artifact, sampling: Sampling) -> None:
    """Raise InvalidRequest where steps are to reuse features of a denoiser that has none to tell."""
    if sampling.reuse == "off":
        return
    denoiser = core().read_model(artifact.path / artifact.family.denoiser / IR)
    try:
        tell_features(denoiser, plan_of(artifact, sampling.reuse).depth)
    except ValueError as error:
        raise InvalidRequest(
            f"{artifact.path}: its steps cannot reuse features ({error}); leave reuse out of the recipe"
        ) from error


def sampling_plan(job: Job, prompts: Path | None, samples: int | None) -> tuple[Plan, str]:
    """The pictures to make, and the SHA-256 of the captions that they are drawn from."""
    wanted = job.recipe.calibration
    captions = _captions(job, prompts)
    chosen = plan(
        job.artifact,
        captions,
        samples or wanted.samples,
        wanted.negative_share,
        wanted.steps,
        wanted.guidance,
        wanted.size,
    )
    return chosen, hashlib.sha256("\n".join(captions).encode()).hexdigest()


def _captions(job: Job, prompts: Path | None) -> list[str]:
    file, wanted = prompts or job.recipe.prompts_file, job.recipe.calibration.prompts
    if file:
        return load_prompts(file)
    return shipped(job.artifact.manifest.captions if wanted == "auto" else wanted)


def run(
    artifact: Artifact,
    out: Path,
    recipe: Recipe,
    prompts: Path | None,
    samples: int | None,
    threads: int | None,
    on_progress: OnProgress,
    on_sample: OnSample,
    trained: Mapping[str, Mapping[str, Grid]] = NOTHING,
) -> Artifact:
    """See `sfumato.optimize`.

    trained: by component and layer, grids of activations that training found; no samples are taken for these.
    """
    options = {"prompts": prompts, "samples": samples}
    job = prepare(artifact, recipe, [name for name, value in options.items() if value is not None])
    check_space(out, artifact.manifest.bytes)
    applied = AppliedRecipe(name=recipe.name, text=recipe.to_toml(), trained=bool(trained))
    seen: dict[str, Seen] = {}
    kept: dict[str, tuple[str, ...]] = {}
    sampled = [name for name in job.sampled if name not in trained]
    total = len(job.components) + 1 + bool(sampled) + (recipe.search is not None) + bool(job.fitting)
    device = Device("CPU", threads=threads, cached=False)
    sampling = job.sampling
    with write_artifact(out) as folder:
        if sampled:
            chosen, captions = sampling_plan(job, prompts, samples)
            on_progress("calibrating", 0, total)
            seen = calibrate(artifact, sampled, chosen, device, on_sample)
            count = len(chosen.captions) * chosen.steps
            applied = applied.model_copy(update={"samples": count, "captions": captions})
            if recipe.search is not None:
                on_progress("searching what to keep", 1, total)
                kept = search(job, recipe.search, seen, chosen, device, on_sample)
                applied = applied.model_copy(update={"kept": kept})
        if job.fitting:
            on_progress("fitting key steps", total - len(job.components) - 2, total)
            fit = pick(_captions(job, prompts), job.fitting)
            sampling = sampling.model_copy(update={"key_steps": fitted(artifact, fit, device, on_sample)})
        for number, (name, each) in enumerate(job.components.items(), total - len(job.components) - 1):
            on_progress(f"optimizing {name}", number, total)
            network = f"{name}/{IR}"
            rewrite(
                artifact.path / network,
                folder / network,
                each,
                seen.get(name, {}),
                kept.get(name, ()),
                trained.get(name, {}),
            )
        on_progress("hashing", total - 1, total)
        _copy_rest(job, folder)
        fields = artifact.manifest.model_dump(mode="json", exclude={"files", "format", "sfumato"})
        own: dict[str, Any] = {"name": out.resolve().name, "precision": recipe.name}
        own |= {"recipe": applied.model_dump(), "sampling": sampling.model_dump(mode="json")}
        denoiser = job.components.get(artifact.family.denoiser)
        if denoiser is not None and denoiser.token_merging:
            merging = TokenMerging(denoiser.token_merging, denoiser.merging_method)
            own["token_merging"] = merging.described
        seal(folder, **{**fields, **own})
    return load_artifact(out)


def _copy_rest(job: Job, folder: Path) -> None:
    """Copy every file of the model but the networks that were changed."""
    networks = {f"{name}/openvino_model.{end}" for name in job.components for end in ("xml", "bin")}
    for name in job.artifact.manifest.files:
        if name not in networks and name != MANIFEST:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(job.artifact.path / name, folder / name)
