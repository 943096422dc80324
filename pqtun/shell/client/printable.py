"""Names and texts that others chose, made fit for a terminal."""

import unicodedata


def printable(text: bytes | str) -> str:
    """Return `text` with everything that a terminal would obey, or not show, as backslash and octal digits.

    That is control, format (bidirectional overrides) and unassigned characters and bytes that are not UTF-8, as
    OpenSSH's programs print them. A ``str`` may hold bytes as surrogates, as ``os.fsdecode`` gives them.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8", "surrogateescape")
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _octal(letter) for letter in text)


def _octal(letter: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in _bytes_of(letter))


def _bytes_of(letter: str) -> bytes:
    try:
        return letter.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return letter.encode("utf-8", "surrogatepass")


def columns(text: str) -> int:
    """Return how many columns of a terminal a printable text takes: wide characters two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(_width(letter) for letter in text)


def _width(letter: str) -> int:
    if unicodedata.combining(letter):
        return 0
    return 2 if unicodedata.east_asian_width(letter) in "WF" else 1


def fit(text: str, width: int) -> str:
    """Return a printable text cut or filled with spaces to exactly `width` columns (none if `width` is below 1)."""
    kept = []
    left = width
    for letter in text:
        left -= _width(letter)
        if left < 0:
            left += _width(letter)
            break
        kept.append(letter)
    return "".join(kept) + " " * max(left, 0)
