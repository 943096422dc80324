"""Escape characters: what a person types at the beginning of a line for ssh itself (ssh(1)). Pure."""

from enum import Enum
from typing import Final

_NEWLINES: Final = b"\r\n"


class Escape(Enum):
    """What may follow the escape character; anything else is sent, with it."""

    TERMINATE = b"."
    SUSPEND = b"\x1a"
    BACKGROUND = b"&"
    LIST = b"#"
    HELP = b"?"
    BREAK = b"B"
    COMMAND = b"C"
    REKEY = b"R"
    QUIETER = b"V"
    LOUDER = b"v"


_ESCAPES: Final = {escape.value: escape for escape in Escape}


class EscapeFilter:
    """Takes what is typed apart into what goes to the server and what is meant for ssh."""

    def __init__(self, character: bytes | None) -> None:
        """``character``: one byte; None: everything goes to the server."""
        self._character = character
        self._pending = False  # the character came, what it is for has not
        self._at_start = True  # of a line

    def feed(self, data: bytes) -> list[bytes | Escape]:
        """Return, in order, bytes for the server and escapes."""
        if self._character is None:
            return [data] if data else []
        found: list[bytes | Escape] = []
        plain = bytearray()
        for number in data:
            byte = bytes([number])
            if self._pending:
                self._pending = False
                if byte in _ESCAPES and byte != self._character:
                    if plain:
                        found.append(bytes(plain))
                        plain.clear()
                    found.append(_ESCAPES[byte])
                    continue
                if byte != self._character:
                    plain += self._character
            elif self._at_start and byte == self._character:
                self._pending = True
                continue
            self._at_start = byte in _NEWLINES
            plain += byte
        if plain:
            found.append(bytes(plain))
        return found

    def help(self, *, shared: bool = False) -> str:
        """Return the text for ``~?``; ``shared``: what another program's connection does not offer is left out."""
        assert self._character is not None
        name = _shown(self._character)
        lines = [
            (".", "terminate connection (and any multiplexed sessions)" if not shared else "terminate session", True),
            ("B", "send a BREAK to the remote system", True),
            ("C", "open a command line", not shared),
            ("R", "request rekey", not shared),
            ("V/v", "decrease/increase verbosity (LogLevel)", not shared),
            ("^Z", "suspend ssh", not shared),
            ("#", "list forwarded connections", not shared),
            ("&", "background ssh (when waiting for connections to terminate)", not shared),
            ("?", "this message", True),
            (name, "send the escape character by typing it twice", True),
        ]
        shown = "".join(f" {name}{letters:<4}- {text}\n" for letters, text, offered in lines if offered)
        return f"Supported escape sequences:\n{shown}(Note that escapes are only recognized immediately after newline.)"


def _shown(character: bytes) -> str:
    return character.decode("ascii") if character[0] >= 32 else "^" + chr(character[0] | 64)
