"""A network namespace of this process's own: a loopback without neighbours, and without a congestion control that paces.

BBR paces even on loopback, and large answers then measure its clock. Of Linux, and for whoever may: root, as a rule.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_GET_FLAGS, _SET_FLAGS = 0x8913, 0x8914
_UP = 0x1
_REQUEST = struct.Struct("16sh22x")
_CONGESTION_CONTROL = Path("/proc/sys/net/ipv4/tcp_congestion_control")


def enter() -> str | None:
    """Put this process, and all that it starts from now on, into one with Reno. Returns why not, if it may not be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(_CLONE_NEWNET) != 0:
            return os.strerror(ctypes.get_errno())
    except (OSError, AttributeError) as error:
        return str(error)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as anything:
        _, flags = _REQUEST.unpack(fcntl.ioctl(anything, _GET_FLAGS, _REQUEST.pack(b"lo", 0)))
        fcntl.ioctl(anything, _SET_FLAGS, _REQUEST.pack(b"lo", flags | _UP))
    try:
        _CONGESTION_CONTROL.write_text("reno")
    except OSError as error:
        return f"Reno: {error.strerror}"
    return None
