"""Which work the native engine leaves to the kernel, and the names that each has in the settings and in the status."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Final


@dataclass(frozen=True, slots=True)
class Offload:
    """What the engine may use where the kernel has it."""

    tun_tso: bool  # read TCP from the TUN device in segments of up to 64 KB (IFF_VNET_HDR, TUN_F_TSO4, TUN_F_TSO6)
    tun_uso: bool  # the same for UDP (TUN_F_USO4, TUN_F_USO6)
    tun_gro: bool  # write runs of a flow's packets to the TUN device as one
    udp_gso: bool  # send runs of datagrams to one peer as one message (UDP_SEGMENT)
    udp_gro: bool  # receive runs of datagrams as one message (UDP_GRO)
    multi_queue: bool  # a TUN queue and a UDP socket for each worker

    @property
    def vnet_header(self) -> bool:
        """Whether packets of the TUN device carry a virtio header."""
        return self.tun_tso or self.tun_uso or self.tun_gro

    @property
    def names(self) -> list[str]:
        """Those that may be used."""
        return [name for name in NAMES if getattr(self, _field(name))]

    def __str__(self) -> str:
        """Return the form that ``parse`` reads."""
        if self == ALL:
            return "auto"
        return ",".join(self.names) or "off"


def _field(name: str) -> str:
    return name.replace("-", "_")


NAMES: Final = tuple(field.name.replace("_", "-") for field in fields(Offload))
ALL: Final = Offload(*[True] * len(NAMES))
NONE: Final = Offload(*[False] * len(NAMES))


def parse(words: Iterable[str]) -> Offload:
    """Read ``auto``, ``off``, the names of those that may be used, or ``-`` and the names of those that may not.

    Raises ValueError.
    """
    words = list(words)
    if words in (["auto"], ["off"]):
        return ALL if words == ["auto"] else NONE
    refused = [word.removeprefix("-") for word in words if word.startswith("-")]
    for name in (word.removeprefix("-") for word in words):
        if name not in NAMES:
            raise ValueError(f"choose auto, off, or some of {', '.join(NAMES)}")
    if not words or len(refused) not in (0, len(words)):
        raise ValueError("name either those to use, or those to leave out, each with a '-' before it")
    chosen = set(NAMES).difference(refused) if refused else set(words)
    return Offload(**{_field(name): name in chosen for name in NAMES})
