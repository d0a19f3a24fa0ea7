"""Sizes of files and memory as they are written on the command line."""

import re

from conversion import ConversionError

_UNITS = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def parse_size(option: str, text: str) -> int:
    """Bytes of a size such as 5GB, 500MB or 2GiB; raises ConversionError, which names `option`, for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)", text.strip().upper())
    if not match or not float(match[1]):
        raise ConversionError(f"{option} {text!r} is not a size; write a number with KB, MB, GB, KiB, MiB or GiB, such as 5GB")
    return int(float(match[1]) * _UNITS[match[2]])
