"""Looks for keys in memory and registers of another process: whole, in parts, and as ciphers hold them."""

import ctypes
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

from pqtun.protocol.primitives import kdf

N = TypeVar("N")

PAGE = 4096
CHUNK = 1 << 20
_ZEROS = bytes(PAGE)
_NOT_MEMORY = ("[vvar]", "[vvar_vclock]", "[vsyscall]")
_CLAMP = 0x0FFFFFFC0FFFFFFC0FFFFFFC0FFFFFFF  # RFC 8439 section 2.5
_WORDS = struct.Struct("<8I")


class Region(NamedTuple):
    """A line of /proc/PID/maps (proc(5))."""

    start: int
    end: int
    access: str
    name: str


@dataclass
class Findings(Generic[N]):
    """Where keys were found as a whole, and which parts stand where no whole one is."""

    whole: dict[N, set[int]] = field(default_factory=dict)
    parts: list[tuple[N, str, str]] = field(default_factory=list)

    def names(self) -> set[N]:
        return set(self.whole) | {name for name, _, _ in self.parts}


class _Form(NamedTuple, Generic[N]):
    name: N
    what: str
    data: bytes


class Needles(Generic[N]):
    """Keys, prepared to be looked for.

    Memory is read as words of 8 bytes. Of a key every 8 bytes in a row are looked for, so that half a key is found
    wherever it lies. A cipher may also hold each 4 bytes of it several times in a row (vector registers), and of the
    key of a packet the one-time key of Poly1305, also clamped, and the state that becomes the first keystream for the
    text when the key is added.
    """

    def __init__(self, keys: Mapping[N, bytes], of_packets: set[N]) -> None:
        self._forms: list[_Form[N]] = []
        self._words: dict[int, int] = {}  # 8 bytes: a form that they are in
        self._spread: dict[int, int] = {}
        self._add([_Form(name, "key", key) for name, key in keys.items()], step=1)
        for number, form in enumerate(self._forms):
            for word in _WORDS.unpack(form.data):
                self._spread[word << 32 | word] = number
        for what in ("one-time key", "r", "state"):
            self._add([_Form(name, what, _derived(what, keys[name])) for name in of_packets], step=4)
        self._wanted = frozenset(self._words) | frozenset(self._spread)

    def _add(self, forms: list[_Form[N]], step: int) -> None:
        """``step``: what a place in memory is a multiple of."""
        each = len(forms[0].data) // 8
        blob = b"".join(form.data for form in forms) + bytes(8)
        numbers = range(len(self._forms), len(self._forms) + len(forms))
        for phase in range(0, 8, step):
            words = memoryview(blob)[phase : phase + len(blob) - 8].cast("Q").tolist()
            for place in range(each if phase == 0 else each - 1):
                self._words.update(zip(words[place::each], numbers, strict=True))
        self._forms += forms

    def scan(self, pid: int, *, all_memory: bool = True) -> Findings[N]:
        """Look through registers and memory of a process; of memory perhaps only through what can be written to."""
        found: Findings[N] = Findings()
        for tid, data in registers(pid):
            self._search(data, None, f"registers of {tid}", found)
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for region in regions(pid):
                if "r" not in region.access or region.name in _NOT_MEMORY:
                    continue
                if "w" not in region.access and not all_memory:
                    continue
                for start in range(region.start, region.end, CHUNK):
                    try:
                        data = os.pread(memory.fileno(), min(CHUNK, region.end - start), start)
                    except OSError:  # of a device, or beyond the end of a file
                        continue
                    self._search(data, start, region.name, found)
        return found

    def _search(self, data: bytes, start: int | None, where: str, found: Findings[N]) -> None:
        for page in range(0, len(data), PAGE):
            piece = data[page : page + PAGE]
            if piece == _ZEROS:
                continue
            for word in self._wanted.intersection(memoryview(piece).cast("Q")):
                at = -1
                while (at := piece.find(word.to_bytes(8, "little"), at + 1)) >= 0:
                    self._judge(word, data, page + at, start, where, found)

    def _judge(self, word: int, data: bytes, at: int, start: int | None, where: str, found: Findings[N]) -> None:
        if word in self._words:
            name, what, key = self._forms[self._words[word]]
            begin = at - key.index(word.to_bytes(8, "little"))
            if what == "key" and start is not None and begin >= 0 and data[begin : begin + len(key)] == key:
                found.whole.setdefault(name, set()).add(start + begin)
                return
        elif self._is_spread(word, data, at):
            name, what = self._forms[self._spread[word]].name, "spread"
        else:
            return
        found.parts.append((name, what, f"{where} {(start or 0) + at:x}"))

    def _is_spread(self, word: int, data: bytes, at: int) -> bool:
        """Whether another word of the same key, four times as well, is near."""
        words = _WORDS.unpack(self._forms[self._spread[word]].data)
        near = data[max(at - 64, 0) : at + 128]
        return any(struct.pack("<I", other) * 4 in near for other in words if other != word & 0xFFFFFFFF)


def _derived(what: str, key: bytes) -> bytes:
    """What ChaCha20-Poly1305 makes of a key (RFC 8439 section 2.8); the keystream for the text begins at 64 bytes."""
    once, _, third, fourth = kdf(4, key)
    if what == "one-time key":
        return bytes(once)
    if what == "r":
        return (int.from_bytes(once[:16], "little") & _CLAMP).to_bytes(16, "little")
    stream = _WORDS.unpack(third[16:] + fourth[:16])
    return _WORDS.pack(*((a - b) & 0xFFFFFFFF for a, b in zip(stream, _WORDS.unpack(key), strict=True)))


def regions(pid: int) -> Iterator[Region]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        addresses, access, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(address, 16) for address in addresses.split("-"))
        yield Region(start, end, access, name[0] if name else "")


def flags(pid: int) -> dict[range, set[str]]:
    """What the kernel does with each region: "lo" locked, "dd" not in core dumps (proc(5), VmFlags)."""
    found = {}
    region = range(0)
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *rest = line.split()
        if first == "VmFlags:":
            found[region] = set(rest)
        elif not first.endswith(":"):
            start, end = (int(address, 16) for address in first.split("-"))
            region = range(start, end)
    return found


# ptrace(2): sys/ptrace.h; elf.h
_SEIZE, _INTERRUPT, _GETREGSET, _DETACH = 0x4206, 0x4207, 0x4204, 17
_WALL = 0x40000000
_GENERAL, _FLOATING, _X86_XSTATE = 1, 2, 0x202


class _Vector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long


def _ptrace(request: int, tid: int, number: int = 0, data: object = None) -> None:
    if _libc.ptrace(request, tid, number, data) < 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def registers(pid: int) -> Iterator[tuple[int, bytes]]:
    """General, floating point and vector registers of each thread."""
    for tid in [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]:
        _ptrace(_SEIZE, tid)
        _ptrace(_INTERRUPT, tid)
        os.waitpid(tid, _WALL)
        for kind in (_GENERAL, _FLOATING, _X86_XSTATE):
            buffer = ctypes.create_string_buffer(16384)
            vector = _Vector(ctypes.addressof(buffer), len(buffer))
            try:
                _ptrace(_GETREGSET, tid, kind, ctypes.addressof(vector))
            except OSError:  # another machine
                continue
            yield tid, buffer.raw[: vector.length & ~7]
        _ptrace(_DETACH, tid)
