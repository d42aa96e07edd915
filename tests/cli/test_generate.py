"""`sfumato generate`: what it writes, prints and refuses."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from sfumato.runtime.png import read_parameters


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def make(run, artifact):
    """Run `sfumato generate` on the tiny model, two steps unless told otherwise."""

    def make(*arguments, prompt="red apple", steps=2):
        return run("generate", prompt, "-m", artifact, "--steps", steps, *arguments)

    return make


def test_prints_the_path_of_a_picture(make, here):
    outcome = make("--seed", 7, "--size", "64x32")
    assert (outcome.code, outcome.out) == (0, "red-apple-7.png\n")
    assert Image.open(here / "red-apple-7.png").size == (64, 32)


def test_same_seed_same_bytes(make, here):
    make("--seed", 7, "-o", "a.png")
    make("--seed", 7, "-o", "b.png")
    make("--seed", 8, "-o", "c.png")
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert (here / "a.png").read_bytes() != (here / "c.png").read_bytes()


@pytest.mark.parametrize("memory", ["low", "high", "auto"])
def test_little_memory_changes_nothing_in_the_picture(make, here, memory):
    make("--seed", 7, "--count", 2, "-o", "a/")
    outcome = make("--seed", 7, "--count", 2, "--memory", memory, "-o", "b/")
    assert outcome.out.splitlines() == ["b/red-apple-7.png", "b/red-apple-8.png"]
    for name in ("red-apple-7.png", "red-apple-8.png"):
        assert (here / "a" / name).read_bytes() == (here / "b" / name).read_bytes()


def test_debug_says_which_memory_was_chosen(make):
    assert re.search(r"info: memory (low|high): keeping all networks takes", make("--debug").err)


def test_json_is_exactly_the_contract(make, artifact):
    outcome = make("--seed", 7, "--count", 2, "--json", "-o", "fruit/")
    document = json.loads(outcome.out)
    assert set(document) == {"images", "model", "steps", "seconds", "peak_memory_bytes"}
    assert [image["seed"] for image in document["images"]] == [7, 8]
    for image in document["images"]:
        assert set(image) == {"path", "seed", "width", "height"}
        assert Image.open(image["path"]).size == (image["width"], image["height"])
    assert document["model"] == str(artifact)
    assert document["steps"] == 2
    assert set(document["seconds"]) == {"load", "encode", "denoise", "decode", "total"}
    assert document["seconds"]["total"] >= max(document["seconds"].values())
    assert document["peak_memory_bytes"] > 10_000_000


def test_a_picture_of_a_batch_is_that_of_its_seed(make, here):
    make("--seed", 7, "--count", 2, "-o", "many/")
    make("--seed", 8, "-o", "one.png")
    many, one = Image.open(here / "many" / "red-apple-8.png"), Image.open(here / "one.png")
    assert many.tobytes() == one.tobytes()


def test_random_seed_is_reported_and_repeats(make):
    first = json.loads(make("--json", "-o", "a.png").out)["images"][0]
    second = json.loads(make("--json", "-o", "b.png", "--seed", first["seed"]).out)["images"][0]
    assert Path(first["path"]).read_bytes() == Path(second["path"]).read_bytes()


def test_parameters_are_in_the_file_unless_unwanted(make, here):
    make("--seed", 7, "-n", "blue", "--guidance", 3, "--sampler", "euler", "-o", "a.png")
    text = Image.open(here / "a.png").text["parameters"]
    assert text.startswith("red apple\nNegative prompt: blue\nSteps: 2, Sampler: ")
    assert "CFG scale: 3, Seed: 7, Size: " in text
    make("--seed", 7, "--no-metadata", "-o", "b.png")
    assert Image.open(here / "b.png").text == {}


def test_progress_goes_to_standard_error_unless_quiet(make):
    arguments = ("--seed", 7, "--sampler", "euler", "-o", "a.png")
    assert "step 2/2" in make(*arguments).err
    assert make(*arguments, "--quiet").err == ""


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--size", "63x64"], r"63x64.*multiples of 8.*64x64"),
        (["--size", "0x64"], r"0x64"),
        (["--size", "64"], r"'64'.*WIDTHxHEIGHT"),
        (["--size", "-64x64"], r"-64x64"),
        (["--steps", "0"], r"steps 0"),
        (["--steps", "-3"], r"steps -3"),
        (["--steps", "many"], r"many"),
        (["--guidance", "nan"], r"guidance nan"),
        (["--guidance", "inf"], r"guidance inf"),
        (["--count", "0"], r"count 0"),
        (["--seed", "-1"], r"seed -1"),
        (["--sampler", "eular"], r"'eular'.*euler"),
        (["--device", "TPU"], r"'TPU'.*CPU"),
        (["--memory", "lots"], r"memory 'lots': one of auto, low, high"),
        (["--memory", ""], r"memory ''"),
        (["-o", "apple.jpg"], r"apple\.jpg.*apple\.png"),
        (["-o", "apple.xyz"], r"apple\.xyz.*PNG.*apple\.png"),
        (["--size", "0x0"], r"0x0"),
        (["--guidance", "-inf"], r"guidance -inf"),
    ],
)
def test_bad_values_are_named(make, here, options, says):
    outcome = make(*options)
    assert outcome.code == 2
    assert re.search(says, outcome.error), outcome.error
    assert list(here.iterdir()) == []


def test_bad_values_are_found_before_anything_is_loaded(make, monkeypatch):
    monkeypatch.setattr("sfumato.runtime.pipeline.Pipeline.generate", None)
    assert "steps 0" in make(steps=0).error


def test_size_follows_the_family(run, artifacts):
    """SD3 takes multiples of 16 where SD takes 8."""
    outcome = run("generate", "x", "-m", artifacts("sd3-no-t5"), "--size", "72x64")
    assert outcome.code == 2
    assert re.search(r"72x64.*multiples of 16", outcome.error)


def test_empty_prompt_makes_a_picture(make):
    assert make("--seed", 7, prompt="").out == "image-7.png\n"


def test_long_prompt_is_cut_with_a_warning(make):
    outcome = make("--seed", 7, prompt="red apple " * 1000)
    assert outcome.code == 0
    assert "warning: prompt cut at 224 tokens" in outcome.err


def test_unknown_model(run):
    outcome = run("generate", "x", "-m", "mimi")
    assert outcome.code == 2
    assert "'mimi'" in outcome.error


def test_folder_that_is_no_artifact(run, tmp_path):
    outcome = run("generate", "x", "-m", tmp_path)
    assert outcome.code == 2
    assert "sfumato convert" in outcome.error


def test_truncated_weights(run, copy, here):
    victim = copy / "unet" / "openvino_model.bin"
    os.truncate(victim, 1000)
    outcome = run("generate", "x", "-m", copy)
    assert outcome.code == 2
    assert str(victim) in outcome.error
    assert list(here.iterdir()) == []


def test_missing_component(run, copy):
    shutil.rmtree(copy / "vae_decoder")
    outcome = run("generate", "x", "-m", copy)
    assert outcome.code == 2
    assert "vae_decoder" in outcome.error


def test_damage_of_the_same_size_is_found_by_verify(run, copy):
    victim = copy / "unet" / "openvino_model.bin"
    with victim.open("r+b") as file:
        file.seek(100)
        byte = file.read(1)
        file.seek(100)
        file.write(bytes([byte[0] ^ 255]))
    outcome = run("models", "verify", copy)
    assert outcome.code == 2
    assert str(victim) in outcome.error


@pytest.mark.parametrize("output", ["/proc/here/", "/proc/apple.png", "taken/apple.png"])
def test_unwritable_output_is_found_before_the_work(make, here, monkeypatch, output):
    (here / "taken").write_text("a file where a folder is needed")
    monkeypatch.setattr("sfumato.runtime.pipeline.Pipeline.generate", None)
    outcome = make("-o", output)
    assert outcome.code == 2
    assert output.split("/")[-2] in outcome.error
    assert [path.name for path in here.iterdir()] == ["taken"]


def test_full_disk(on_small_disk, artifact):
    outcome = on_small_disk("4k", "generate", "x", "-m", artifact, "--steps", 1, "--quiet")
    assert outcome.code == 1
    assert "no space left" in outcome.error
    assert outcome.out == "", "neither a path nor a file"


def test_interrupt_leaves_nothing(spawn, artifact, here):
    process = spawn("generate", "x", "-m", artifact, "--steps", 999, "-o", "new/", "--sampler", "ddim")
    lines = [process.stderr.readline()]
    while "step" not in lines[-1]:
        assert lines[-1], lines
        lines.append(process.stderr.readline())
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "interrupted; nothing was written"
    assert "Traceback" not in err
    assert out == ""
    assert list(here.iterdir()) == []


def test_interrupt_keeps_the_pictures_that_are_done(spawn, artifact, here):
    process = spawn("generate", "x", "-m", artifact, "--steps", 20, "--count", 500, "--seed", 0, "-o", "new/")
    while process.poll() is None and not (here / "new" / "x-1.png").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (1, "")
    kept = re.fullmatch(r"interrupted; kept (.*)", err.strip().splitlines()[-1])[1].split(", ")
    assert kept == [f"new/x-{seed}.png" for seed in range(len(kept))]
    assert sorted(Path("new").iterdir()) == sorted(Path(path) for path in kept)
    for path in kept:
        Image.open(path).load()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("red\napple", "red-apple-7.png"),
        ("red 🍎, apple", "red-apple-7.png"),
        ("🍎", "image-7.png"),
        ("red\x1b[31m\tapple\r\x07", "red-31m-apple-7.png"),
        ("../../etc/passwd", "etc-passwd-7.png"),
        ("Steps: 3, Sampler: x\nNegative prompt of: y", "steps-3-sampler-x-negative-prompt-of-y-7.png"),
    ],
)
def test_any_prompt_gives_a_plain_name_and_readable_parameters(make, prompt, name):
    outcome = make("--seed", 7, "-n", "blue\nsky", "--guidance", 3, prompt=prompt)
    assert outcome.out == f"{name}\n"
    # As other tools take the text apart: settings in the last line, the negative prompt after its label.
    *lines, settings = Image.open(name).text["parameters"].split("\n")
    found = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', settings))
    assert (found["Steps"], found["Seed"], found["CFG scale"], found["Size"]) == ("2", "7", "3", "64x64")
    assert "\n".join(lines) == f"{prompt}\nNegative prompt: blue\nsky"


def test_no_torch_is_needed(artifact, here):
    blocked = ("torch", "diffusers", "transformers", "safetensors")
    code = f"""
import sys
for name in {blocked!r}:
    sys.modules[name] = None
from sfumato.cli import main
sys.exit(main(sys.argv[1:]))
"""
    command = [sys.executable, "-c", code, "generate", "x", "-m", str(artifact), "--steps", "1", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_from_a_picture_and_a_mask(make, here):
    make("--seed", 7, "-o", "a.png", "--size", "64x64")
    Image.new("L", (64, 64)).save("black.png")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    mask.save("mask.png")
    assert make("--image", "a.png", "--mask", "mask.png", "-o", "b.png").code == 0
    before, after = (Image.open(name).crop((32, 0, 64, 64)).tobytes() for name in ("a.png", "b.png"))
    assert before == after
    refused = make("--image", "a.png", "--mask", "black.png", "-o", "c.png")
    assert (refused.code, "nothing to repaint" in refused.error) == (2, True)
    assert not (here / "c.png").exists()


def test_outpainting(make, here):
    make("--seed", 7, "-o", "a.png", "--size", "64x64")
    assert make("--image", "a.png", "--outpaint", "16,0,0,0", "-o", "b.png").code == 0
    assert Image.open(here / "b.png").size == (80, 64)
    assert make("--image", "a.png", "--outpaint", "wide").code == 2


def test_a_picture_is_repeated_from_its_own_parameters(make, run, here, artifact):
    settings = [
        "--seed",
        "7",
        "--guidance",
        "6.5",
        "--guidance-interval",
        "0.5,9.25",
        "--eta",
        "0.5",
        "--sampler",
        "ddim",
    ]
    make(*settings, "-n", "green, house", "-o", "a.png", prompt='a (red:1.2) apple, of "noto"')
    assert run("generate", "--from-image", "a.png", "-m", artifact, "-o", "b.png").code == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert run("generate", "--from-image", "a.png", "-m", artifact, "--seed", 8, "-o", "c.png").code == 0
    assert (here / "a.png").read_bytes() != (here / "c.png").read_bytes()


def test_a_picture_in_full_is_repeated_in_full_by_a_model_that_reuses(run, here, artifact):
    shutil.copytree(artifact, "reusing")
    manifest = json.loads(Path("reusing/sfumato.json").read_text())
    manifest["sampling"] |= {"reuse": "fast", "guidance_every": 2}
    Path("reusing/sfumato.json").write_text(json.dumps(manifest))
    made = ("generate", "--steps", 12, "--seed", 3, "-m", "reusing")
    assert run(*made, "a cat", "--reuse", "off", "--guidance-every", 1, "-o", "a.png").code == 0
    assert run("generate", "--from-image", "a.png", "-m", "reusing", "-o", "b.png").code == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert run(*made, "a cat", "-o", "c.png").code == 0
    assert read_parameters("c.png").settings["Reuse"] == "fast"
    assert read_parameters("c.png").settings["CFG every"] == "2"
    assert run("generate", "--from-image", "c.png", "-m", "reusing", "-o", "d.png").code == 0
    assert (here / "c.png").read_bytes() == (here / "d.png").read_bytes()


def test_a_picture_of_merged_tokens_is_repeated_with_them(run, here, artifact, make):
    make("--token-merging", 0.5, "--merging-method", "pool", "--steps", 2, "--seed", 3, "-o", "a.png")
    again = ("generate", "--from-image", "a.png", "-m", artifact)
    assert run(*again, "-o", "b.png").code == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    assert run(*again, "--token-merging", 0, "-o", "c.png").code == 0
    assert (here / "a.png").read_bytes() != (here / "c.png").read_bytes()


def test_reuse_that_was_too_much_for_the_steps_is_not_told(here, make):
    make("--reuse", "fast", "--steps", 4, "-o", "a.png")
    assert "Reuse" not in read_parameters("a.png").settings


def test_a_picture_that_does_not_say_how_it_was_made(run, here):
    Image.new("RGB", (64, 64)).save("plain.png")
    outcome = run("generate", "--from-image", "plain.png")
    assert (outcome.code, outcome.error) == (
        2,
        "error: plain.png: does not say how it was made (no `parameters` text); give a prompt",
    )


def test_no_prompt_at_all(run):
    outcome = run("generate")
    assert outcome.code == 2
    assert "give a PROMPT, or a picture to repeat with --from-image" in outcome.error


def test_switch_at_needs_a_refiner(make):
    outcome = make("--switch-at", 0.5)
    assert (outcome.code, "give one" in outcome.error) == (2, True)


def test_a_refiner_merges_no_tokens_besides_its_own(run, artifacts, here, tmp_path):
    refiner = shutil.copytree(artifacts("sdxl"), tmp_path / "merged")
    manifest = json.loads((refiner / "sfumato.json").read_text())
    manifest["token_merging"] = {"ratio": 0.25, "method": "match"}
    (refiner / "sfumato.json").write_text(json.dumps(manifest))
    given = ("--steps", 2, "--token-merging", 0.5, "--refiner", refiner, "--switch-at", 0.5, "-o", "a.png")
    outcome = run("generate", "red apple", "-m", artifacts("sdxl"), *given)
    assert (outcome.code, outcome.out) == (0, "a.png\n"), outcome.error


def test_help_lists_options_by_section(run):
    out = run("generate", "--help").out
    assert [line for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Options:",
        "Picture:",
        "From a picture:",
        "Prompt:",
        "Sampling:",
    ]
