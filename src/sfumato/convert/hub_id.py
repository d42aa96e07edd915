"""How a model on the Hugging Face Hub is named."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

HOST = r"https?:/+(?:www\.)?(?:huggingface\.co|hf\.co)/"  # a Path of a URL has one slash
SUFFIX = r"\.(?:safetensors|bin|ckpt|pt|pth|pkl)"
NAME = rf"(?![\w.-]+/[\w.-]+{SUFFIX}(?:@|$))\w[\w.-]*/\w[\w.-]*"  # `models/x.ckpt` is a path
FILE = rf"[^@?]+{SUFFIX}"
HUB_ID = re.compile(
    rf"(?:{HOST})?(?P<repo>{NAME})"
    rf"(?:/(?:tree|blob|resolve)/(?P<branch>[^/@?]+))?"
    rf"(?:/(?P<file>{FILE}))?/?(?:\?download=true)?(?:@(?P<revision>\S+))?",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class HubId:
    """A model's repository, `org/name`; a branch, tag or commit of it; one file of it, or all it needs."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        path = f"{self.repo}/{self.file}" if self.file else self.repo
        return path if self.revision == "main" else f"{path}@{self.revision}"


def parse_hub_id(text: str) -> HubId | None:
    """`org/name[/file][@revision]` or a page's address on the Hub; None for whatever else, as paths are."""
    match = HUB_ID.fullmatch(text)
    if match is None:
        return None
    revision = match["revision"] or unquote(match["branch"] or "main")
    return HubId(match["repo"], revision, unquote(match["file"]) if match["file"] else None)
