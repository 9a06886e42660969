"""Which devices shall have a worker: every GPU of this machine that torch sees, as often as its free memory allows.

A worker's process gets the name of its device in NACZ_DEVICE, and the language model's transformer runs there (see
nacz.predictors.torch_transformer). Knows devices; does not know segments.
"""

from __future__ import annotations

import os

from nacz.errors import UsageError

__all__ = ["devices"]

# The weights, the library itself, and keys and values of a segment, which a decoder takes 2 GB for at most.
_NEEDED = 4 << 30
_MOST = 4  # workers of a device: between its calls each of them uses a processor


def devices() -> list[str]:
    """Return the device of each worker; those that NACZ_DEVICES lists, if it does. Raises UsageError without any."""
    listed = [name.strip() for name in os.environ.get("NACZ_DEVICES", "").split(",") if name.strip()]
    if listed:
        return listed
    try:
        import torch
    except ImportError:
        raise UsageError("GPUs need the extra `torch`: pip install 'nacz[torch]'") from None
    found = []
    for number in range(torch.cuda.device_count()):
        free = torch.cuda.mem_get_info(number)[0]
        found.append((f"cuda:{number}", min(_MOST, free // _NEEDED)))
    if not any(room for _, room in found):
        cause = "torch sees none" if not found else f"each needs {_NEEDED >> 30} GB of free memory"
        raise UsageError(f"no GPU can be used: {cause}")
    # One worker of each device, then a second of each and so on, so that few segments use all of them.
    return [name for turn in range(_MOST) for name, room in found if room > turn]
