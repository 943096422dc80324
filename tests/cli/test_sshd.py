"""`pqtun sshd`: its command line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pqtun.daemon import settings


def pqtun(*words, **options):
    argv = [sys.executable, "-m", "pqtun", "sshd", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, **options)


def test_help_has_every_option():
    said = pqtun("--help", env={**os.environ, "COLUMNS": "200"}).stdout
    for name in settings.option_names(settings.SshdSettings):
        assert f"--{name.replace('_', '-')} " in said
    assert "(42422)" in said


def test_check(tmp_path):
    config = tmp_path / "pqtun.toml"
    config.write_text('[server]\ninterface = "none-such0"\n')
    result = pqtun("--check", "--config", config)
    assert (result.returncode, result.stderr) == (0, "")
    assert "none-such0 is not there yet" in result.stdout
    config.write_text("[sshd]\nport = 0\n")
    result = pqtun("--check", "--config", config)
    assert result.returncode == 1
    assert result.stderr == f"pqtun sshd: {config}, line 2: port = 0: a port is a number from 1 to 65535\n"


@pytest.mark.root
def test_check_looks_at_the_files_that_are_named(tmp_path):
    keys = tmp_path / "keys"
    result = pqtun("--check", "--revoked-keys", keys)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == f"pqtun sshd: revoked_keys: {keys}: no such file; nobody can log in\n"
    keys.touch(mode=0o666)
    keys.chmod(0o666)
    result = pqtun("--check", "--trusted-user-ca-keys", keys)
    assert result.returncode == 1
    assert f"trusted_user_ca_keys: {keys}: bad ownership or modes of the file; no certificate" in result.stderr


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--pam", "a/b"], "--pam a/b: write the name of a file in /etc/pam.d, or none"),
        (["--permit-root-login", "yes"], "--permit-root-login yes: choose one of keys, forced-commands-only, no"),
        (["--user", "none-such"], "user none-such does not exist"),
        (["--user", "root"], "user root is root"),
    ],
)
@pytest.mark.root
def test_mistakes(tmp_path: Path, words, text):
    result = pqtun("--run", tmp_path / "run", "--host-keys", tmp_path / "keys", "--audit", "none", *words)
    assert (result.returncode, result.stdout) == (1, "")
    assert text in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.root
def test_only_root_may_start_it(tmp_path: Path):
    result = pqtun("--run", tmp_path, user=65534, group=65534, extra_groups=[])
    assert result.returncode == 1
    assert "must be started as root" in result.stderr


@pytest.mark.root
def test_nothing_is_left_where_it_cannot_start(tmp_path: Path):
    """`lo` has an address, and somebody listens there already."""
    script = (
        "import socket, subprocess, sys\n"
        "subprocess.run(['ip', 'link', 'set', 'lo', 'up'], check=True)\n"
        "sock = socket.create_server(('127.0.0.1', 42422))\n"
        "sys.exit(subprocess.run(sys.argv[1:]).returncode)\n"
    )
    run = tmp_path / "run"
    words = ["--interface", "lo", "--pam", "none", "--audit", tmp_path / "audit", "--user", "nobody", "--run", run]
    argv = ["unshare", "--net", sys.executable, "-c", script, sys.executable, "-m", "pqtun", "sshd"]
    argv += [str(word) for word in (*words, "--host-keys", tmp_path / "keys")]
    result = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "cannot listen on 127.0.0.1 port 42422: Address already in use; see --port" in result.stderr
    assert not run.exists()
