"""pqtun sftp as people use it: its program in a namespace, with OpenSSH's sshd at the other end."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.net.lab import Lab
from tests.net.process import LabError, wait_until
from tests.shell.client.sshd import ADDRESS, PORT, Sshd
from tests.shell.client.terminals import Terminal

pytestmark = pytest.mark.net

ROOT = Path(__file__).resolve().parents[3]


class Client:
    """`pqtun sftp` and `pqtun scp` in the server's namespace, with a home of their own."""

    def __init__(self, sshd: Sshd, home: Path) -> None:
        self.sshd = sshd
        self.there, self.here = home / "there", home / "here"
        self.key, self.batch_mode = sshd.key, "yes"
        for directory in (self.there, self.here):
            directory.mkdir()
        self._env = {
            "HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
            "PATH": os.environ["PATH"],
        }
        (home / ".inputrc").write_text("set completion-query-items 0\nset enable-bracketed-paste off\n")

    def argv(self, program: str, *arguments: str) -> list[str]:
        main = f"import sys; from pqtun.cli.main import main; sys.exit(main(['{program}', *sys.argv[1:]]))"
        options = ["--direct", "-P", str(PORT), "-F", "none", "-i", str(self.key)]
        for name in (f"BatchMode={self.batch_mode}", "StrictHostKeyChecking=yes", "IdentitiesOnly=yes"):
            options += ["-o", name]
        options += ["-o", f"UserKnownHostsFile={self.sshd.known_hosts}", "-o", "GlobalKnownHostsFile=/dev/null"]
        env = ["env", "-i", *(f"{name}={value}" for name, value in self._env.items())]
        return self.sshd.lab.argv(self.sshd.ns, *env, sys.executable, "-c", main, *options, *arguments)

    def run(self, program: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[bytes]:
        argv = self.argv(program, *arguments)
        return subprocess.run(
            argv, input=stdin.encode(errors="surrogateescape"), capture_output=True, timeout=60, cwd=self.here
        )

    def batch(self, text: str, *options: str) -> subprocess.CompletedProcess[bytes]:
        return self.run("sftp", "-b", "-", *options, f"root@{ADDRESS}:{self.there}/", stdin=text)

    def terminal(self, program: str, *arguments: str, columns: int = 80) -> Terminal:
        argv = ["env", "-C", str(self.here), *self.argv(program, *arguments)]
        return Terminal(argv, columns=columns)


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    """An sshd whose commands do not begin with the start-up files of root's shell, which may do anything."""
    with Lab() as lab:
        directory = Path(tmp_path_factory.mktemp("sshd"))
        server = Sshd(lab, lab.namespace("files"), directory)
        with (directory / "sshd_config").open("a") as config:
            config.write(f"SetEnv HOME={directory}\n")
        server.kill()
        server.start()
        yield server


@pytest.fixture
def client(sshd: Sshd, tmp_path: Path) -> Client:
    return Client(sshd, tmp_path)


@pytest.fixture
def typing(client: Client) -> Iterator[Terminal]:
    with client.terminal("sftp", f"root@{ADDRESS}:{client.there}/") as terminal:
        terminal.wait_for("sftp> ")
        yield terminal


def test_a_batch_with_every_command(client: Client) -> None:
    (client.there / "a b").write_text("blank")
    (client.there / "x1").write_text("x1")
    (client.there / "x2").write_text("x2")
    (client.here / "mine").write_text("mine")
    result = client.batch(
        f"""
        # a comment
        pwd
        lpwd
        version
        get "a b"
        get x* {client.here}
        get x1 renamed
        put mine
        put -p mine 'with "quotes"'
        @ls -1
        mkdir dir
        put mine dir
        cp mine dir/copied
        rename x1 dir/moved
        ln -s mine symbolic
        ln mine hard
        chmod 640 x2
        chown 12 x2
        chgrp 34 x2
        ls -ln x2
        -get none
        -rmdir dir
        cd dir
        ls
        cd ..
        rm dir/*
        rmdir dir
        df -h
        df -i
        lmkdir made
        lcd made
        get x2
        lls
        !echo from the shell > made-by-shell
        lumask 077
        get x2 narrow
        help
        progress
        cd
        pwd
        quit
        nonsense never read
        """
    )
    said = result.stdout.decode()
    assert result.returncode == 0, said + result.stderr.decode()
    assert (client.here / "a b").read_text() == "blank"
    assert (client.here / "renamed").read_text() == (client.here / "x1").read_text() == "x1"
    assert sorted(os.listdir(client.there)) == ["a b", "hard", "mine", "symbolic", 'with "quotes"', "x2"]
    assert (client.there / "hard").stat().st_ino == (client.there / "mine").stat().st_ino
    assert os.readlink(client.there / "symbolic") == "mine"
    status = (client.there / "x2").stat()
    assert (status.st_mode & 0o777, status.st_uid, status.st_gid) == (0o640, 12, 34)
    assert (client.here / "made" / "made-by-shell").read_text() == "from the shell\n"
    assert (client.here / "made" / "narrow").stat().st_mode & 0o777 == 0o600
    assert f"Remote working directory: {client.there}" in said
    assert "SFTP protocol version 3" in said
    assert re.search(r"-rw-r-----.* 12 +34 ", said)
    assert "sftp> ls -1" not in said
    assert 'with "quotes"' in said
    assert "copied" in said
    assert "Capacity" in said
    assert "reget" in said
    assert b"none: No such file or directory" in result.stderr
    assert len(result.stderr.splitlines()) == 2  # which may fail


def test_nobody_reads_what_is_printed(client: Client) -> None:
    (client.there / "file").touch()
    argv = client.argv("sftp", "-b", "-", f"root@{ADDRESS}:{client.there}/")
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as nobody:
        result = subprocess.run(argv, input=b"ls\nls\nrm file\n", stdout=nobody, stderr=subprocess.PIPE, timeout=60)
    assert result.returncode == 0, result.stderr
    assert os.listdir(client.there) == []


def test_a_batch_ends_at_its_first_fault(client: Client) -> None:
    result = client.batch("get none\n!touch never\n")
    assert result.returncode == 1
    assert b"No such file" in result.stderr
    assert os.listdir(client.here) == []


def test_lines_that_mean_nothing_may_fail_too(client: Client) -> None:
    result = client.batch("-nonsense\n-get\n@-put 'x\n# nothing\n!touch reached\n")
    assert result.returncode == 0, result.stderr
    assert os.listdir(client.here) == ["reached"]
    assert result.stdout.splitlines() == [b"sftp> -nonsense", b"sftp> -get", b"sftp> !touch reached"]


def test_names_that_are_not_utf8(client: Client) -> None:
    name = b"\xff\xfe \x1b[31m"
    Path(os.fsdecode(os.fsencode(client.there) + b"/" + name)).write_text("odd")
    result = client.batch("ls -1\nget *\nput * twice\n" + f"rename '{os.fsdecode(name)}' plain\n")
    assert result.returncode == 0, result.stderr
    assert [os.fsencode(one) for one in os.listdir(client.here)] == [name]
    assert sorted(os.listdir(client.there)) == ["plain", "twice"]
    assert b"\\377\\376 \\033[31m\n" in result.stdout
    assert b"\x1b" not in result.stdout + result.stderr


def test_a_path_on_the_command_line_is_fetched(client: Client) -> None:
    (client.there / "file").write_text("fetched")
    (client.there / "dir").mkdir()
    (client.there / "dir" / "inner").write_text("inner")
    assert client.run("sftp", f"root@{ADDRESS}:{client.there}/file").returncode == 0
    assert client.run("sftp", f"root@{ADDRESS}:{client.there}/file", "other").returncode == 0
    assert client.run("sftp", "-r", f"root@{ADDRESS}:{client.there}/d*r").returncode == 0
    assert sorted(os.listdir(client.here)) == ["dir", "file", "other"]
    assert client.run("sftp", f"root@{ADDRESS}:{client.there}/none").returncode == 1


def test_no_connection(client: Client) -> None:
    result = client.run("sftp", f"sftp://root@{ADDRESS}:9")
    assert result.returncode == 255
    assert len(result.stderr.splitlines()) == 1
    result = client.run("scp", f"scp://root@{ADDRESS}:9/x", ".")
    assert result.returncode == 1


def test_scp_from_the_command_line(client: Client) -> None:
    (client.there / "file").write_bytes(data := os.urandom(100_000))
    assert client.run("scp", "-p", f"root@{ADDRESS}:{client.there}/file", ".").returncode == 0
    assert (client.here / "file").read_bytes() == data
    result = client.run("scp", "file", "none", f"root@{ADDRESS}:{client.there}/")
    assert (result.returncode, result.stdout) == (1, b"")
    assert result.stderr == b"pqtun scp: none: No such file or directory\n"
    assert client.run("scp", "onlyone").returncode == 1
    assert b"usage" in client.run("scp", "--help").stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("old", [(), ("-O",)], ids=["sftp", "old"])
def test_an_interrupted_scp_says_what_is_not_whole(client: Client, number: signal.Signals, old: tuple[str]) -> None:
    with (client.there / "large").open("wb") as file:
        file.truncate(200 << 30)  # without end, for a test
    with client.terminal("scp", *old, f"root@{ADDRESS}:{client.there}/large", ".") as terminal:
        wait_until(lambda: (client.here / "large").exists() and (client.here / "large").stat().st_size > 0, 20, "data")
        terminal.process.send_signal(number)
        assert terminal.wait() == 128 + number
        said = terminal.wait_for("not whole")
    assert "interrupted after" in said
    assert "Traceback" not in said


def test_scp_shows_progress_on_a_terminal_only(client: Client) -> None:
    (client.there / "file").write_bytes(bytes(100_000))
    arguments = ("scp", f"root@{ADDRESS}:{client.there}/file", ".")
    with client.terminal(*arguments, columns=70) as terminal:
        assert terminal.wait() == 0
        shown = terminal.wait_for("\n")
    last = shown.rstrip("\r\n").split("\r")[-1]
    assert len(last) == 69
    assert last.split()[:3] == ["file", "100%", "98KB"]
    with client.terminal("scp", "-q", *arguments[1:]) as terminal:
        assert terminal.wait() == 0
        with pytest.raises(Exception, match="no "):
            terminal.wait_for("file", 0.1)


def test_completion_and_history(client: Client, typing: Terminal) -> None:
    (client.there / "long name").write_text("content")
    (client.there / "directory").mkdir()
    (client.there / "directory" / "inner").touch()
    typing.type("get lo\t")
    typing.wait_for("get long\\ name ")
    typing.type("\n")
    typing.wait_for("Fetching")
    typing.wait_for("sftp> ")
    assert (client.here / "long name").read_text() == "content"
    typing.type("put lo\tdir\t\n")
    typing.wait_for("put long\\ name directory/")
    typing.wait_for("Uploading")
    typing.wait_for("sftp> ")
    assert (client.there / "directory" / "long name").read_text() == "content"
    typing.type("ls directory/\t\t")
    typing.wait_for("inner")
    typing.wait_for("sftp> ls directory/")
    typing.type("\x15re\t\t")
    typing.wait_for("reconnect")
    typing.type("\x15lpw\t\n")
    typing.wait_for("Local working directory")
    typing.wait_for("sftp> ")
    typing.type("\x1b[A\n")
    typing.wait_for("Local working directory")
    typing.wait_for("sftp> ")
    typing.type("bye\n")
    assert typing.wait() == 0
    assert not typing.raw


@pytest.mark.parametrize("program", ["sftp", "scp"])
def test_an_interrupt_at_a_question_leaves_a_clean_terminal(client: Client, tmp_path: Path, program: str) -> None:
    client.key, client.batch_mode = tmp_path / "key", "no"
    shutil.copy(client.sshd.key, client.key)
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(client.key)], check=True, capture_output=True)
    (client.there / "file").write_text("content")
    arguments = {"sftp": (f"root@{ADDRESS}",), "scp": (f"root@{ADDRESS}:{client.there}/file", ".")}[program]
    with client.terminal(program, *arguments) as terminal:
        terminal.wait_for("passphrase")
        terminal.type("\x03")
        assert terminal.wait() == 128 + signal.SIGINT
        assert not terminal.raw
        with pytest.raises(LabError):
            terminal.wait_for("Traceback", 0.1)
    with client.terminal(program, *arguments) as terminal:
        terminal.wait_for("passphrase")
        terminal.type("secret\n")
        if program == "sftp":
            terminal.wait_for("sftp> ")
            terminal.type("bye\n")
        assert terminal.wait() == 0


def interrupt_prompt(typing: Terminal) -> None:
    """Press ^C until there is a new prompt: one just before the editor waits is only noticed with the next key."""
    for _ in range(20):
        typing.type("\x03")
        try:
            typing.wait_for("sftp> ", 1)
        except LabError:
            continue
        return
    raise LabError("no new prompt")


def test_interrupts_end_the_transfer_and_not_the_program(client: Client, typing: Terminal) -> None:
    with (client.there / "large").open("wb") as file:
        file.truncate(200 << 30)  # without end, for a test
    typing.type("half a line")
    typing.wait_for("half a line")
    interrupt_prompt(typing)
    typing.type("get large\n")
    typing.wait_for("large")
    wait_until(
        lambda: (client.here / "large").exists() and (client.here / "large").stat().st_size > 1 << 20, 20, "data"
    )
    typing.type("\x03")
    typing.wait_for("interrupted after")
    typing.wait_for("is not whole")
    typing.wait_for("sftp> ")
    size = (client.here / "large").stat().st_size
    assert 0 < size < 200 << 30
    typing.type("pwd\n")
    typing.wait_for("Remote working directory")
    typing.wait_for("sftp> ")
    assert (client.here / "large").stat().st_size == size  # nothing goes on behind
    typing.type("\x04")
    assert typing.wait() == 0
    assert not typing.raw


def test_a_broken_transfer_goes_on_after_reconnecting(client: Client) -> None:
    data = os.urandom(6 << 20)
    (client.there / "file").write_bytes(data)
    with client.terminal("sftp", "-l", "20000", f"root@{ADDRESS}:{client.there}/") as typing:
        break_and_go_on(client, typing, data)


def break_and_go_on(client: Client, typing: Terminal, data: bytes) -> None:
    typing.wait_for("sftp> ")
    typing.type("get -f none\n")
    typing.wait_for("sftp> ")
    typing.type("get file\n")
    typing.wait_for("ETA")
    client.sshd.kill()
    try:
        typing.wait_for("the connection was lost")
        typing.wait_for("sftp> ")
        typing.type("ls\n")
        typing.wait_for("reconnect makes one")
        typing.wait_for("sftp> ")
    finally:
        client.sshd.start()
    assert (client.here / "file").stat().st_size < len(data)
    typing.type("reconnect\n")
    typing.wait_for("sftp> ")
    typing.type("reget file\n")
    typing.wait_for("100%")
    typing.wait_for("sftp> ")
    assert (client.here / "file").read_bytes() == data
    typing.type("quit\n")
    assert typing.wait() == 0


def test_the_terminal_is_as_it_was_after_a_signal(typing: Terminal) -> None:
    wait_until(lambda: typing.raw, 20, "the line editor")

    def ended() -> bool:
        # One that comes just before the editor waits for a key is only noticed with the next.
        typing.process.send_signal(signal.SIGTERM)
        return typing.process.poll() is not None

    wait_until(ended, 20, "the end")
    assert typing.wait() == 128 + signal.SIGTERM
    assert not typing.raw
