"""The terminal while a session runs: raw, and put right again however that ends (kill -9 apart)."""

import atexit
import os
import signal
import termios
from contextlib import suppress


class RawTerminal:
    """A terminal that hands every key through. ``restore`` may be called at any time, and again."""

    def __init__(self, fd: int) -> None:
        """``fd`` is an open terminal, not changed yet."""
        self._fd = fd
        self._before: list[int | list[bytes | int]] | None = None

    def enter(self) -> None:
        """Make it raw, as ssh does: no echo, no signals, no lines, 8 bits."""
        if self._before is None:
            try:
                self._before = termios.tcgetattr(self._fd)
            except termios.error:  # it hung up
                return
            atexit.register(self.restore)
        with suppress(termios.error):
            input_, output, control, local, *rest, characters = termios.tcgetattr(self._fd)
            input_ |= termios.IGNPAR
            input_ &= ~(
                termios.ISTRIP
                | termios.INLCR
                | termios.IGNCR
                | termios.ICRNL
                | termios.IXON
                | termios.IXANY
                | termios.IXOFF
            )
            local &= ~(
                termios.ISIG
                | termios.ICANON
                | termios.ECHO
                | termios.ECHOE
                | termios.ECHOK
                | termios.ECHONL
                | termios.IEXTEN
            )
            output &= ~termios.OPOST
            characters[termios.VMIN], characters[termios.VTIME] = 1, 0
            termios.tcsetattr(self._fd, termios.TCSADRAIN, [input_, output, control, local, *rest, characters])

    def restore(self) -> None:
        """Put back what was there before enter()."""
        if self._before is None:
            return
        atexit.unregister(self.restore)
        # A program in the background would be stopped for it, and nobody be there to let it go on.
        previous = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        try:
            with suppress(termios.error):
                termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)
        finally:
            signal.signal(signal.SIGTTOU, previous)
        self._before = None

    def suspend(self) -> None:
        """Stop this process group as ^Z does, with the terminal as it was; return when it goes on, raw again."""
        self.restore()
        os.kill(0, signal.SIGTSTP)
        self.enter()
