"""Sizes in bytes as people write them."""

import re

_UNITS = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"(?P<number>\d{1,12}(\.\d+)?)\s*(?P<unit>[MG]i?B)", re.IGNORECASE)


def parse_size(text: str) -> int:
    """Bytes of 2GB, 1500 MB or 1.5GiB. Raises ValueError for anything else, and for nothing."""
    found = _SIZE.fullmatch(text.strip())
    if not found or not float(found["number"]):
        raise ValueError(f"{text}: write a size such as 2GB, 1500MB or 1.5GiB")
    return int(float(found["number"]) * _UNITS[found["unit"].lower()])


def checked_size(value: object) -> str:
    """The text as it is. Raises ValueError when it is no size."""
    parse_size(str(value))
    return str(value)
