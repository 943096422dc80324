"""pqtun.pump.tun: what goes wrong without a TUN device. With devices: tests/net/test_pump.py."""

import errno
import fcntl
from pathlib import Path

import pytest

from pqtun.protocol.errors import UserError
from pqtun.pump import tun


@pytest.mark.parametrize("name", ["", "sixteen-letters!", "a/b", "a b", "a\tb", "pq%d", "ääääääää"])
def test_bad_names(name: str) -> None:
    with pytest.raises(UserError, match="interface name"):
        tun.open_tun(name)


def test_no_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tun, "DEVICE", str(tmp_path / "tun"))
    with pytest.raises(UserError, match="modprobe tun"):
        tun.open_tun("pq0")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EPERM, "run as root"),
        (errno.EBUSY, "exists already"),
        (errno.EINVAL, "no TUN device"),
        (errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_refusals_of_the_kernel(number: int, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = tmp_path / "tun"
    device.touch()

    def refuse(*_: object) -> None:
        raise OSError(number, "Cannot allocate memory")

    monkeypatch.setattr(tun, "DEVICE", str(device))
    monkeypatch.setattr(fcntl, "ioctl", refuse)
    with pytest.raises(UserError, match=text) as caught:
        tun.open_tun("pq0")
    assert "pq0" in str(caught.value)
    assert "\n" not in str(caught.value)
