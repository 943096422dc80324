"""Programs that draw on the whole screen, in a login over the tunnel: what is seen is right, at two sizes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.net.process import wait_until
from tests.net.screen import Screen
from tests.net.shell_stage import ShellStage, shell_stage
from tests.net.ssh_clients import PQTUN_SSH, SSH_9
from tests.net.ssh_keys import ED25519
from tests.net.ssh_servers import PQTUN_SSHD, SSHD_9

# OpenSSH with itself: if that fails, the others say nothing about us.
CELLS = [(SSH_9, SSHD_9), (SSH_9, PQTUN_SSHD), (PQTUN_SSH, SSHD_9), (PQTUN_SSH, PQTUN_SSHD)]
FIRST, SECOND = (80, 24), (132, 43)
LINES = 100_000
PROMPT = "ready>"
CLEAR = r"printf '\033c'"  # once more: what was typed before the prompt was set


@pytest.fixture(scope="module")
def shell() -> Iterator[ShellStage]:
    with shell_stage() as made:
        (made.alice.directory / "notes").write_text("".join(f"line {number}\n" for number in range(1, 201)))
        (made.alice.directory / "many").write_text("".join(f"{number:06} {'=' * 60}\n" for number in range(LINES)))
        (made.alice.directory / "notes").chmod(0o666)
        yield made


@pytest.fixture
def screen(request: pytest.FixtureRequest, shell: ShellStage) -> Iterator[Screen]:
    """A login shell at its prompt, in a window of the first size."""
    client, server = request.param
    shell.server(server)
    columns, rows = FIRST
    screen = Screen(shell.clients[client], "-i", str(shell.keys.path(ED25519)), server, columns=columns, rows=rows)
    try:
        wait_until(lambda: any("$" in row for row in screen.rows()), 20, "the first prompt")
        screen.keys(f"PS1='{PROMPT} '; {CLEAR}", "Enter")
        screen.wait_end(PROMPT)
        yield screen
    finally:
        screen.close()


def cells() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("screen", CELLS, ids=[" ".join(names) for names in CELLS], indirect=True)


@cells()
def test_vim(screen: Screen, shell: ShellStage) -> None:
    def numbered(first: int, last: int) -> list[str]:
        return [f"line {number}" for number in range(first, last + 1)]

    screen.keys("vim.tiny -u NONE -i NONE -n notes", "Enter")
    screen.wait([*numbered(1, FIRST[1] - 1), '"notes" 200 lines'])
    screen.resize(*SECOND)
    screen.wait(numbered(1, SECOND[1] - 1))
    screen.keys("Gothe end", "Escape", ":set ruler", "Enter")
    screen.wait([*numbered(201 - (SECOND[1] - 2), 200), "the end"])
    screen.keys("gg:d", "Enter", ":wq", "Enter")
    screen.wait_end(PROMPT)
    assert (shell.alice.directory / "notes").read_text().split("\n")[-2] == "the end"
    (shell.alice.directory / "notes").write_text("".join(f"line {number}\n" for number in range(1, 201)))


@cells()
def test_htop(screen: Screen) -> None:
    screen.keys("htop -d 5", "Enter")
    for columns, rows in (FIRST, SECOND):
        screen.resize(columns, rows)
        screen.wait(["F1Help  F2Setup F3Search"], row=rows - 1)
        seen = screen.rows()
        (head,) = (number for number, row in enumerate(seen) if row.split()[:2] == ["PID", "USER"])
        processes = [row.split() for row in seen[head + 1 : -1]]
        assert len(processes) == rows - head - 2  # this machine has more than a screen of them
        assert all(fields[0].isdigit() for fields in processes)
    screen.keys("q")
    screen.wait_end(PROMPT)


@cells()
def test_tmux(screen: Screen) -> None:
    """Inside: a status line at the bottom, and a line down the middle between two windows."""
    screen.keys("exec tmux -L $$ -f /dev/null new 'sh'", "Enter")
    screen.wait(["[0] 0:"], row=FIRST[1] - 1)
    screen.keys("C-b", "%")
    for columns, rows in (FIRST, SECOND):
        screen.resize(columns, rows)
        screen.wait(["[0] 0:"], row=rows - 1)
        middle = columns // 2
        wait_until(lambda m=middle, r=rows: all(x[m] == "│" for x in screen.rows()[: r - 1]), 20, "the line")  # type: ignore[misc]
    screen.keys("exit", "Enter")
    wait_until(lambda: "│" not in "".join(screen.rows()), 20, "the end of a half")
    screen.keys("exit", "Enter")
    wait_until(lambda: "[exited]" in screen.rows(), 20, "the end of it all")


@cells()
def test_a_long_cat(screen: Screen) -> None:
    """Every line arrives, in its place, while the size changes in between."""
    for columns, rows in (FIRST, SECOND):
        screen.resize(columns, rows)
        screen.keys(f"{CLEAR}; cat many; echo; echo the last", "Enter")
        screen.wait_end("the last", PROMPT, timeout=60)
    wanted = [f"{number:06} {'=' * 60}" for number in range(LINES)]
    assert screen.rows(history=True)[-LINES - 3 :] == [*wanted, "", "the last", PROMPT]
