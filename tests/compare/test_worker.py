"""A worker: one model in a process of its own, and what becomes of it when that goes wrong."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sfumato import Pipeline
from sfumato.compare.child import serve
from sfumato.compare.worker import Worker, short_name
from sfumato.errors import InvalidRequest, MissingDependency, SfumatoError

QUICK = {"steps": 2, "size": (64, 64)}


def test_a_picture_its_times_and_what_it_cost(tmp_path):
    out = tmp_path / "apple.png"
    with Worker("mini", precision="f32", threads=1) as worker:
        first = worker.generate("noto red apple", seed=7, out=out, **QUICK)
        second = worker.generate("noto red apple", seed=7, **QUICK)
        assert worker.model.kind == "artifact" and worker.model.family == "sd3"
        assert worker.model.components["transformer"] > 10_000_000
        assert worker.load_seconds > first.total - first.encode
        assert 100_000_000 < worker.peak_memory_bytes() < 600_000_000
    expected = Pipeline.load("mini", precision="f32")("noto red apple", seed=7, **QUICK).images[0]
    assert Image.open(out).tobytes() == expected.tobytes()
    assert set(second.components) == {"text_encoder", "text_encoder_2", "transformer", "vae_decoder"}
    assert len(second.steps) == 2
    assert sum(second.steps) == pytest.approx(second.denoise, rel=0.2)
    assert second.encode + second.denoise + second.decode <= second.total


def test_steps_that_reuse_are_timed_as_others_are():
    with Worker("mini", threads=1, reuse="fast", profiled=True) as worker:
        run = worker.generate("noto red apple", steps=28, size=(64, 64))
        profile = worker.profile()
    assert (run.reuse, len(run.steps)) == ("fast", 28)
    assert sum(run.steps) == pytest.approx(run.denoise, rel=0.2)
    assert 0 < run.components["transformer"] < run.denoise
    networks = [name for name in profile.components if name.startswith("transformer that")]
    assert len(networks) == 2
    runs = {each.component: each.runs for each in profile.operations if each.component in networks}
    assert all(count < 28 for count in runs.values())


def test_a_repeated_prompt_is_encoded_again(artifacts):
    with Worker(str(artifacts("sd"))) as worker:
        for _ in range(2):
            assert worker.generate("a red apple", **QUICK).components["text_encoder"] > 0


def test_the_process_ends_with_the_block():
    with Worker("mini") as worker:
        process = worker._process
        assert process.poll() is None
    assert process.poll() is not None


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_the_process_ends_at_once_when_the_block_is_left_by(stop):
    with pytest.raises(stop), Worker("mini") as worker:
        process = worker._process
        raise stop
    assert process.poll() == -signal.SIGKILL


def test_its_compiled_networks_stay_out_of_the_users_cache(artifacts, monkeypatch, tmp_path):
    monkeypatch.setenv("SFUMATO_CACHE", str(tmp_path / "cache"))
    with Worker(str(artifacts("sd"))) as worker:
        worker.generate("a red apple", **QUICK)
    assert not (tmp_path / "cache").exists()


def test_an_unknown_model_is_refused_as_by_the_pipeline():
    with pytest.raises(InvalidRequest, match="did you mean 'mini'") as caught, Worker("mimi"):
        pass
    assert caught.value.exit_code == 2


def test_a_refusal_leaves_the_worker_working():
    with Worker("mini") as worker:
        with pytest.raises(InvalidRequest, match="multiples of 16"):
            worker.generate("a cat", size=(100, 100))
        with pytest.raises(InvalidRequest, match="no profile"):
            worker.profile()
        assert worker.generate("a cat", **QUICK).total > 0


def test_a_process_that_dies_is_one_line(artifacts):
    with pytest.raises(SfumatoError) as caught, Worker(str(artifacts("sd")), name="tiny") as worker:
        os.kill(worker._process.pid, signal.SIGKILL)
        worker.generate("a cat", **QUICK)
    assert str(caught.value).startswith("tiny: its process was killed")
    assert caught.value.exit_code == 1


def test_a_process_that_cannot_start_says_why(monkeypatch, tmp_path):
    (tmp_path / "openvino.py").write_text("import os; os.write(2, b'no such luck'); os._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(SfumatoError, match=r"exit code 3\); it said: no such luck"), Worker("mini"):
        pass


def test_without_torch_a_checkpoint_names_the_extra(monkeypatch, tmp_path, checkpoints):
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError('No module', name='torch')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with (
        pytest.raises(MissingDependency, match=r"'torch'.*pip install 'sfumato\[convert\]'") as caught,
        Worker(f"torch:{checkpoints('sd')}"),
    ):
        pass
    assert caught.value.exit_code == 2


def test_a_checkpoint_is_not_charged_for_openvino(checkpoints):
    code = (
        "import sys; import sfumato.compare.child; from sfumato.torch_backend import TorchPipeline;"
        f"TorchPipeline.load({str(checkpoints('sd'))!r}); assert 'openvino' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_warnings_of_the_process_are_told_once(caplog):
    with Worker("mini") as worker:
        for _ in range(2):
            worker.generate("noto red apple " * 200, **QUICK)
    told = [record.getMessage() for record in caplog.records if "prompt cut" in record.getMessage()]
    assert len(told) == 1 and told[0].startswith("mini: ")


def test_an_unexpected_error_is_answered_too():
    answers = io.StringIO()
    serve(iter(['{"source": "mini", "name": "mini", "profiled": false, "running": {"bogus": 1}}']), answers)
    error = json.loads(answers.getvalue())["error"]
    assert error["kind"] == "SfumatoError" and "TypeError" in error["message"]


def test_the_recipe_that_made_a_model_is_told(artifacts, tmp_path):
    folder = shutil.copytree(artifacts("sd"), tmp_path / "small")
    manifest = json.loads((folder / "sfumato.json").read_text())
    manifest["recipe"] = {"name": "int8", "text": ""}
    (folder / "sfumato.json").write_text(json.dumps(manifest))
    with Worker(str(folder)) as worker:
        assert worker.model.recipe == "int8"
    with Worker(str(artifacts("sd"))) as worker:
        assert worker.model.recipe is None


def test_names_are_what_sources_end_with(tmp_path):
    assert short_name("mini") == "mini"
    assert short_name(f"{tmp_path / 'sd15'}/") == "sd15"
    assert short_name("torch:models/sd15") == "sd15 (torch)"
    assert short_name(".") == Path.cwd().name
