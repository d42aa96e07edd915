"""What quantization-aware training minimizes, and what it trains for that."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from sfumato.train.distill.source import open_source
from sfumato.train.embedded.dataset import Record
from sfumato.train.examples import RecordExamples
from sfumato.train.qat.levels import NOISING
from sfumato.train.qat.task import RANGES, Conditioned, Losses, QatTask, predict, teacher_of
from sfumato.train.state import trained

TWO = pytest.mark.parametrize("name", ["sd", "sd3"])
ALL = Losses(data=0.5, teacher=2.0, features=0.25)


class Plain:
    """What turns quantizers off, and how often it was asked to."""

    def __init__(self, quantizers):
        self.quantizers, self.times = quantizers, 0

    @contextmanager
    def __call__(self):
        self.times += 1
        with self.quantizers.off():
            yield


def conditioned(base, dropout=0.0):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, base.pipe.vae.config.latent_channels, 8, 8, generator=generator)
    records = [Record("noto", n, n, (n,), (), "food", "train") for n in ("apple", "house", "cat", "face")]
    examples = RecordExamples(latents, records, np.full(4, 0.25))
    return Conditioned(base, examples, NOISING[base.prediction](base.pipe.scheduler), dropout)


@pytest.fixture
def task(student, checkpoints):
    """`task(name, ...)`: a task on a tiny checkpoint; its teacher is a copy, or the denoiser itself."""

    def make(name="sd3", losses=ALL, rank=0, copied=True, quantizers_only=False, dropout=0.0):
        made = student(name, rank=rank)
        teacher = open_source(checkpoints(name)).denoiser if copied else None
        plain = Plain(made.quantizers)
        shown = conditioned(made.base, dropout)
        return QatTask(made.denoiser, made.quantizers, teacher, plain, shown, losses, quantizers_only)

    return make


def batch(task, seed=0, size=2):
    return task.draw(size, np.random.default_rng(seed), torch.Generator().manual_seed(seed))


class TestConditions:
    CAPTIONS = ("a red apple", "a cat")

    def given(self, base, *dropped):
        latents = torch.zeros(2, 4, 8, 8)
        return conditioned(base).inputs(latents, list(self.CAPTIONS), torch.tensor(dropped))

    def test_dropped_captions_are_zeros_where_the_checkpoint_has_it_so(self, student):
        base = student("sdxl").base
        kept, mixed = self.given(base, False, False), self.given(base, True, False)
        for one, other in (
            (kept["encoder_hidden_states"], mixed["encoder_hidden_states"]),
            (kept["added_cond_kwargs"]["text_embeds"], mixed["added_cond_kwargs"]["text_embeds"]),
        ):
            assert (other[0] == 0).all() and torch.equal(other[1], one[1]) and (one[0] != 0).any()
        sizes = [each["added_cond_kwargs"]["time_ids"] for each in (kept, mixed)]
        assert torch.equal(*sizes) and sizes[0][0].tolist() == [64, 64, 0, 0, 64, 64]

    @TWO
    def test_dropped_captions_are_the_empty_prompt_elsewhere(self, name, student):
        base = student(name).base
        empty = base.encode(["", ""], 64, torch.device("cpu"))
        kept, mixed = self.given(base, False, False), self.given(base, True, False)
        for key, value in mixed.items():
            torch.testing.assert_close(value[0], empty[key][0])
            assert torch.equal(value[1], kept[key][1]) and not torch.equal(value[0], kept[key][0])

    @pytest.mark.parametrize("dropout", [0.0, 0.3, 1.0])
    def test_as_many_are_dropped_as_was_asked_for(self, dropout, student):
        shown = conditioned(student("sd3").base, dropout)
        latents, captions, dropped = shown.draw(4000, np.random.default_rng(0))
        assert len(latents) == len(captions) == 4000 and dropped.dtype == torch.bool
        assert float(dropped.float().mean()) == pytest.approx(dropout, abs=0.03)


class TestLosses:
    @TWO
    def test_the_loss_is_their_weighted_sum(self, name, task):
        made = task(name)
        figures = made(*batch(made))
        assert figures.keys() == {"loss", "data", "teacher", "features"}
        expected = 0.5 * figures["data"] + 2 * figures["teacher"] + 0.25 * figures["features"]
        torch.testing.assert_close(figures["loss"], expected)
        assert all(float(each) > 0 and each.dim() == 0 for each in figures.values())

    def test_each_is_what_it_says(self, task):
        made = task("sd")
        latents, captions, dropped, noise, timesteps = given = batch(made)
        figures = made(*given)
        noised, target = made.shown.noising.mix(latents, noise, timesteps)
        condition = made.shown.inputs(latents, captions, dropped)
        with torch.no_grad():
            predicted = predict(made.denoiser, noised, timesteps, condition)
            taught = predict(made.teacher, noised, timesteps, condition)
        torch.testing.assert_close(figures["data"].detach(), (predicted - noise).square().mean())
        torch.testing.assert_close(target, noise)
        weight = made.shown.noising.weight(timesteps)[:, None, None, None]
        expected = (weight * (predicted - taught).square()).mean()
        torch.testing.assert_close(figures["teacher"].detach(), expected)

    @TWO
    def test_without_quantizers_teacher_and_features_are_at_zero(self, name, task):
        made = task(name)
        made.teacher = None
        with made.quantizers.off():
            made.plain = made.quantizers.off
            figures = made(*batch(made))
        assert float(figures["teacher"]) < 1e-9 and float(figures["features"]) < 1e-9
        assert float(figures["data"]) > 0.1

    @pytest.mark.parametrize(
        ("name", "blocks"),
        [
            ("sd", ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]),
            ("sd3", ["transformer_blocks.0", "transformer_blocks.1"]),
        ],
    )
    def test_features_are_what_every_block_gives_as_shares(self, name, blocks, task):
        made = task(name)
        latents, captions, dropped, noise, timesteps = given = batch(made)
        noised, _ = made.shown.noising.mix(latents, noise, timesteps)
        condition = made.shown.inputs(latents, captions, dropped)
        outputs = []
        for denoiser in (made.denoiser, made.teacher):
            found = []
            for block in blocks:
                denoiser.get_submodule(block).register_forward_hook(
                    lambda _, __, output, found=found: found.extend(flat(output))
                )
            with torch.no_grad():
                predict(denoiser, noised, timesteps, condition)
            outputs.append(found[:])
        shares = [
            (one - other).square().mean() / other.square().mean() for one, other in zip(*outputs, strict=True)
        ]
        assert len(shares) >= len(blocks)
        figures = made(*given)
        torch.testing.assert_close(
            figures["features"].detach(), torch.stack(shares).mean(), rtol=1e-4, atol=0
        )

    @pytest.mark.parametrize(
        ("losses", "taught", "keys"),
        [
            (Losses(teacher=0.0), False, {"loss", "data"}),
            (Losses(), True, {"loss", "data", "teacher"}),
            (Losses(teacher=0.0, features=1.0), True, {"loss", "data", "teacher", "features"}),
        ],
    )
    def test_a_teacher_is_asked_where_it_is_needed(self, losses, taught, keys, task):
        made = task(losses=losses, copied=False)
        assert made(*batch(made)).keys() == keys
        assert made.plain.times == taught == losses.taught

    def test_only_what_is_weighed_moves_anything(self, task):
        found = []
        for losses in (Losses(data=1.0, teacher=0.0), Losses(data=0.0, teacher=1.0)):
            made = task(losses=losses)
            figures = made(*batch(made))
            found.append(figures["loss"] / figures["data" if losses.data else "teacher"])
        assert [float(each) for each in found] == [1.0, 1.0]

    def test_features_with_recomputed_blocks(self, task):
        """What blocks give is gathered once, not again when they run for the backward pass."""
        gradients = []
        for checkpointing in (False, True):
            made = task("sd3", Losses(data=0.0, teacher=0.0, features=1.0))
            if checkpointing:
                made.denoiser.enable_gradient_checkpointing()
                made.denoiser.train()
            made(*batch(made))["loss"].backward()
            gradients.append({name: p.grad for name, p in trained(made).items() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
        for name, expected in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], expected, rtol=1e-3, atol=1e-7, msg=name)


def flat(output):
    """The tensors in nested tuples."""
    if isinstance(output, torch.Tensor):
        return [output]
    return [each for part in output or () for each in flat(part)]


class TestTeacher:
    def test_with_adapters_it_is_the_denoiser_itself_without_quantizers(self, task):
        made = task(rank=2, copied=False)
        copied = task(rank=2)
        given = batch(made)
        figures, expected = made(*given), copied(*given)
        assert made.plain.times == 1
        for name, value in expected.items():
            torch.testing.assert_close(figures[name], value, rtol=1e-4, atol=1e-7, msg=name)
        assert float(figures["teacher"].detach()) > 1e-7, "the student has its quantizers on"

    def test_a_copy_is_frozen_and_apart(self, student):
        denoiser = student("sd3").base.denoiser.requires_grad_(True).train()
        before = denoiser.proj_out.weight.detach().clone()
        teacher = teacher_of(denoiser)
        assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
        assert all(p.requires_grad for p in denoiser.parameters()) and denoiser.training
        assert teacher.proj_out.weight.dtype == torch.bfloat16
        with torch.no_grad():
            denoiser.proj_out.weight.zero_()
        assert torch.equal(teacher.proj_out.weight, before.bfloat16())

    @TWO
    def test_it_learns_nothing(self, name, task):
        made = task(name)
        before = {key: value.clone() for key, value in made.teacher.state_dict().items()}
        made(*batch(made))["loss"].backward()
        assert all(p.grad is None for p in made.teacher.parameters())
        assert all(torch.equal(value, before[key]) for key, value in made.teacher.state_dict().items())


class TestTrained:
    """By kind of run: the names of what is trained."""

    @staticmethod
    def kinds(made):
        ranges = {id(each) for each in made.quantizers.ranges()}
        adapters = {id(each) for each in made.quantizers.adapters()}
        return {
            "ranges" if id(p) in ranges else "adapters" if id(p) in adapters else "weights"
            for p in trained(made).values()
        }

    @pytest.mark.parametrize(
        ("options", "expected"),
        [
            ({}, {"ranges", "weights"}),
            ({"rank": 2}, {"ranges", "adapters"}),
            ({"quantizers_only": True}, {"ranges"}),
        ],
    )
    def test_kinds(self, options, expected, task):
        made = task("sd3", **options)
        assert self.kinds(made) == expected
        names = trained(made)
        assert not any(name.startswith(("teacher.", "encoders.")) for name in names)
        assert len({id(p) for p in names.values()}) == len(names)

    @pytest.mark.parametrize("options", [{}, {"rank": 2}, {"quantizers_only": True}])
    def test_a_step_changes_these_and_nothing_else(self, options, task):
        made = task("sd3", **options)
        chosen = trained(made)
        before = {name: p.detach().clone() for name, p in made.named_parameters()}
        optimizer = torch.optim.AdamW(chosen.values(), lr=1e-3, weight_decay=0)
        for seed in range(3):
            made(*batch(made, seed))["loss"].backward()
            optimizer.step()
        changed = {name for name, p in made.named_parameters() if not torch.equal(p, before[name])}
        assert changed <= chosen.keys()
        assert len(chosen.keys() - changed) < 0.1 * len(chosen), chosen.keys() - changed

    @pytest.mark.parametrize("options", [{}, {"rank": 2}, {"quantizers_only": True}])
    def test_ranges_are_a_group_of_their_own_and_not_averaged(self, options, task):
        made = task("sd3", **options)
        ranges = made.groups()[RANGES]
        assert {id(each) for each in ranges} == {id(each) for each in made.quantizers.ranges()}
        averaged = made.averaged()
        assert not {id(each) for each in ranges} & {id(each) for each in averaged.values()}
        assert len(averaged) + len(ranges) == len(trained(made))

    def test_ranges_that_cut_too_much_learn_better(self, task):
        made = task("sd3", Losses(data=0.0), quantizers_only=True)
        ranges = made.quantizers.ranges()
        with torch.no_grad():
            for each in ranges:
                each.fill_(-0.7)
        optimizer = torch.optim.AdamW(ranges, lr=3e-2, weight_decay=0)
        given = batch(made)
        found = []
        for _ in range(20):
            loss = made(*given)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found.append(float(loss.detach()))
        assert found[-1] < 0.5 * found[0]


@TWO
def test_batches_are_a_function_of_the_generators(name, task):
    made = task(name, dropout=0.5)
    for one, other in zip(batch(made), batch(made), strict=True):
        assert one == other if isinstance(one, list) else torch.equal(one, other)
    latents, captions, dropped, noise, timesteps = batch(made, size=3)
    assert latents.shape == noise.shape == (3, made.denoiser.config.in_channels, 8, 8)
    assert len(captions) == len(dropped) == len(timesteps) == 3
    assert not torch.equal(batch(made, seed=1)[3], batch(made)[3])


def test_predictions_are_float32_in_any_arithmetic(student):
    made = student("sd3")
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert made.predict().dtype == torch.float32
