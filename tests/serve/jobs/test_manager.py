"""Jobs: their order, how they end, and what they leave; a script stands in for the command."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from sfumato.artifact import load_manifest
from sfumato.errors import InvalidRequest
from sfumato.serve.jobs import Job, Jobs
from sfumato.serve.jobs import child as jobs_child
from sfumato.serve.jobs.child import LONGEST_LINE, MOST_LINES, Account, lines

Make = Callable[..., Jobs]
SCRIPT = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # as the command that it stands in for
source, out = sys.argv[sys.argv.index("--") + 1:]
say = lambda text: print(text, file=sys.stderr, flush=True)
partial = Path(out).parent / f".{Path(out).name}.partial-x"
match source.split()[0]:
    case "fail":
        say("noise"), say("error: no such checkpoint; give another"), say("more noise"), sys.exit(2)
    case "silent":
        sys.exit(3)
    case "talk":
        for number in range(700):
            say(f"line {number} " + "x" * 5000)
    case "work":
        say("calibrating (1/4)"), say("sample 1/2, 3 min left"), time.sleep(60)
    case "tidy":
        partial.mkdir(parents=True), say("working (1/2)")
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            partial.rmdir(), say("interrupted; nothing was written"), sys.exit(1)
    case "deaf":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        partial.mkdir(parents=True), say(f"child {child.pid}"), say("working (1/2)"), time.sleep(60)
    case "die":
        partial.mkdir(parents=True), os.kill(os.getpid(), signal.SIGKILL)
    case "plain":
        print("not JSON")
if source != "plain":
    print(json.dumps({"arguments": sys.argv[1:], "path": out, "files": os.listdir("/proc/self/fd")}))
"""


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Jobs that run the script, which does what the source says."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    made: list[Jobs] = []

    def new(**options: int) -> Jobs:
        made.append(Jobs(tmp_path / "models", command=[sys.executable, "-S", str(script)], **options))
        return made[-1]

    yield new
    for each in made:
        each.close()


@pytest.fixture
def jobs(make: Make) -> Jobs:
    return make()


def until(jobs: Jobs, job: Job, right: Callable[[Job], bool], seconds: float = 20) -> Job:
    end = time.monotonic() + seconds
    while not right(jobs.get(job.id)):
        assert time.monotonic() < end, jobs.get(job.id)
        time.sleep(0.02)
    return jobs.get(job.id)


def ended(jobs: Jobs, job: Job) -> Job:
    return until(jobs, job, lambda each: each.ended)


def printed(job: Job) -> dict[str, Any]:
    assert job.result is not None
    return job.result


def said(word: str) -> Callable[[Job], bool]:
    return lambda job: any(word in line for line in job.log)


def test_one_after_the_other_in_order(jobs: Jobs) -> None:
    first = jobs.convert("work", "a")
    others = [jobs.convert("done", name) for name in ("b", "c")]
    until(jobs, first, said("sample"))
    assert [job.state for job in jobs.all()] == ["running", "waiting", "waiting"]
    assert [job.title for job in jobs.all()] == [
        "convert work -> a",
        "convert done -> b",
        "convert done -> c",
    ]
    jobs.stop(first.id)
    assert [ended(jobs, job).state for job in (first, *others)] == ["stopped", "done", "done"]


def test_what_is_asked_arrives(jobs: Jobs) -> None:
    options: dict[str, Any] = {"precision": "int8", "loras": [("a:b.safetensors", 0.5)], "without_t5": True}
    job = ended(jobs, jobs.convert("x", "a", token_merging=0.5, **options))
    asked = ["--weights=int8", "--without-t5", "--lora=a:b.safetensors:0.5", "--token-merging=0.5"]
    out = str(jobs.folder / "a")
    assert printed(job)["arguments"] == ["convert", "--json", *asked, "--", "x", out]
    job = ended(jobs, jobs.optimize("mini", "b", "int8", samples=3, prompts="captions.txt"))
    asked = ["--recipe=int8", "--samples=3", "--prompts=captions.txt", "--", "mini", str(jobs.folder / "b")]
    assert printed(job)["arguments"] == ["optimize", "--json", *asked]
    assert (job.state, job.progress, job.error, job.name) == ("done", 1.0, None, "b")


@pytest.mark.parametrize(
    "source", ["--help", "-x; touch pwned", "$(touch pwned)", "a\\ b", "'\"<script>", "日本 語", "* ?"]
)
def test_a_hostile_source_is_one_argument(jobs: Jobs, source: Any) -> None:
    job = ended(jobs, jobs.convert(source, "a"))
    assert printed(job)["arguments"][-3:-1] == ["--", source]


def test_home_is_found_as_a_shell_would(jobs: Jobs) -> None:
    job = ended(jobs, jobs.convert("~/sd15", "a"))
    assert printed(job)["arguments"][-2] == str(Path.home() / "sd15")


@pytest.mark.parametrize("source", ["", "  ", "a\0b", "a\nb", "\ud800", "x" * 5000, None])
def test_a_source_that_cannot_be_is_refused(jobs: Jobs, source: Any) -> None:
    with pytest.raises(InvalidRequest, match="source"):
        jobs.convert(source, "a")
    assert jobs.all() == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-x", "a/b", "a\\b", "a b", "a\n", "é", "x" * 65, "../a", None, "a*"]
)
def test_bad_names_are_refused(jobs: Jobs, name: Any) -> None:
    with pytest.raises(InvalidRequest, match="1 to 64 letters"):
        jobs.convert("done", name)


def test_names_that_are_taken_are_refused(jobs: Jobs) -> None:
    (jobs.folder / "there").mkdir(parents=True)
    (jobs.folder / "link").symlink_to("nowhere")
    for name, why in {"there": "exists already", "link": "exists already", "mini": "ships"}.items():
        with pytest.raises(InvalidRequest, match=why):
            jobs.optimize("x", name, "int8")


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp8"}, {"token_merging": 0.8}, {"loras": [("", 1.0)]}, {"loras": [("x", float("nan"))]}],
)
def test_options_that_make_no_sense_are_refused(jobs: Jobs, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        jobs.convert("done", "a", **options)
    with pytest.raises(InvalidRequest, match="samples"):
        jobs.optimize("mini", "a", "int8", samples=0)


def test_two_jobs_never_write_one_folder(jobs: Jobs) -> None:
    first = jobs.convert("work", "a")
    with pytest.raises(InvalidRequest, match=rf"job {first.id} \(convert work -> a\) writes it"):
        jobs.optimize("mini", "a", "int8")
    jobs.stop(first.id)
    ended(jobs, first)
    assert ended(jobs, jobs.convert("done", "a")).state == "done"


def test_only_so_many_wait(make: Make) -> None:
    jobs = make(waiting=2)
    running = jobs.convert("work", "a")
    waiting = [jobs.convert("done", name) for name in ("b", "c")]
    with pytest.raises(InvalidRequest, match="2 jobs wait already"):
        jobs.convert("done", "d")
    jobs.stop(waiting[0].id)
    jobs.convert("done", "d")
    jobs.stop(running.id)


def test_what_waits_is_stopped_before_it_begins(jobs: Jobs) -> None:
    running, waiting = jobs.convert("work", "a"), jobs.convert("done", "b")
    assert jobs.stop(waiting.id).state == "stopped"
    jobs.stop(running.id)
    last = ended(jobs, jobs.convert("done", "c"))
    stopped = jobs.get(waiting.id)
    assert (last.state, stopped.state, stopped.log, stopped.seconds) == ("done", "stopped", (), 0)


def test_what_is_stopped_cleans_up_itself(jobs: Jobs) -> None:
    job = jobs.convert("tidy", "a")
    until(jobs, job, said("working"))
    assert list(jobs.folder.iterdir())
    assert jobs.stop(job.id).stage == "stopping"
    job = ended(jobs, job)
    assert (job.state, job.error, job.log[-1]) == ("stopped", None, "interrupted; nothing was written")
    assert not any(jobs.folder.iterdir())


def test_what_does_not_stop_is_killed_with_what_it_started(
    jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_child, "GRACE", 0.3)
    job = jobs.convert("deaf", "a")
    until(jobs, job, said("working"))
    child = int(job_line(jobs, job, "child ").split()[1])
    jobs.stop(job.id)
    assert ended(jobs, job).state == "stopped"
    assert not (jobs.folder / ".a.partial-x").exists()
    assert gone(child)


def job_line(jobs: Jobs, job: Job, start: str) -> str:
    return next(line for line in jobs.get(job.id).log if line.startswith(start))


def gone(process: int) -> bool:
    """Whether a process ends within a second, or has: a zombie that nobody reaps here counts."""
    for _ in range(50):
        try:
            status = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if status == "Z":
            return True
        time.sleep(0.02)
    return False


def test_a_killed_command_leaves_nothing_and_ends_nothing(jobs: Jobs) -> None:
    job = ended(jobs, jobs.convert("die", "a"))
    assert (job.state, job.result) == ("failed", None)
    assert job.error == "ended by signal 9, as when memory runs out; nothing was written"
    assert not (jobs.folder / ".a.partial-x").exists()
    assert ended(jobs, jobs.convert("done", "a")).state == "done"


def test_a_failure_tells_its_one_line(jobs: Jobs) -> None:
    job = ended(jobs, jobs.convert("fail", "a"))
    assert (job.state, job.error) == ("failed", "no such checkpoint; give another")
    assert job.log == ("noise", "error: no such checkpoint; give another", "more noise")
    assert ended(jobs, jobs.convert("silent", "a")).error == "ended with exit code 3; nothing was written"
    assert ended(jobs, jobs.convert("plain", "a")).state == "failed"


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    jobs = Jobs(tmp_path, command=[str(tmp_path / "none")])
    assert "No such file" in str(ended(jobs, jobs.convert("x", "a")).error)
    assert "No such file" in str(ended(jobs, jobs.convert("x", "a")).error)
    jobs.close()


def test_the_log_has_its_limits(jobs: Jobs) -> None:
    job = ended(jobs, jobs.convert("talk", "a"))
    assert len(job.log) == MOST_LINES
    assert job.log[-1].startswith("line 699 xx")
    assert {len(line) for line in job.log} == {LONGEST_LINE}


def test_progress_as_it_is_said(jobs: Jobs) -> None:
    job = jobs.convert("work", "a")
    job = until(jobs, job, said("sample"))
    assert (job.progress, job.stage) == (0.125, "calibrating")
    assert job.left is not None
    assert 170 < job.left <= 180
    assert job.seconds > 0


def test_lines_of_the_commands_are_understood() -> None:
    account = Account()
    heard = {
        "downloading unet/model.safetensors (3.4 GB of 5.1 GB) (2/4)": 0.25,
        "warning: something (else)": 0.25,
        "optimizing unet (3/4)": 0.5,
        "sample 1/2, 1 h 30 min left": 0.625,
        "hashing (4/4)": 0.75,
    }
    for line, progress in heard.items():
        account.hear(line)
        assert account.progress == progress
        assert (account.left is not None) == ("left" in line)
        if "left" in line:
            assert account.left == pytest.approx(5400, abs=1)
    assert account.stage == "hashing"


def test_lines_are_cut_wherever_they_end() -> None:
    text = "a\n\n" + "b" * 3500 + "\n" + "c" * LONGEST_LINE + "\nd"
    assert [len(line) for line in lines(StringIO(text))] == [1, LONGEST_LINE, LONGEST_LINE, 1]


def test_no_file_or_socket_is_inherited(jobs: Jobs) -> None:
    with socket.socket() as server:
        os.set_inheritable(server.fileno(), True)
        job = ended(jobs, jobs.convert("done", "a"))
    assert len(printed(job)["files"]) == 4  # input, output, error, and the folder that is listed


def test_close_stops_everything(jobs: Jobs) -> None:
    running, waiting = jobs.convert("work", "a"), jobs.convert("done", "b")
    until(jobs, running, said("sample"))
    jobs.close()
    assert [jobs.get(job.id).state for job in (running, waiting)] == ["stopped", "stopped"]
    with pytest.raises(InvalidRequest, match="ends"):
        jobs.convert("done", "c")


def test_jobs_end_with_python(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    code = f"""
import sys, time
from pathlib import Path
from sfumato.serve.jobs import Jobs
jobs = Jobs(Path({str(tmp_path)!r}) / "models", command=[sys.executable, "-S", {str(script)!r}])
job = jobs.convert("tidy", "a")
while not jobs.get(job.id).log:
    time.sleep(0.02)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert list((tmp_path / "models").iterdir()) == []


def test_old_jobs_are_forgotten(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sfumato.serve.jobs.manager.MOST_ENDED", 2)
    made = [ended(jobs, jobs.convert("done", name)) for name in "abcd"]
    assert [job.id for job in jobs.all()] == [job.id for job in made[1:]]
    with pytest.raises(InvalidRequest, match="no longer"):
        jobs.get(made[0].id)


def test_the_real_command(artifacts: Callable[[str], Path], tmp_path: Path) -> None:
    jobs = Jobs(tmp_path / "models")
    wrong = jobs.convert("--lora", "a")
    made = jobs.optimize(str(artifacts("sd")), "b", "int8-weights")
    assert "no such file or folder" in str(until(jobs, wrong, lambda job: job.ended, 60).error)
    job = until(jobs, made, lambda job: job.ended, 60)
    assert job.state == "done", job.log
    assert printed(job)["recipe"] == "int8-weights"
    assert job.log[-1].startswith("hashing (")
    assert load_manifest(tmp_path / "models" / "b").precision == "int8-weights"
    assert json.dumps(job.result)
    jobs.close()
