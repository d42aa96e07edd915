"""Quantities as people read them."""


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min` or `2 d 5 h`."""
    minutes = round(seconds / 60)
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
