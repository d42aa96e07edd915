"""Calls past the page: whoever writes them gets no further than the page does."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from sfumato.runtime.png import save_png


@pytest.fixture
def client(address: str) -> httpx.Client:
    return httpx.Client(base_url=address, timeout=60)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A picture that nobody uploaded."""
    save_png(Image.new("RGB", (8, 8), "blue"), tmp_path / "secret.png", "words that nobody may read")
    return tmp_path / "secret.png"


def file(place: object) -> dict[str, Any]:
    return {"path": str(place), "meta": {"_type": "gradio.FileData"}}


def components(client: httpx.Client) -> dict[int, dict[str, Any]]:
    return {each["id"]: each for each in client.get("config").json()["components"]}


def call(client: httpx.Client, takes: str, change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    """Call the event that takes the component `takes`, with the page's own values and one of them changed."""
    known = components(client)
    event = next(
        event
        for event in client.get("config").json()["dependencies"]
        if takes in [known[id]["props"].get("elem_id") for id in event["inputs"]] and len(event["inputs"]) > 5
    )
    given = [known[id]["props"].get("value") for id in event["inputs"]]
    for place, id in enumerate(event["inputs"]):
        if known[id]["props"].get("elem_id") == takes:
            given[place] = change(known[id])
    session = {"session_hash": f"past-{takes}"}
    client.post("gradio_api/queue/join", json={"fn_index": event["id"], "data": given, **session})
    with client.stream("GET", "gradio_api/queue/data", params=session) as lines:
        for line in lines.iter_lines():
            message = json.loads(line.removeprefix("data:") or "{}")
            if message.get("msg") == "process_completed":
                return dict(message)
    raise AssertionError("the call has no end")


def test_an_upload_that_is_too_large(client: httpx.Client) -> None:
    files = {"files": ("large.png", bytes(50_000_000), "image/png")}
    assert client.post("gradio_api/upload", files=files).status_code == 413


def test_files_of_the_server_are_not_served(client: httpx.Client, secret: Path, pictures: Path) -> None:
    (pictures / ("a" * 22)).mkdir(exist_ok=True)
    for place in (secret, "/etc/passwd", pictures, pictures / ("a" * 22), pictures / ".." / "x", Path.cwd()):
        assert client.get(f"gradio_api/file={place}").status_code in (403, 404), place


@pytest.mark.parametrize("takes", ["picture", "mask", "prompt"])
def test_a_file_that_nobody_uploaded(client: httpx.Client, secret: Path, takes: str) -> None:
    def change(_: object) -> Any:
        return {"background": file(secret), "layers": []} if takes == "mask" else file(secret)

    message = call(client, takes, change)
    assert not message["success"]
    assert "words that nobody" not in str(message)


def test_an_address_in_a_files_place_is_not_fetched(client: httpx.Client, address: str) -> None:
    message = call(client, "picture", lambda _: file("http://127.0.0.1:9/x.png"))
    assert "an address is no picture" in str(message["output"])


@pytest.mark.parametrize(
    ("takes", "value"),
    [
        ("model", "../../../etc"),
        ("model", {"a": 1}),
        ("prompt", ["x"] * 5),
        ("steps", 10**30),
        ("steps", "many"),
        ("count", 1000),
        ("seed", {}),
        ("mode", "<b>"),
        ("mask", {"background": None, "layers": None, "composite": None, "id": "x"}),
    ],
)
def test_values_that_the_page_never_sends(client: httpx.Client, takes: str, value: object) -> None:
    call(client, takes, lambda _: value)
    assert client.get("").status_code == 200


def test_a_painting_with_a_billion_layers(client: httpx.Client) -> None:
    editor = next(id for id, each in components(client).items() if each["props"].get("elem_id") == "mask")
    data = {"type": "layer", "index": "1000000000", "id": "x"}
    fields = {f"data[{key}]": value for key, value in data.items()}
    plain = {"component_id": str(editor), "fn_name": "accept_blobs", "session_hash": "painter"}
    answer = client.post(
        "gradio_api/component_server", data=plain | fields, files={"files": ("a.png", b"x", "image/png")}
    )
    assert answer.status_code >= 400


def test_nothing_of_the_page_is_elsewhere(client: httpx.Client) -> None:
    styles = client.get("config").json()["stylesheets"]
    assert [style for style in styles if re.match("https?:", style)] == []
