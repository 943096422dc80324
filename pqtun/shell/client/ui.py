"""What the client says to the person who started it, and asks."""

from typing import Protocol


class UserInterface(Protocol):
    """Lines go to stderr (or -E's file); questions to the terminal, /dev/tty, never to stdin."""

    def say(self, text: str) -> None:
        """Print a line, unless -q."""

    def fault(self, text: str) -> None:
        """Print a line about what ends the program, with -q too if it must be known."""

    def debug(self, text: str, level: int = 1) -> None:
        """Print a line if -v was given so often."""

    async def ask(self, prompt: str, *, echo: bool) -> str | None:
        """Ask on the terminal; None if there is none or BatchMode forbids it."""
