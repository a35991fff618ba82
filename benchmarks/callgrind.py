"""Talks to the callgrind that this process runs under: begin to count, count from zero, write what was counted.

Valgrind takes its orders as a sequence of instructions that does nothing on a real processor (`valgrind.h`). It is made
here as machine code for x86-64, so that neither a compiler nor a second process is needed.
"""

import ctypes
import mmap
import platform
from typing import Final

_CODE: Final = bytes.fromhex(
    "4889f8"  # mov rax, rdi: the order and its arguments
    "31d2"  # xor edx, edx: the answer outside valgrind
    "48c1c703" "48c1c70d" "48c1c73d" "48c1c733"  # rol rdi, 3, 13, 61, 51: valgrind's mark; 128 bits in all, rdi stays
    "4887db"  # xchg rbx, rbx: the order
    "4889d0"  # mov rax, rdx
    "c3"
)  # fmt: skip
_RUNNING_ON_VALGRIND: Final = 0x1001
_CALLGRIND: Final = ord("C") << 24 | ord("T") << 16
_ZERO, _DUMP, _START, _STOP = _CALLGRIND + 1, _CALLGRIND + 3, _CALLGRIND + 4, _CALLGRIND + 5


class Callgrind:
    """The orders. Without callgrind they do nothing."""

    def __init__(self) -> None:
        if platform.machine() != "x86_64":
            raise RuntimeError("orders to callgrind are known for x86-64 only")
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory.write(_CODE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._order = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_void_p)(address)

    @property
    def listens(self) -> bool:
        """Whether this process runs under valgrind."""
        return bool(self._ask(_RUNNING_ON_VALGRIND))

    def start(self) -> None:
        """Count from now on (the process was started with `--instr-atstart=no`)."""
        self._ask(_START)

    def stop(self) -> None:
        """Count no more: everything is many times as fast."""
        self._ask(_STOP)

    def zero(self) -> None:
        """Forget what was counted."""
        self._ask(_ZERO)

    def dump(self, name: str) -> None:
        """Write what was counted since `zero` to a file of its own, which says `name`."""
        text = ctypes.c_char_p(name.encode())
        self._ask(_DUMP, ctypes.cast(text, ctypes.c_void_p).value or 0)

    def _ask(self, request: int, argument: int = 0) -> int:
        order = (ctypes.c_uint64 * 6)(request, argument)
        return int(self._order(ctypes.addressof(order)))
