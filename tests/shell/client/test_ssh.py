"""`pqtun ssh` and OpenSSH's sshd: commands, jumps, agents, and what goes wrong."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pqtun.shell.client.config import resolve
from pqtun.shell.client.connect import hop_options
from pqtun.shell.client.options import parse
from tests.net.process import wait_until
from tests.shell.client import login
from tests.shell.client.login import HOST, run, spawn
from tests.shell.client.sshd import ADDRESS, Sshd

pytestmark = pytest.mark.net


@pytest.mark.parametrize(
    ("command", "code"), [("exit 0", 0), ("exit 3", 3), ("exit 255", 255), ("kill -9 $$", 255), ("nothing-such", 127)]
)
def test_exit_codes(sshd: Sshd, command: str, code: int) -> None:
    done = run(sshd, HOST, command)
    assert done.returncode == code
    assert done.stdout == b""


def test_streams_are_kept_apart_and_binary(sshd: Sshd) -> None:
    data = bytes(range(256)) * 4000
    done = run(sshd, HOST, "cat; echo error >&2; exit 4", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (4, data, b"error\n")


def test_much_each_way(sshd: Sshd) -> None:
    data = os.urandom(8 << 20)
    assert run(sshd, HOST, "sha256sum", stdin=data).stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()
    assert run(sshd, HOST, "cat", stdin=data).stdout == data


def test_the_end_of_input_is_passed_on_and_n_gives_none(sshd: Sshd) -> None:
    assert run(sshd, HOST, "cat; echo end", stdin=b"a").stdout == b"aend\n"
    assert run(sshd, "-n", HOST, "cat; echo end", stdin=b"a").stdout == b"end\n"


def test_a_reader_that_leaves_ends_the_command(sshd: Sshd) -> None:
    argv = login.argv(sshd, HOST, "while echo y; do :; done")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=login.environment()) as process:
        assert process.stdout is not None
        assert process.stdout.read(4) == b"y\ny\n"
        process.stdout.close()
        process.wait(20)


def test_environment(sshd: Sshd) -> None:
    command = "echo $SHARED_A,$SHARED_B,$OTHER"
    sent = ["-o", "SendEnv=SHARED_*", "-o", "SetEnv=SHARED_B=set OTHER=no"]
    given = {"SHARED_A": "sent", "SHARED_B": "not", "OTHER": "not"}
    assert run(sshd, *sent, HOST, command, env=given).stdout == b"sent,set,\n"


def test_subsystem(sshd: Sshd) -> None:
    argv = login.argv(sshd, "-s", HOST, "sftp")
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe, stderr=pipe, env=login.environment()) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"\0\0\0\5\1\0\0\0\3")
        process.stdin.flush()
        assert process.stdout.read(9)[4:] == b"\2\0\0\0\3"
        process.stdin.close()
        assert process.wait(20) == 0


def test_a_terminal_is_forced(sshd: Sshd) -> None:
    done = run(sshd, "-tt", HOST, "tty >/dev/null && echo yes")
    assert b"yes\r\n" in done.stdout
    done = run(sshd, "-t", HOST, "tty >/dev/null || echo no")
    assert done.stdout == b"no\n"
    assert done.stderr == b"Pseudo-terminal will not be allocated because stdin is not a terminal.\n"


# -- jumps, agents ---------------------------------------------------------------------------------------


@pytest.fixture
def config(sshd: Sshd, tmp_path: Path) -> Path:
    """For hops too, to which the command line does not go."""
    path = tmp_path / "config"
    path.write_text(
        f"Host *\n Port 22\n User root\n IdentityFile {sshd.key}\n IdentitiesOnly yes\n BatchMode yes\n"
        f" UserKnownHostsFile {tmp_path}/known_hosts\n GlobalKnownHostsFile none\n StrictHostKeyChecking accept-new\n"
    )
    return path


def with_config(sshd: Sshd, config: Path, *arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    argv = sshd.lab.argv(sshd.ns, *login.pqtun.argv("ssh", "--direct", "-F", str(config), *arguments))
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=40, env=login.environment(env)
    )
    return done.returncode, done.stdout, done.stderr


def test_three_hops(sshd: Sshd, config: Path) -> None:
    code, out, err = with_config(
        sshd, config, "-J", "127.0.0.1,root@127.0.0.2:22,127.0.0.3", "127.0.0.4", "echo $SSH_CONNECTION; exit 7"
    )
    assert (code, out.split()[2]) == (7, "127.0.0.4"), err
    known = (config.parent / "known_hosts").read_text()
    assert [line.split()[0] for line in known.splitlines()] == [f"127.0.0.{number}" for number in (1, 2, 3, 4)]


def test_a_hop_that_is_not_there(sshd: Sshd, config: Path) -> None:
    code, _, err = with_config(sshd, config, "-J", "127.0.0.1:9", "127.0.0.4", "true")
    assert (code, err) == (255, "pqtun ssh: connect to host 127.0.0.1 port 9: Connection refused\n")
    code, _, err = with_config(sshd, config, "-J", "127.0.0.1", "-p", "9", "127.0.0.4", "true")
    assert code == 255
    assert err.splitlines()[-1].startswith("pqtun ssh: jump host: channel open to 127.0.0.4:9 failed")


def test_tokens_in_a_jump_host(sshd: Sshd, config: Path) -> None:
    code, _, err = with_config(sshd, config, "-v", "-o", "ProxyJump=%r@127.0.0.2:%p,%h", "127.0.0.3", "true")
    assert code == 0, err
    assert [f"Authenticated to 127.0.0.{number}" in err for number in (1, 2, 3)] == [False, False, True]
    assert "Connecting to 127.0.0.2" in err


def test_a_hop_is_lent_no_agent(sshd: Sshd, config: Path) -> None:
    options = parse(["--direct", "-F", str(config), "-A", "-X", "127.0.0.1"])
    config.write_text(config.read_text() + " ForwardAgent yes\n ForwardX11 yes\n")
    hop = resolve(hop_options(options, resolve(options), "127.0.0.2"))
    assert (hop.forwardagent, hop.forwardx11) == ("no", False)


def test_hops_in_a_circle_end(sshd: Sshd, config: Path) -> None:
    config.write_text(config.read_text() + " ProxyJump 127.0.0.1\n")
    code, _, err = with_config(sshd, config, "127.0.0.2", "true")
    assert code == 255
    assert "jump hosts, or a loop" in err


def test_proxy_command(sshd: Sshd, config: Path) -> None:
    ours = " ".join(login.pqtun.argv("ssh", "--direct", "-F", str(config)))
    code, out, err = with_config(sshd, config, "-o", f"ProxyCommand={ours} -W %h:%p 127.0.0.2", "127.0.0.3", "echo on")
    assert (code, out) == (0, "on\n"), err
    code, _, err = with_config(sshd, config, "-o", "ProxyCommand=false", "127.0.0.3", "true")
    assert code == 255
    assert err.startswith(("pqtun ssh: Connection closed by ", "pqtun ssh: Connection reset by "))


def test_a_proxy_command_needs_direct(sshd: Sshd, config: Path) -> None:
    argv = login.pqtun.argv("ssh", "-F", str(config), "-o", "ProxyCommand=true", "127.0.0.3")
    done = sshd.lab.run(sshd.ns, *argv, check=False, env=login.pqtun.environment())
    assert done.returncode == 255
    assert "--direct allows it" in done.stderr


@pytest.fixture
def agent(sshd: Sshd, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "agent"
    process = subprocess.Popen(["ssh-agent", "-D", "-a", str(path)], stdout=subprocess.DEVNULL)
    try:
        wait_until(path.exists, 10, "the agent")
        subprocess.run(
            ["ssh-add", "-q", str(sshd.key)], env={**os.environ, "SSH_AUTH_SOCK": str(path)}, check=True, timeout=20
        )
        yield str(path)
    finally:
        process.kill()
        process.wait(10)


def test_agent(sshd: Sshd, config: Path, agent: str) -> None:
    config.write_text(config.read_text().replace(f"IdentityFile {sshd.key}\n IdentitiesOnly yes", "IdentityFile none"))
    env = {"SSH_AUTH_SOCK": agent}
    assert with_config(sshd, config, ADDRESS, "true", env=env)[0] == 0
    assert with_config(sshd, config, "-o", "IdentityAgent=none", ADDRESS, "true", env=env)[0] == 255
    assert with_config(sshd, config, "-o", f"IdentityAgent={agent}", ADDRESS, "true")[0] == 0
    code, out, _ = with_config(sshd, config, "-A", ADDRESS, "ssh-add -l", env=env)
    assert (code, out.count("ED25519")) == (0, 1)
    code, out, _ = with_config(sshd, config, ADDRESS, "ssh-add -l", env=env)
    assert code == 2


def test_certificate_beside_the_key(sshd: Sshd, config: Path, tmp_path: Path) -> None:
    """A key that is not authorized, with a certificate of a CA that is."""
    for name in ("ca", "key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / name)], check=True, timeout=20
        )
    authorized = Path(f"{sshd.key}.pub")
    before = authorized.read_text()
    text = config.read_text().replace(str(sshd.key), str(tmp_path / "key"))
    config.write_text(text)
    try:
        authorized.write_text(f"{before}cert-authority {(tmp_path / 'ca.pub').read_text()}")
        assert with_config(sshd, config, ADDRESS, "true")[0] == 255
        sign = ["ssh-keygen", "-q", "-s", str(tmp_path / "ca"), "-I", "me", "-n", "root", str(tmp_path / "key.pub")]
        subprocess.run(sign, check=True, timeout=20)
        assert with_config(sshd, config, ADDRESS, "true")[0] == 0
    finally:
        authorized.write_text(before)


def test_host_certificates(sshd: Sshd, config: Path, tmp_path: Path) -> None:
    """A CA in known_hosts changes nothing for a server without a certificate: its key is not known."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "ca")], check=True, timeout=20)
    known = tmp_path / "known_hosts"
    known.write_text(f"@cert-authority * {(tmp_path / 'ca.pub').read_text()}")
    code, _, err = with_config(sshd, config, "-o", "StrictHostKeyChecking=yes", ADDRESS, "true")
    assert code == 255
    assert err.endswith("Host key verification failed.\n")
    known.write_text(f"@revoked * {(sshd.directory / 'host.pub').read_text()}")
    assert with_config(sshd, config, ADDRESS, "true")[0] == 255


# -- what goes wrong -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-p", "9", ADDRESS, "true"], "connect to host 127.0.0.1 port 9: Connection refused"),
        (["nothing.invalid", "true"], "Could not resolve hostname nothing.invalid: "),
        (["-l", "nobody-such", ADDRESS, "true"], "nobody-such@127.0.0.1: Permission denied (publickey)."),
        (
            ["-o", "KexAlgorithms=mlkem768x25519-sha256", ADDRESS, "true"],
            "Unable to negotiate with 127.0.0.1 port 22",
        ),
        (["-o", "Ciphers=nothing", ADDRESS], "Ciphers=nothing leaves no algorithm"),
        (["-o", "BindAddress=::1", ADDRESS], "connect to host 127.0.0.1 port 22: Address family for hostname not supp"),
        (["-o", "BindAddress=\udcff", ADDRESS], "connect to host 127.0.0.1 port 22: Cannot assign requested address"),
        (["-o", "BindInterface=\udcff", ADDRESS], "connect to host 127.0.0.1 port 22: No such device"),
        (["-o", "RemoteCommand=a", ADDRESS, "true"], "Cannot execute command-line and remote command."),
        (["-o", "ConnectTimeout=1", "192.0.2.1", "true"], "connect to host 192.0.2.1 port 22: "),
    ],
)
def test_errors_are_one_line(sshd: Sshd, arguments: list[str], line: str) -> None:
    words = sshd.options() if arguments[0] != "-p" else sshd.options()[:-2]
    argv = sshd.lab.argv(sshd.ns, *login.pqtun.argv("ssh", "--direct", *arguments[:2], *words, *arguments[2:]))
    if arguments[0] == "-p":
        words = [word for word in words if word not in ("-p", "22")]
        argv = sshd.lab.argv(sshd.ns, *login.pqtun.argv("ssh", "--direct", *arguments[:2], *words, *arguments[2:]))
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, env=login.environment())
    assert done.returncode == 255
    assert done.stderr.startswith(f"pqtun ssh: {line}")
    assert done.stderr.count("\n") == 1


def test_wrong_usage_shows_how(sshd: Sshd) -> None:
    done = run(sshd, "-y", HOST)
    assert done.returncode == 255
    assert done.stderr.startswith(b"pqtun ssh: unknown option -- y\nusage: pqtun ssh ")


def test_q_says_nothing(sshd: Sshd) -> None:
    done = run(sshd, "-q", "-l", "nobody-such", ADDRESS, "true")
    assert (done.returncode, done.stdout, done.stderr) == (255, b"", b"")


def test_a_changed_host_key_is_refused(sshd: Sshd, config: Path, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True, timeout=20)
    (tmp_path / "known_hosts").write_text(f"{ADDRESS} {(tmp_path / 'k.pub').read_text()}")
    code, _, err = with_config(sshd, config, ADDRESS, "true")
    assert code == 255
    assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in err
    assert f"{tmp_path}/known_hosts:1" in err


def test_unsafe_and_other_keys_are_named(sshd: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "rsa", "-N", "", "-f", str(tmp_path / "rsa")], check=True, timeout=60)
    keys = ["-i", str(tmp_path / "rsa"), "-i", str(tmp_path / "nowhere")]
    done = run(sshd, *keys, "-l", "nobody-such", ADDRESS, "true")
    assert done.returncode == 255
    assert b"PubkeyAcceptedAlgorithms" in done.stderr
    assert b"nowhere not accessible" in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_it(sshd: Sshd, number: signal.Signals) -> None:
    process = spawn(sshd, HOST, "echo started; sleep 60")
    process.wait_output("started", 20)
    process.signal(number)
    assert process.wait(10) == 255


def test_an_ended_server_is_told(sshd: Sshd) -> None:
    process = spawn(sshd, HOST, "echo started; kill -9 $PPID; sleep 60")
    process.wait_output("closed by remote host", 20)
    assert process.wait(10) == 255


def test_a_server_that_does_not_answer_any_more(sshd: Sshd) -> None:
    """ServerAliveInterval: the server's process is stopped."""
    process = spawn(
        sshd, "-o", "ServerAliveInterval=1", "-o", "ServerAliveCountMax=1", HOST, "echo pid $PPID; sleep 60"
    )
    process.wait_output("pid ", 20)
    pid = int(process.output().split("pid ")[1].split()[0])
    os.kill(pid, signal.SIGSTOP)
    try:
        process.wait_output("not responding", 20)
        assert process.wait(10) == 255
    finally:
        os.kill(pid, signal.SIGKILL)


def test_verbose_shows_where_it_goes(sshd: Sshd, tmp_path: Path) -> None:
    done = run(sshd, "-v", HOST, "true")
    assert b" to 127.0.0.1 [127.0.0.1] port 22." in done.stderr
    log = tmp_path / "log"
    done = run(sshd, "-vv", "-E", str(log), HOST, "true")
    assert done.stderr == b""
    assert "debug1: Offering public key" in log.read_text()


def test_print_config_and_version(sshd: Sshd) -> None:
    done = run(sshd, "-G", "-l", "me", ADDRESS)
    assert b"\nuser me\n" in done.stdout
    assert run(sshd, "-V").stdout.startswith(b"pqtun ")
    assert b"--direct" in run(sshd, "--help").stdout


def test_local_command(sshd: Sshd, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    flags = ["-o", f"LocalCommand=echo %h %r > {mark}"]
    assert run(sshd, *flags, HOST, "true").returncode == 0
    assert not mark.exists()
    assert run(sshd, "-o", "PermitLocalCommand=yes", *flags, HOST, "true").returncode == 0
    assert mark.read_text() == "127.0.0.1 root\n"
