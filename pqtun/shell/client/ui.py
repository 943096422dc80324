"""What the client says to the person who started it, and asks."""

import os
import signal
import subprocess
import termios
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from pqtun.protocol.errors import UserError
from pqtun.shell.client.printable import printable

_MAX_ANSWER: Final = 1024  # bytes of a line that a person types, as OpenSSH


class UserInterface:
    """Lines go to stderr or a log file; questions to the terminal, /dev/tty, never to stdin."""

    def __init__(self, *, level: str = "INFO", batch: bool = False, log_file: str | None = None) -> None:
        """``level``: LogLevel of ssh_config(5); ``log_file``: -E. Raises UserError if that cannot be written."""
        self.level = level
        self.batch = batch
        self.answered: Callable[[], None] | None = None  # called when a person has answered, or would not
        self._sink: int | None = None
        if log_file is not None:
            try:
                self._sink = os.open(log_file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise UserError(f"Couldn't open logfile {log_file}: {error.strerror}") from None

    @property
    def verbosity(self) -> int:
        """How often -v was given: 0 to 3."""
        return {"DEBUG": 1, "DEBUG1": 1, "DEBUG2": 2, "DEBUG3": 3}.get(self.level, 0)

    def say(self, text: str) -> None:
        """Print a line that -q silences."""
        if self.level not in ("QUIET", "FATAL", "ERROR"):
            self._print(text)

    def fault(self, text: str) -> None:
        """Print what ends the program, or something that failed; only -q silences it."""
        if self.level != "QUIET":
            self._print(text)

    def debug(self, text: str, level: int = 1) -> None:
        """Print a line if -v was given so often."""
        if self.verbosity >= level:
            self._print(f"debug{level}: {text}")

    def banner(self, text: str) -> None:
        """Print what a server says before the login."""
        self.say(text.rstrip("\r\n"))

    def _print(self, text: str) -> None:
        """Print lines, without what could steer the terminal: parts of them may be a server's words."""
        lines = ("\t".join(map(printable, line.rstrip("\r").split("\t"))) for line in text.split("\n"))
        try:
            if self._sink is not None:
                os.write(self._sink, ("\n".join(lines) + "\n").encode())
            else:  # a terminal may be raw now, and needs the return; ssh does the same
                end = "\r\n" if os.isatty(2) else "\n"
                os.write(2, (end.join(lines) + end).encode())
        except OSError:
            pass  # nobody is there to read it

    def ask(self, prompt: str, *, echo: bool) -> str | None:
        """Ask on the terminal, or through SSH_ASKPASS; None if neither can be, or BatchMode forbids it.

        Blocks. Raises KeyboardInterrupt for ^C.
        """
        return None if self.batch else self.read_line(prompt, echo=echo)

    def read_line(self, prompt: str, *, echo: bool) -> str | None:
        """Do as ask does, even with BatchMode: somebody is there, as a key for it was typed."""
        try:
            return _read_line(prompt, echo=echo)
        finally:
            if self.answered is not None:
                self.answered()


def print_text(text: str) -> None:
    """Print to stdout. Raises UserError if that cannot be; that nobody reads on is no fault."""
    try:
        os.write(1, f"{text}\n".encode(errors="surrogateescape"))
    except BrokenPipeError:
        pass
    except OSError as error:
        raise UserError(f"standard output: {error.strerror}") from None


def _read_line(prompt: str, *, echo: bool) -> str | None:
    required = os.environ.get("SSH_ASKPASS_REQUIRE", "")
    program = os.environ.get("SSH_ASKPASS")
    if program and (required in ("force", "prefer")):
        return _ask_program(program, prompt)
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        return _ask_program(program, prompt) if program and has_screen and required != "never" else None
    try:
        return _ask_terminal(terminal, prompt, echo=echo)
    finally:
        os.close(terminal)


def _ask_program(program: str, prompt: str) -> str | None:
    try:
        done = subprocess.run([program, prompt], stdout=subprocess.PIPE, check=False)
    except OSError:
        return None
    return done.stdout.split(b"\n")[0].decode(errors="surrogateescape") if done.returncode == 0 else None


def _ask_terminal(terminal: int, prompt: str, *, echo: bool) -> str | None:
    before = termios.tcgetattr(terminal)
    asking = termios.tcgetattr(terminal)
    asking[3] |= termios.ICANON | termios.ISIG | termios.ECHO
    asking[0] |= termios.ICRNL
    asking[1] |= termios.OPOST
    if not echo:
        asking[3] &= ~(termios.ECHO | termios.ECHONL)
    with ExitStack() as stack:
        stack.callback(termios.tcsetattr, terminal, termios.TCSAFLUSH, before)

        def begin() -> None:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, asking)
            os.write(terminal, prompt.encode(errors="replace"))

        def pause() -> None:
            termios.tcsetattr(terminal, termios.TCSAFLUSH, before)
            os.kill(os.getpid(), signal.SIGSTOP)

        stack.enter_context(_heeding_signals(pause, begin))
        begin()
        line = b""
        while not line.endswith(b"\n") and len(line) < _MAX_ANSWER:
            part = os.read(terminal, _MAX_ANSWER)
            if not part:
                break
            line += part
        if not echo:
            os.write(terminal, b"\n")
    if not line:
        return None
    return line.rstrip(b"\n").decode(errors="surrogateescape")


@contextmanager
def _heeding_signals(pause: Callable[[], None], proceed: Callable[[], None]) -> Iterator[None]:
    """Have the signals that end a program raise KeyboardInterrupt here, so that the terminal is put right first.

    An event loop's handlers would only note them, and the read go on. ``pause`` is called for ^Z, ``proceed`` when the
    program goes on: a shell had the terminal meanwhile, and has left it showing what is typed.
    """

    def interrupt(number: int, _: object) -> None:
        raise KeyboardInterrupt(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    wakeup = signal.set_wakeup_fd(-1)
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    if signal.getsignal(signal.SIGTSTP) == signal.SIG_DFL:  # ignored where no shell could let it go on
        previous[signal.SIGTSTP] = signal.signal(signal.SIGTSTP, lambda *_: pause())
    previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, lambda *_: proceed())
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
