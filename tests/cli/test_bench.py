"""`sfumato bench`: a table for people, one JSON object for programs."""

import json
import signal

import psutil
import pytest

QUICK = ("--runs", 2, "--steps", 2, "--size", "64x64")
STAGES = {"load", "encode", "step", "decode", "total"}


def test_json_is_one_object_with_medians(run, artifact):
    outcome = run("bench", artifact, "mini", *QUICK, "--json")
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert [each["model"] for each in document["models"]] == [artifact.name, "mini"]
    for each in document["models"]:
        assert each["runs"] == 2
        assert set(each["seconds"]) == STAGES and min(each["seconds"].values()) > 0
        assert each["quartiles"]["total"][0] <= each["seconds"]["total"] <= each["quartiles"]["total"][1]
        assert each["disk_bytes"] < each["peak_memory_bytes"]
        assert "profile" not in each
    assert document["models"][0]["speedup"] == 1
    assert document["environment"]["packages"]["openvino"]


def test_the_table_is_aligned_and_progress_is_elsewhere(run):
    outcome = run("bench", "mini", "mini", *QUICK)
    heading, *rows = outcome.out.splitlines()
    assert heading.split()[:6] == ["model", "load", "encode", "step", "decode", "total"]
    assert [row.split()[0] for row in rows] == ["mini", "mini-2"]
    assert all(row.index(" kB") if " kB" in row else row.endswith("MB") for row in rows)
    assert rows[0].index("1.00x") + 5 == heading.index("speedup") + 7
    assert "picture 6/6" in outcome.err
    assert run("bench", "mini", *QUICK, "--quiet").err == ""


def test_a_checkpoint_in_pytorch_beside_its_model_folder(run, artifact, checkpoint):
    outcome = run("bench", f"torch:{checkpoint}", artifact, *QUICK, "--profile", "--json")
    assert outcome.code == 0, outcome.err
    torch, ours = json.loads(outcome.out)["models"]
    assert (torch["kind"], ours["kind"]) == ("torch", "artifact")
    assert "profile" not in torch and ours["profile"]["components"]["unet"] > 0
    assert f"no profile of {torch['model']}" in outcome.err


def test_reuse_is_of_model_folders_and_told(run, artifact, checkpoint):
    options = ["--runs", 1, "--steps", 8, "--size", "64x64", "--reuse", "fast"]
    outcome = run("bench", f"torch:{checkpoint}", artifact, *options, "--json")
    torch, ours = json.loads(outcome.out)["models"]
    assert (torch["reuse"], ours["reuse"], ours["guidance_every"]) == ("off", "fast", 1)
    assert f"{torch['model']} is a checkpoint in PyTorch, which has no reuse" in outcome.err
    table = run("bench", artifact, *options).out.splitlines()
    assert [line.split()[-1] for line in table] == ["reuse", "fast"]


def test_profile_is_a_table(run, artifact):
    outcome = run("bench", artifact, *QUICK, "--profile", "-q")
    assert f"{artifact.name}: where the time goes" in outcome.out
    assert "slowest single ones" in outcome.out
    assert "unet" in outcome.out and "Convolution" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mimi",), "did you mean 'mini'"),
        (("mini", "--runs", 0), "runs 0: must be a whole number from 1"),
        (("mini", "--steps", 0), "steps 0"),
        (("mini", "--size", "100x100"), "multiples of 16"),
        (("mini", "--size", "big"), "'big'"),
        (("mini", "--device", "TPU"), "'TPU'"),
        (("mini", "--threads", 0), "threads 0"),
        (("torch:nowhere",), "nowhere: no such file or folder"),
        (("torch:nowhere", "--reuse", "fast"), "reuse: checkpoints in PyTorch have none"),
        (("mini", "--reuse", "quick"), "reuse 'quick': There is off, balanced, fast"),
        ((), "MODEL..."),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, arguments, message):
    outcome = run("bench", *arguments)
    assert outcome.code == 2
    assert message in outcome.error
    assert outcome.out == ""


def test_help_shows_examples(run):
    assert "sfumato bench mini" in run("bench", "--help").out


def test_an_interruption_is_one_line_and_leaves_no_process(spawn):
    process = spawn("bench", "mini", "--runs", 1000)
    for line in process.stderr:
        if line.startswith("picture 1/"):
            break
    children = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.strip().splitlines()[-1] == "interrupted; nothing was written"
    assert out == ""
    assert len(children) == 1
    assert not psutil.wait_procs(children, timeout=5)[1]
