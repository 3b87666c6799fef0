"""Gives up what the worker never needs, before it reads an untrusted file. Does nothing outside Linux.

No sockets but local ones (a seccomp filter), no core dumps of people's chats, no new privileges.
Source: seccomp(2), linux/filter.h, linux/audit.h.
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
import sys

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38
_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_AF_UNIX = 1
_X32_CALLS = 0x40000000  # another numbering of the same calls; no other machine counts so far
_IO_URING_SETUP = 425  # everywhere; a ring opens sockets without socket(2)
# machine: (audit architecture, number of socket(2))
_MACHINES = {"x86_64": (0xC000003E, 41), "aarch64": (0xC00000B7, 198)}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def confine() -> bool:
    """Drop the rights of this process for good; return whether sockets are shut off."""
    if sys.platform != "linux":
        return False
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    machine = _MACHINES.get(platform.machine())
    if machine is None or sys.maxsize < 1 << 32:  # 32-bit programs have other numbers on the same machine
        return False
    code = _socket_filter(*machine)
    program = _Program(len(code) // 8, code)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)


def _socket_filter(audit_arch: int, socket_call: int) -> bytes:
    """Return BPF that answers EACCES to socket(2) for all but AF_UNIX, and to all ways around it."""
    denied = _ERRNO | errno.EACCES
    steps = (
        (_LOAD, 0, 0, 4),  # seccomp_data.arch
        (_JUMP_EQUAL, 0, 7, audit_arch),  # machine code may make calls of other architectures
        (_LOAD, 0, 0, 0),  # seccomp_data.nr
        (_JUMP_AT_LEAST, 5, 0, _X32_CALLS),
        (_JUMP_EQUAL, 4, 0, _IO_URING_SETUP),
        (_JUMP_EQUAL, 0, 2, socket_call),
        (_LOAD, 0, 0, 16),  # low half of the first argument
        (_JUMP_EQUAL, 0, 1, _AF_UNIX),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, denied),
    )
    return b"".join(struct.pack("HBBI", *step) for step in steps)
