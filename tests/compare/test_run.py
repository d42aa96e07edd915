"""A comparison: the same requests to all in turns, what is held against what, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from reports import SIDE, model, picture

import sfumato.compare
from sfumato.artifact import find_model
from sfumato.compare import compare
from sfumato.compare import run as running
from sfumato.compare.records import Run
from sfumato.compare.relations import compression
from sfumato.errors import InvalidRequest, SfumatoError

PROMPTS = ("noto red apple", "fluent smiling cat", "flat blue car")
NEED_GUIDANCE = "guidance is too strong for it"


class Worker:
    """Stands in for a model in a process: draws, and remembers what it was asked for, with all others."""

    asked: list[tuple]
    differences: dict[str, dict]
    closed: list[str]

    def __init__(self, source, *, name, **options):
        self.name, self.options = name, options
        fields = {"latent_channels": 16, "source": source, "kind": "torch" if ":" in source else "artifact"}
        self.model = model(name, **fields | self.differences.get(name, {}))
        self.load_seconds = 1.0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed.append(self.name)

    def generate(self, prompt, *, seed, steps, guidance, size, out):
        if guidance > 20:
            raise InvalidRequest(NEED_GUIDANCE)
        self.asked.append((self.name, prompt, seed, steps, guidance, size, out is not None))
        if out is not None:
            picture(out, seed, 0 if "same" in self.name else 3 * len(self.name))
        slow = 2.0 if self.name == "mini" else 1.0
        return Run(
            encode=0.01, steps=(0.1 * slow,) * steps, denoise=0.1 * slow * steps, decode=0.02, total=slow
        )

    def peak_memory_bytes(self):
        return 1000


@pytest.fixture
def workers(monkeypatch):
    """Workers that only draw; `.asked`, `.closed`, and `.differences` of their models by name."""
    monkeypatch.setattr(Worker, "asked", [], raising=False)
    monkeypatch.setattr(Worker, "closed", [], raising=False)
    monkeypatch.setattr(Worker, "differences", {}, raising=False)
    monkeypatch.setattr(running, "Worker", Worker)
    return Worker


@pytest.fixture
def folder(tmp_path):
    """`folder(name)`: a model folder of that name, as far as a comparison looks at it itself."""

    def make(name):
        place = tmp_path / "models" / name
        place.mkdir(parents=True)
        shutil.copy(find_model("mini") / "sfumato.json", place)
        return place

    return make


def test_every_model_is_asked_for_the_same(workers, folder, tmp_path):
    report = compare(["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS, seed=5, steps=3)
    counted = [each[:-1] for each in workers.asked if each[-1]]
    for name in ("mini", "int8"):
        mine = [each[1:] for each in counted if each[0] == name]
        assert mine == [(prompt, 5 + i, 3, 4.0, (SIDE, SIDE)) for i, prompt in enumerate(PROMPTS)]
    assert [sample.seed for sample in report.samples] == [5, 6, 7]
    assert report.runs == 3


def test_models_take_turns_after_a_warm_up_that_does_not_count(workers, folder, tmp_path):
    report = compare(["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS)
    order = [(name, counts) for name, *_, counts in workers.asked]
    assert order[:2] == [("mini", False), ("int8", False)]
    assert [name for name, _ in order[2:]] == ["mini", "int8", "int8", "mini", "mini", "int8"]
    assert all(len(each.speed.seconds["total"].runs) == 3 for each in report.models)
    assert set(workers.closed) == {"mini", "int8"}


def test_the_first_is_the_reference(workers, folder, tmp_path):
    report = compare(["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS)
    first, second = report.models
    assert report.reference == first.model.name == "mini"
    assert first.fidelity is None and first.compression == {} and first.speedup == {}
    assert second.fidelity is not None
    assert second.speedup == {"step": 2.0, "decode": 1.0, "total": 2.0}
    assert second.compression["total"] == 1


def test_one_of_the_models_can_be_the_reference(workers, folder, tmp_path):
    report = compare(
        ["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS, reference=tmp_path / "models/int8"
    )
    assert [each.model.name for each in report.models] == ["mini", "int8"]
    assert report.reference == "int8"
    assert report.models[0].speedup["total"] == 0.5


def test_another_reference_takes_part(workers, tmp_path):
    report = compare(["mini"], tmp_path / "out", prompts=PROMPTS, reference="torch:checkpoints/mini")
    assert [each.model.name for each in report.models] == ["mini (torch)", "mini"]
    assert report.reference == "mini (torch)"


def test_what_is_the_references_by_default(workers, folder, tmp_path):
    workers.differences["int8"] = {"size": (64, 64), "steps": 7, "guidance": 2.0}
    report = compare(
        ["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS, reference=tmp_path / "models/int8"
    )
    assert (report.size, report.steps, report.guidance) == ((64, 64), 7, 2.0)


def test_a_model_given_twice_is_held_against_itself(workers, tmp_path):
    report = compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS)
    assert [each.model.name for each in report.models] == ["mini", "mini-2"]
    assert len({file for sample in report.samples for file in sample.pictures.values()}) == 6


def test_equal_pictures_are_called_equal(workers, folder, tmp_path):
    report = compare([folder("same-a"), folder("same-b")], tmp_path / "out", prompts=PROMPTS)
    fidelity = report.models[1].fidelity
    assert (fidelity.psnr, fidelity.psnr_worst, fidelity.distance) == (None, None, 0)
    assert fidelity.ssim == pytest.approx(1)


@pytest.mark.parametrize(
    ("difference", "said"),
    [({"family": "sdxl"}, "families sdxl and sd3"), ({"latent_channels": 4}, "4 and 16 latent channels")],
)
def test_unlike_models_have_no_fidelity(workers, folder, tmp_path, difference, said):
    workers.differences["xl"] = difference
    report = compare(["mini", folder("xl"), folder("int8")], tmp_path / "out", prompts=PROMPTS)
    assert [each.fidelity is None for each in report.models] == [True, True, False]
    assert report.models[1].speedup["total"] == 2
    assert any(said in note and "xl" in note for note in report.notes)


def test_what_is_written(workers, folder, tmp_path):
    out = tmp_path / "out"
    report = compare(["mini", folder("int8")], out, prompts=PROMPTS)
    assert {path.name for path in out.iterdir()} == {
        "report.html",
        "report.json",
        "report.schema.json",
        "pictures",
    }
    assert json.loads((out / "report.json").read_text()) == report.model_dump(mode="json")
    named = {file for sample in report.samples for file in sample.pictures.values()}
    assert named == {f"pictures/{path.name}" for path in (out / "pictures").iterdir()}
    assert "pictures/002-int8.png" in named


def test_a_model_that_cannot_leaves_nothing(workers, folder, tmp_path):
    with pytest.raises(InvalidRequest, match=r"'mini'.*'mini' unless given.*too strong"):
        compare(["mini", folder("int8")], tmp_path / "out", prompts=PROMPTS, guidance=30)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]
    assert set(workers.closed) == {"mini", "int8"}


def test_a_model_that_breaks_leaves_nothing(workers, tmp_path, monkeypatch):
    def broken(self, prompt, *, seed, **_):
        raise SfumatoError("its process ended")

    monkeypatch.setattr(Worker, "generate", broken)
    with pytest.raises(SfumatoError, match="process ended"):
        compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS)
    assert not list(tmp_path.iterdir())


def test_one_model_is_no_comparison(workers, tmp_path):
    with pytest.raises(InvalidRequest, match=r"only 'mini'.*two models or more"):
        compare(["mini"], tmp_path / "out", prompts=PROMPTS)
    with pytest.raises(InvalidRequest, match="only 'mini'"):
        compare(["mini"], tmp_path / "out", prompts=PROMPTS, reference="mini")
    with pytest.raises(InvalidRequest, match="no model"):
        compare([], tmp_path / "out", prompts=PROMPTS)


def test_refused_before_any_model_is_loaded(workers, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    (tmp_path / "empty.txt").touch()
    for models, out, prompts in [
        (["mini", "mini"], "full", PROMPTS),
        (["mini", "nimi"], "out", PROMPTS),
        (["mini", "mini"], "out", ()),
        (["mini", "mini"], "out", ("a", " ")),
        (["mini", "mini"], "out", tmp_path / "missing.txt"),
        (["mini", "mini"], "out", tmp_path / "empty.txt"),
    ]:
        with pytest.raises(InvalidRequest):
            compare(models, tmp_path / out, prompts=prompts)
    with pytest.raises(InvalidRequest, match="count 0"):
        compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS, count=0)
    assert not workers.asked


def test_prompts_of_a_file_are_all_used_unless_fewer_are_asked_for(workers, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("".join(f"noto thing {i}\n" for i in range(12)))
    report = compare(["mini", "mini"], tmp_path / "all", prompts=file)
    assert len(report.samples) == 12
    report = compare(["mini", "mini"], tmp_path / "few", prompts=file, count=3)
    assert [sample.prompt for sample in report.samples] == ["noto thing 0", "noto thing 4", "noto thing 8"]


def test_prompts_suit_the_models(workers, tmp_path):
    icons = compare(["mini", "mini"], tmp_path / "a").samples
    general = compare(["mini", "mini"], tmp_path / "b", prompts="general").samples
    assert len(icons) == len(general) == 10
    assert all(sample.prompt.split()[0] in ("noto", "blob", "fluent", "flat", "firefox") for sample in icons)
    assert not {sample.prompt for sample in icons} & {sample.prompt for sample in general}


def test_the_command_repeats_it(workers, folder, tmp_path):
    place = folder("my int8")
    report = compare(
        ["mini", place], tmp_path / "out", prompts=PROMPTS, steps=3, size=(64, 48), seed=2, threads=1
    )
    assert report.command == (
        f"sfumato compare mini '{place}' --prompts FILE --steps 3 --size 64x48 --seed 2 --threads 1 "
        f"-o {tmp_path / 'out'}"
    )
    assert "--" not in compare(["mini", "mini"], tmp_path / "plain").command


def test_how_to_run_reaches_the_models(workers, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Worker, "__exit__", lambda self, *_: seen.append(self.options))
    compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS, device="GPU", threads=3, precision="f32")
    wanted = {"device": "GPU", "threads": 3, "precision": "f32", "memory": "auto"}
    wanted |= {"token_merging": None, "merging_method": "match", "reuse": None}
    assert seen == [wanted, wanted]


def test_progress_ends_where_it_says(workers, tmp_path):
    told = []
    compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS, on_progress=lambda *each: told.append(each))
    assert ("picture", 6, 6) in told
    assert told[-1] == ("judging", 1, 1)


@pytest.mark.parametrize(
    ("mine", "theirs", "rates"),
    [
        ({"unet": 50}, {"unet": 100}, {"unet": 2.0}),
        ({"vae_encoder": 20, "vae_decoder": 30}, {"vae": 100}, {"vae": 2.0}),
        ({"vae": 50}, {"vae_encoder": 40, "vae_decoder": 60}, {"vae": 2.0}),
        ({"vae_decoder": 50}, {"vae_encoder": 40, "vae_decoder": 60}, {"vae_decoder": 1.2}),
        ({"unet": 50}, {"unet": 100, "text_encoder_3": 7}, {"unet": 2.0}),
    ],
)
def test_compression(mine, theirs, rates):
    small, large = model("a", components=mine, disk_bytes=40), model("b", components=theirs, disk_bytes=100)
    assert compression(small, large) == rates | {"total": 2.5}


@pytest.mark.parametrize(
    ("name", "file"),
    [("mini (torch)", "mini-torch"), ("../../x", "x"), ("<b>", "b"), ("模型", "model"), ("A", "a")],
)
def test_file_names_are_plain(name, file):
    assert running.file_name(name) == file


def test_the_package_is_called_like_its_function(workers, tmp_path):
    report = sfumato.compare(["mini", "mini"], tmp_path / "out", prompts=PROMPTS)
    assert report.reference == "mini"
    assert sfumato.compare.Evaluator.__name__ == "Evaluator"
    with pytest.raises(AttributeError, match="nothing"):
        _ = sfumato.compare.nothing


def test_for_real(tmp_path: Path):
    """Two processes, one model: the same pictures to the bit."""
    again = shutil.copytree(find_model("mini"), tmp_path / "again")
    report = compare(["mini", again], tmp_path / "out", prompts=PROMPTS[:2], steps=2)
    assert report.models[1].fidelity.psnr is None
    assert report.models[1].compression == pytest.approx(dict.fromkeys(report.models[1].compression, 1))
    assert all(each.speed.peak_memory_bytes > 50e6 for each in report.models)
    assert report.models[0].recall is not None
    files = [tmp_path / "out" / file for file in report.samples[0].pictures.values()]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert re.search(r"PSNR.*∞", (tmp_path / "out/report.html").read_text(), re.S)
    assert np.isfinite(report.models[0].speed.seconds["total"].median)


def test_each_way_of_reuse_takes_part(workers, tmp_path):
    report = compare(["mini"], tmp_path / "out", prompts=PROMPTS[:1], reuse=["off", "fast"])
    assert [each.model.name for each in report.models] == ["mini", "mini reuse fast"]
    assert report.command.endswith(f"--reuse off,fast -o {tmp_path / 'out'}")


def test_reuse_needs_steps(workers, tmp_path):
    with pytest.raises(InvalidRequest, match="reuse balanced,fast: 7 steps are too few; give 8"):
        compare(["mini"], tmp_path / "out", prompts=PROMPTS, steps=7, reuse=["balanced", "fast"])
    assert not workers.asked


def test_checkpoints_that_cannot_reuse_are_named(workers, tmp_path, caplog):
    report = compare(["mini", "torch:mini"], tmp_path / "out", prompts=PROMPTS[:1], reuse=["fast"])
    assert [each.model.name for each in report.models] == ["mini", "mini (torch)", "mini reuse fast"]
    said = "mini (torch) is a checkpoint in PyTorch, which has no reuse between steps"
    assert any(said in note for note in report.notes) and said in caplog.text
    plain = compare(["mini", "torch:mini"], tmp_path / "plain", prompts=PROMPTS[:1])
    assert not any("reuse" in note for note in plain.notes)


def test_a_models_own_reuse_for_real(tmp_path):
    """A model that reuses by default is compared as it is meant to run, and the report says so."""
    fast = shutil.copytree(find_model("mini"), tmp_path / "fast")
    manifest = json.loads((fast / "sfumato.json").read_text())
    manifest["sampling"] |= {"reuse": "fast", "guidance_every": 2}
    (fast / "sfumato.json").write_text(json.dumps(manifest))
    given = {"prompts": PROMPTS[:1], "steps": 10, "size": (64, 64)}
    report = compare(["mini", fast], tmp_path / "out", reuse=["off"], **given)
    assert [(each.model.name, each.speed.reuse, each.speed.guidance_every) for each in report.models] == [
        ("mini", "off", 1),
        ("fast", "fast", 2),
        ("fast reuse off", "off", 2),
    ]
    assert all(each.fidelity.psnr is not None for each in report.models[1:])
    page = (tmp_path / "out/report.html").read_text()
    assert re.search(r"Reuse between steps</th><td>off</td><td>fast</td><td>off</td>", page)
    assert re.search(r"one step in</th><td>1</td><td>2</td><td>2</td>", page)
