import errno
import os
import socket
import subprocess
import sys

import pytest

from pqtun.daemon.rundir import RunDirectory, pid_path, socket_path
from pqtun.protocol.errors import UserError


def test_one_at_a_time_and_nothing_left(tmp_path):
    run = tmp_path / "run"
    first = RunDirectory(run, "client")
    assert pid_path(run, "client").read_text() == f"{os.getpid()}\n"
    with pytest.raises(UserError, match=rf"a pqtun client runs already \(pid {os.getpid()}"):
        RunDirectory(run, "client")
    beside = RunDirectory(run, "server")
    first.close()
    assert not pid_path(run, "client").exists()
    RunDirectory(run, "client").close()
    beside.close()
    assert not run.exists()


def test_what_a_killed_one_left_is_taken_over(tmp_path):
    run = tmp_path / "run"
    code = (
        "import os, sys; from pathlib import Path; from pqtun.daemon.rundir import RunDirectory;"
        "r = RunDirectory(Path(sys.argv[1]), 'server'); r.listen(0); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(run)], check=False, timeout=30)
    assert socket_path(run, "server").exists()
    again = RunDirectory(run, "server")
    with again.listen(os.getgid()) as listening, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(socket_path(run, "server")))
        listening.accept()[0].close()
    mode = socket_path(run, "server").stat().st_mode & 0o777
    assert mode == 0o660
    again.close()
    assert not run.exists()


def test_unusable_directories(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="--run"):
        RunDirectory(file / "run", "client")
    run = RunDirectory(tmp_path / ("x" * 150), "client")
    with pytest.raises(UserError, match="--run"):
        run.listen(0)
    run.close()


@pytest.mark.root
def test_others_must_not_write_to_it(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    run.chmod(0o777)
    with pytest.raises(UserError, match=r"others may write to .*--run"):
        RunDirectory(run, "client")
    run.chmod(0o755)
    os.chown(run, 65534, 65534)
    with pytest.raises(UserError, match=r"others may write to .*--run"):
        RunDirectory(run, "client")
    assert not list(run.iterdir())


def test_a_directory_that_goes_away_meanwhile_is_made_again(tmp_path, monkeypatch):
    """By another service that ends while this one starts."""
    real_open, run = os.open, tmp_path / "run"
    times = []

    def open_late(path, *arguments):
        if not times:
            run.rmdir()
        times.append(path)
        return real_open(path, *arguments)

    monkeypatch.setattr(os, "open", open_late)
    directory = RunDirectory(run, "client")
    assert len(times) == 2
    assert pid_path(run, "client").exists()
    directory.close()


def test_a_full_disk_is_one_clear_error(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="No space left on device; see --run"):
        RunDirectory(tmp_path / "run", "client")
    assert not (tmp_path / "run").exists()
