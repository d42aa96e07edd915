"""Keeping libraries from fetching what nobody asked for."""

import sys


def fetch_no_kernels() -> None:
    """Hide the package `kernels`: with it, importing bitsandbytes (0.50) fetches code and runs it.

    diffusers imports bitsandbytes where it is installed. Where `kernels` is in use already, it stays.
    """
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
