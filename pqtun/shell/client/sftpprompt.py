"""The prompt of `pqtun sftp`: a line editor with history and completion."""

from __future__ import annotations

import readline
import shutil
import types
from collections.abc import Sequence
from typing import Final

from pqtun.shell.client.printable import printable
from pqtun.shell.client.sftpcompletion import Completion, Names, complete
from pqtun.shell.client.sftplisting import in_columns

PROMPT: Final = "sftp> "


class Prompt:
    """Reads lines with readline(3), which one program has once. Use as a context manager."""

    def __init__(self, remote: Names, local: Names) -> None:
        """`remote` and `local` list directories for completion."""
        self._remote = remote
        self._local = local
        self._found: list[Completion] = []

    def __enter__(self) -> Prompt:
        readline.set_completer(self._completion)
        # The whole line is completed, as only our own parser knows where its words begin.
        readline.set_completer_delims("")
        readline.set_completion_display_matches_hook(self._display)
        readline.set_auto_history(True)
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste off")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        readline.set_completer(None)
        readline.set_completion_display_matches_hook(None)

    def read(self) -> str | None:
        """Return the next line, None at the end of the input. ^C drops the line and asks again."""
        while True:
            try:
                return input(PROMPT)
            except EOFError:
                print()  # noqa: T201  # the shell's prompt begins a line of its own
                return None
            except KeyboardInterrupt:
                print()  # noqa: T201

    def _completion(self, text: str, state: int) -> str | None:
        if state == 0:
            self._found = complete(text, self._remote, self._local)
        return self._found[state].line if state < len(self._found) else None

    def _display(self, substitution: str, matches: Sequence[str], longest: int) -> None:
        shown = [printable(completion.shown) for completion in self._found]
        lines = in_columns(shown, shutil.get_terminal_size().columns)
        print("", *lines, sep="\n")  # noqa: T201
        print(PROMPT + printable(readline.get_line_buffer()), end="", flush=True)  # noqa: T201
        readline.redisplay()
