"""Which part of the way from noise to picture each model goes: one alone, or a base and its refiner."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from ..errors import InvalidRequest
from ..manifest import Manifest
from .denoiser import Prediction
from .progress import OnStepDone, Step
from .request import Request
from .samplers import Sampler, find_sampler
from .schedules import Schedule

SWITCH_AT = 0.8
"""Share of the way that the base goes; the refiner of SDXL learned the last fifth."""


@dataclass(frozen=True, eq=False)
class Stage:
    """The steps that one model takes."""

    sampler: Sampler
    schedule: Schedule
    prediction: Prediction

    @property
    def calls(self) -> int:
        """How often the model is called."""
        return self.sampler.calls(len(self.schedule)) if len(self.schedule) else 0


def plan(request: Request, models: Sequence[Manifest]) -> list[Stage]:
    """A stage for each of one or two models: a base hands over to its refiner at `request.switch_at`.

    As an ensemble of experts (Balaji et al. 2022; SDXL's report, section 2.5): the refiner goes on with the
    latents as they are, noise and all; samplers with a memory of earlier steps begin anew.
    Raises InvalidRequest for a request that a model cannot follow.
    """
    if len(models) > 1:
        _check_refiner(*models)
    elif request.switch_at is not None:
        raise InvalidRequest(f"switch_at {request.switch_at:g}: there is no refiner to switch to; give one")
    wholes = [_whole(request, manifest) for manifest in models]
    stages = _taken(request, wholes)
    _check_interval(request, stages)
    return stages


def _taken(request: Request, wholes: Sequence[Stage]) -> list[Stage]:
    """The parts of the whole schedules that are gone: after the picture to begin from, and to the switch."""
    first = 0 if request.image is None else wholes[0].schedule.start_for(request.strength)
    if len(wholes) == 1:
        return [_part(wholes[0], first, len(wholes[0].schedule))]
    switch_at = SWITCH_AT if request.switch_at is None else request.switch_at
    switches = [max(first, whole.schedule.cut(switch_at)) for whole in wholes]
    return [
        _part(wholes[0], first, switches[0]),
        _part(wholes[1], switches[1], len(wholes[1].schedule)),
    ]


def counted(stages: Sequence[Stage], on_step: OnStepDone | None) -> list[OnStepDone | None]:
    """For each stage, what to tell of its steps, so that they count on from one stage to the next."""
    if on_step is None:
        return [None] * len(stages)
    total = sum(stage.calls for stage in stages)
    before = [sum(stage.calls for stage in stages[:index]) for index in range(len(stages))]
    return [_counting(on_step, done, total) for done in before]


def _counting(on_step: OnStepDone, done: int, total: int) -> Callable[[Step], None]:
    return lambda step: on_step(replace(step, index=step.index + done, steps=total))


def _whole(request: Request, manifest: Manifest) -> Stage:
    sampling = manifest.sampling
    sampler = find_sampler(request.sampler, "flow" if sampling.prediction == "flow" else "vp")
    sampler.check_eta(request.eta)
    schedule = sampler.schedule(
        sampling.scheduler,
        request.steps,
        family=manifest.family,
        spacing=request.spacing,
        shift=request.shift,
    )
    return Stage(sampler, schedule, sampling.prediction)


def _part(whole: Stage, start: int, stop: int) -> Stage:
    return replace(whole, schedule=whole.schedule.part(start, stop))


def _check_interval(request: Request, stages: Sequence[Stage]) -> None:
    """Raise InvalidRequest where guidance is wanted and its interval has none of the steps that are taken."""
    guidance = request.how_guided
    sigmas = [float(sigma) for stage in stages for sigma in stage.schedule.sigmas[:-1]]
    if guidance.interval is None or not request.guided or not sigmas or any(map(guidance.covers, sigmas)):
        return
    low, high = guidance.interval
    raise InvalidRequest(
        f"guidance interval {low:g} to {high:g}: none of the {len(sigmas)} steps is in it; their sigmas go "
        f"from {max(sigmas):.3g} down to {min(sigmas):.3g}"
    )


def _check_refiner(base: Manifest, refiner: Manifest) -> None:
    same = (
        base.family == refiner.family
        and (base.sampling.prediction == "flow") == (refiner.sampling.prediction == "flow")
        and all(
            getattr(base.latents, name) == getattr(refiner.latents, name)
            for name in ("channels", "factor", "scale", "shift")
        )
    )
    if not same:
        raise InvalidRequest(
            f"refiner {refiner.name} ({refiner.family}) has other latents than {base.name} ({base.family}); "
            "give one that was made for it"
        )
    embedded = [each.conditioning.embeds_guidance for each in (base, refiner)]
    if embedded[0] != embedded[1]:
        one, other = (base, refiner) if embedded[0] else (refiner, base)
        raise InvalidRequest(
            f"refiner {refiner.name}: {one.name} takes the guidance as an input and {other.name} does not, "
            "so none suits both; let the refiner work on the finished picture (image)"
        )
    if refiner.inpainting:
        raise InvalidRequest(f"refiner {refiner.name}: is made for inpainting; give an ordinary one")
