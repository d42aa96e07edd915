"""Devices: those that exist, with options that they take."""

import pytest

from sfumato.errors import InvalidRequest
from sfumato.runtime.devices import Device


def test_unknown_device_names_the_available_ones():
    with pytest.raises(InvalidRequest, match=r"device 'TPU': not found here; available are .*CPU"):
        Device("TPU")


@pytest.mark.parametrize("options", [{"precision": "int3"}, {"threads": 0}])
def test_unusable_options(options):
    with pytest.raises(InvalidRequest):
        Device(**options)
