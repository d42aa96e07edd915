"""Models from the Hub: only what is needed is downloaded, and what cannot be is said in one sentence."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import fake_hub
import huggingface_hub
import pytest
from huggingface_hub import constants

from sfumato import convert
from sfumato.convert.adopt import adopt, is_converted
from sfumato.convert.checkpoints import open_checkpoint
from sfumato.convert.hub import fetch, origin
from sfumato.convert.hub_id import HubId, parse_hub_id
from sfumato.errors import CheckpointError, SfumatoError

NAME = HubId("org/tiny")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that this process's huggingface_hub talks to, and an empty cache."""
    with fake_hub.serve() as server:
        _point_at(monkeypatch, server.address)
        (tmp_path / "cache").mkdir()
        (tmp_path / "link").symlink_to("cache")  # as of those who keep it on another disk
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "link"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        yield server
    huggingface_hub.close_session()


def _point_at(monkeypatch, address):
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def repo(hub, checkpoints):
    """`org/tiny` on the Hub: a checkpoint as they are published, with all that nobody here needs."""
    files = fake_hub.files_of(checkpoints("sd"))
    for part, stem in (("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")):
        files[f"{part}/{stem}.fp16.safetensors"] = files[f"{part}/{stem}.safetensors"]
        files[f"{part}/{stem}.bin"] = b"pickle"
    files |= {
        "README.md": b"# Tiny",
        "v1-5-pruned.ckpt": b"pickle",
        "v1-5-pruned.safetensors": b"single",
        "unet/openvino_model.xml": b"<net/>",
        "unet/openvino_model.bin": b"weights",
        "unet/diffusion_flax_model.msgpack": b"flax",
        "unet/model.onnx": b"onnx",
        "safety_checker/config.json": b"{}",
        "safety_checker/model.safetensors": b"checker",
    }
    hub.repos["org/tiny"] = fake_hub.Repo(files)
    return hub.repos["org/tiny"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("org/name", HubId("org/name")),
        ("org/name-1.5@v1.0", HubId("org/name-1.5", "v1.0")),
        ("org/name@refs/pr/3", HubId("org/name", "refs/pr/3")),
        ("https://huggingface.co/org/name", HubId("org/name")),
        ("https:/huggingface.co/org/name/tree/fp16", HubId("org/name", "fp16")),
        ("org/name/sub/x.safetensors", HubId("org/name", "main", "sub/x.safetensors")),
        ("https://hf.co/org/name/blob/v1/x.safetensors", HubId("org/name", "v1", "x.safetensors")),
        ("https://hf.co/org/name/resolve/v1/x.ckpt?download=true", HubId("org/name", "v1", "x.ckpt")),
    ],
)  # fmt: skip
def test_names_and_addresses(text, meant):
    assert parse_hub_id(text) == meant


@pytest.mark.parametrize(
    "path",
    ["model", "./org/name", "../org/name", "/org/name", "a/b/c", "models/x.ckpt", "my-models/x.y.safetensors",
     "https://huggingface.co/datasets/org/name", "https://example.org/org/name"],
)  # fmt: skip
def test_paths_and_other_sites_are_no_hub_ids(path):
    assert parse_hub_id(path) is None


def test_only_what_is_read_is_downloaded_weights_last(hub, repo):
    told = []
    folder = fetch(NAME, on_progress=lambda *stage: told.append(stage))
    assert {"unet", "vae", "text_encoder"} == open_checkpoint(folder).parts.keys()
    weights = [name for name in hub.downloaded if name.endswith(".safetensors")]
    assert hub.downloaded[0] == "model_index.json"
    assert hub.downloaded[-3:] == weights
    assert sorted(weights) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert not [name for name in hub.downloaded if "safety" in name or name.endswith((".bin", ".xml", ".md"))]
    assert told[-1][0].startswith("downloading vae/diffusion_pytorch_model.safetensors (")
    assert origin(folder) == f"org/tiny@{repo.commit}"


def test_the_16_bit_variant_where_it_is_wanted_and_there(hub, repo):
    fetch(NAME, variants=("fp16", None))
    assert sorted(name for name in hub.downloaded if name.endswith(".safetensors")) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]


@pytest.mark.parametrize("index", ["index.json", "index.fp16.json"])
def test_shards_are_found_through_their_index(index, hub, repo):
    content = repo.files.pop("unet/diffusion_pytorch_model.safetensors")
    repo.files.pop("unet/diffusion_pytorch_model.fp16.safetensors")
    shards = {"a": "m-00001-of-00002.safetensors", "b": "m-00002-of-00002.safetensors"}
    repo.files[f"unet/diffusion_pytorch_model.safetensors.{index}"] = json.dumps(
        {"weight_map": shards}
    ).encode()
    repo.files |= {f"unet/{name}": content + name.encode() for name in shards.values()}
    fetch(NAME)
    assert {f"unet/{name}" for name in shards.values()} < set(hub.downloaded)
    shards["c"] = "../../m.safetensors"
    repo.files[f"unet/diffusion_pytorch_model.safetensors.{index}"] = json.dumps(
        {"weight_map": shards}
    ).encode()
    repo.revision = "v2"
    with pytest.raises(CheckpointError, match="must name safetensors files beside it"):
        fetch(HubId("org/tiny", "v2"))


def test_without_t5_its_weights_stay_away(hub, checkpoints):
    hub.repos["org/tiny"] = fake_hub.Repo(fake_hub.files_of(checkpoints("sd3")))
    folder = fetch(NAME, without_t5=True)
    assert [name for name in hub.downloaded if "_3/" in name] == ["tokenizer_3/tokenizer_config.json"]
    assert "text_encoder_3" not in open_checkpoint(folder, without_t5=True).parts
    fetch(NAME)
    assert "text_encoder_3/model.safetensors" in hub.downloaded


def test_what_was_fetched_can_be_converted(hub, repo, artifacts, tmp_path):
    artifact = convert(fetch(NAME), tmp_path / "out", precision="fp32")
    original = artifacts("sd") / "unet" / "openvino_model.bin"
    assert (artifact.path / "unet" / "openvino_model.bin").read_bytes() == original.read_bytes()


@pytest.mark.parametrize("ours", [True, False])
def test_converted_models_are_taken_as_they_are(ours, hub, artifacts, tmp_path):
    files = fake_hub.files_of(artifacts("sd")) | {"README.md": b"# Tiny", "unet/other.bin": b""}
    if not ours:
        del files["sfumato.json"]
    hub.repos["org/tiny"] = fake_hub.Repo(files)
    folder = fetch(NAME)
    assert is_converted(folder)
    adopted = adopt(folder, tmp_path / "out", origin=origin(folder))
    assert not {"README.md", "unet/other.bin"} & set(hub.downloaded)
    assert fake_hub.files_of(adopted.path).keys() == fake_hub.files_of(artifacts("sd")).keys()
    assert (adopted.manifest.source["checkpoint"] == origin(folder)) is not ours


def test_one_file_of_a_repository(hub, repo):
    path = fetch(HubId("org/tiny", "main", "v1-5-pruned.safetensors"))
    assert path.read_bytes() == b"single"
    assert hub.downloaded == ["v1-5-pruned.safetensors"]
    assert origin(path) == f"org/tiny@{repo.commit}"
    with pytest.raises(CheckpointError, match=r"a pickle.*choose a safetensors file"):
        fetch(HubId("org/tiny", "main", "v1-5-pruned.ckpt"))
    with pytest.raises(CheckpointError, match=r"has no file \.\./x\.safetensors"):
        fetch(HubId("org/tiny", "main", "../x.safetensors"))


def test_revisions(hub, repo):
    repo.revision = "v1.0"
    folder = fetch(HubId("org/tiny", "v1.0"))
    assert folder.name == repo.commit == fetch(HubId("org/tiny", repo.commit)).name
    with pytest.raises(CheckpointError, match=r"no revision 'main'.*/org/tiny/tree/main lists them"):
        fetch(NAME)


def test_a_broken_connection_goes_on_where_it_stopped(hub, repo, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    name = "unet/diffusion_pytorch_model.safetensors"
    repo.dropped.add(name)
    folder = fetch(NAME)
    assert (folder / name).read_bytes() == repo.files[name]
    half = len(repo.files[name]) // 2
    assert [line for line in hub.requests if name in line and line.startswith("GET")][1].endswith(
        f"bytes={half}-"
    )


def test_an_interrupted_download_keeps_what_is_whole(hub, repo):
    def stop(text, done, total):
        if "vae/diffusion" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(NAME, on_progress=stop)
    hub.requests.clear()
    fetch(NAME)
    assert hub.downloaded == ["vae/diffusion_pytorch_model.safetensors"]


def test_without_a_connection_the_cache_serves(hub, repo, monkeypatch):
    folder = fetch(NAME, variants=("fp16", None))
    hub.requests.clear()
    hub.status = 503
    assert fetch(NAME) == folder
    hub.status = None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    assert fetch(NAME) == folder
    assert len(hub.requests) == requests
    (folder / "unet/config.json").unlink()
    with pytest.raises(SfumatoError, match=r"cannot be reached, and .* lacks unet/config\.json; connect"):
        fetch(NAME)


def test_offline_with_a_cold_cache(hub, repo, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SfumatoError, match=r"org/tiny: not in the cache.*HF_HUB_OFFLINE is set; unset it"):
        fetch(NAME)
    assert not hub.requests


def test_no_server_at_all(hub, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    _point_at(monkeypatch, f"http://127.0.0.1:{port}")
    with pytest.raises(
        SfumatoError, match=rf"no connection to http://127\.0\.0\.1:{port} .*check the network"
    ):
        fetch(NAME)


def test_a_silent_server(hub, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        _point_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        with pytest.raises(SfumatoError, match=r"no connection to .*timed out"):
            fetch(NAME)


def test_gated_models_need_a_licence_and_a_token(hub, repo, monkeypatch):
    repo.gated = True
    with pytest.raises(SfumatoError, match=rf"gated; accept its licence at {hub.address}/org/tiny.*HF_TOKEN"):
        fetch(NAME)
    monkeypatch.setenv("HF_TOKEN", "hf_another")
    with pytest.raises(SfumatoError, match="gated"):
        fetch(NAME)
    monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
    assert fetch(NAME).is_dir()


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "does not know this token"),
        (403, "access is refused"),
        (429, "too many requests"),
        (502, "error 502"),
    ],
)
def test_refusals(status, message, hub, repo):
    hub.status = status
    with pytest.raises(SfumatoError, match=f"org/tiny: .*{message}"):
        fetch(NAME)


@pytest.mark.parametrize("page", [b"<html>Log in</html>", b"[]", b'{"id": "org/tiny"}'])
def test_answers_that_are_not_the_hubs(page, hub):
    hub.page = page
    with pytest.raises(SfumatoError, match="does not answer as the Hub does"):
        fetch(NAME)


def test_a_cache_that_cannot_be_written(hub, repo, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(SfumatoError, match="file/cache: cannot be written"):
        fetch(NAME)


def test_names_that_nobody_has(hub):
    with pytest.raises(CheckpointError, match="org/tiny: no such file or folder here, and no such model"):
        fetch(NAME)
    with pytest.raises(CheckpointError, match="no name of a model on the Hub"):
        fetch(HubId("org/a..b"))


def test_unknown_pipelines_and_classes_are_refused_before_weights(hub, repo):
    index = json.loads(repo.files["model_index.json"])
    for key, value, message in [
        ("_class_name", "FluxPipeline", "pipeline class 'FluxPipeline' is not supported"),
        ("unet", ["evil", "Model"], "unet is of class 'Model'"),
        ("auto_map", {}, "never run"),
    ]:
        repo.files["model_index.json"] = json.dumps(index | {key: value}).encode()
        repo.revision = key.strip("_")
        with pytest.raises(CheckpointError, match=message):
            fetch(HubId("org/tiny", repo.revision))
    assert set(hub.downloaded) == {"model_index.json"}


def test_pickles_are_refused_before_anything_else_is_downloaded(hub, repo):
    del repo.files["unet/diffusion_pytorch_model.safetensors"]
    del repo.files["unet/openvino_model.xml"]
    with pytest.raises(CheckpointError, match=r"unet has only unet/diffusion_pytorch_model\.bin; a pickle"):
        fetch(NAME, variants=(None,))
    assert hub.downloaded == ["model_index.json"]


def test_repositories_without_a_pipeline(hub, repo):
    del repo.files["model_index.json"]
    with pytest.raises(CheckpointError, match="name one of its files, for example org/tiny/"):
        fetch(NAME)
    hub.repos["org/tiny"] = fake_hub.Repo({"model.ckpt": b"", "README.md": b""})
    with pytest.raises(CheckpointError, match=r"has only model\.ckpt; a pickle"):
        fetch(NAME)
    hub.repos["org/tiny"] = fake_hub.Repo({"README.md": b""})
    with pytest.raises(CheckpointError, match="not a model in diffusers layout"):
        fetch(NAME)
    assert not hub.downloaded


def test_a_full_disk_is_told_from_the_listing(hub, repo, tmp_path):
    repo.sizes["unet/diffusion_pytorch_model.safetensors"] = 2**60
    with pytest.raises(SfumatoError, match=r"at least 1152921504\.\d GB are needed"):
        fetch(NAME)
    assert not [name for name in hub.downloaded if name.endswith(".safetensors")]


def test_an_enormous_index_is_not_read(hub, repo):
    repo.sizes["model_index.json"] = 2 * 2**30
    with pytest.raises(CheckpointError, match=r"model_index\.json has 2\.1 GB, which no such file needs"):
        fetch(NAME)
    repo.sizes["model_index.json"] = 10
    with pytest.raises(CheckpointError, match=r"model_index\.json: not of the size that the Hub lists"):
        fetch(NAME)


def test_hostile_names_are_not_written(hub, repo, tmp_path):
    for name in ("../../../evil.json", "//tmp/evil.json", "..\\evil.json", "/../../evil.txt"):
        repo.files[f"tokenizer/{name}"] = b"{}"
    fetch(NAME)
    assert not [line for line in hub.requests if "evil" in line]
    assert not list(tmp_path.rglob("evil*"))


def test_a_fresh_process_reads_the_environment_and_tells_nobody(hub, repo, tmp_path):
    code = (
        "import sys; from sfumato.convert.hub import fetch; from sfumato.convert.hub_id import parse_hub_id;"
        "print(fetch(parse_hub_id(sys.argv[1])))"
    )
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", code, "org/tiny"],
        env=environment | {"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "home")
    assert all("/resolve/" in line or "/api/models/org/tiny/" in line for line in hub.requests)
    assert all("sfumato/" in agent and "torch/" not in agent for agent in hub.agents)
