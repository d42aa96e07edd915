"""How large a picture may be, for models of different sizes."""

import pytest

from sfumato.errors import InvalidRequest
from sfumato.manifest import Manifest
from sfumato.runtime.request import build_request


def manifest(side: int) -> Manifest:
    return Manifest(
        name="toy",
        family="sd",
        precision="fp16",
        components={},
        latents={
            "channels": 4,
            "factor": 8,
            "scale": 1,
            "size_multiple": 8,
            "default_size": (side, side),
        },
        sampling={
            "sampler": "euler",
            "prediction": "epsilon",
            "steps": 4,
            "guidance": 5,
            "scheduler": {},
        },
        files={},
    )


@pytest.mark.parametrize(("own", "largest"), [(64, (1024, 1024)), (512, (2048, 512)), (1024, (2048, 2048))])
def test_largest_picture(own, largest):
    model = manifest(own)
    assert build_request(model, "a cat", {"size": largest}).size == largest
    width, height = largest
    with pytest.raises(InvalidRequest, match=rf"made for {own}x{own} takes {width * height} at most"):
        build_request(model, "a cat", {"size": (width + 8, height)})
