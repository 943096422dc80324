"""Which host keys are accepted."""

import base64
import multiprocessing
import os
import stat
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqtun.protocol.errors import UserError
from pqtun.shell.client import known_hosts, tunnel
from pqtun.shell.client.config import resolve
from pqtun.shell.client.hostkeys import HostKey, KnownHosts, TunnelKeys
from pqtun.shell.client.options import parse
from pqtun.shell.client.ui import UserInterface

HASH = "u1hy1ujsuk258krx3ku6wd9rp96kfxm64mgct3s3j26udp57dbu1"


def key(name="ssh-ed25519", seed=b"a"):
    def string(data):
        return len(data).to_bytes(4, "big") + data

    return HostKey(name, string(name.encode()) + string(seed * 32))


class Spoken(UserInterface):
    """Answers what the test says, and keeps what was said."""

    def __init__(self, *answers):
        super().__init__()
        self.answers = list(answers)
        self.questions = []
        self.said = []

    def ask(self, prompt, *, echo):
        self.questions.append(prompt)
        return self.answers.pop(0) if self.answers else None

    def say(self, text):
        self.said.append(text)

    fault = say


def test_the_first_key_is_kept_and_another_refused(tmp_path):
    store, ui = tmp_path / "deep" / "known", Spoken()
    assert TunnelKeys(HASH, 42422, ui, store).accept(key())
    assert store.read_text().split() == [HASH, "ssh-ed25519", base64.b64encode(key().blob).decode()]
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert not ui.said
    again = TunnelKeys(HASH, 42422, ui, store)
    assert again.known()[0] == [key().blob]
    assert again.preferred() == ["ssh-ed25519"]
    assert not again.accept(key(seed=b"b"))
    assert f"{store}:1" in ui.said[0]
    assert key(seed=b"b").fingerprint in ui.said[0]
    assert "\n" not in ui.said[0]


def test_a_first_key_is_not_kept_if_the_tunnel_has_gone(tmp_path):
    def gone():
        raise UserError("gone")

    store, ui = tmp_path / "known", Spoken()
    with pytest.raises(UserError, match="gone"):
        TunnelKeys(HASH, 42422, ui, store, confirm=gone).accept(key())
    assert not store.exists()
    TunnelKeys(HASH, 42422, ui, store).accept(key())
    assert not TunnelKeys(HASH, 42422, ui, store, confirm=gone).accept(key(seed=b"b"))


def test_the_tunnel_is_asked_for_again(monkeypatch):
    answers = [tunnel.Known("pq1a", "a"), tunnel.Known("pq1b", "b")]
    monkeypatch.setattr(tunnel, "identify", lambda *_: answers.pop(0))
    tunnel.confirm(tunnel.Known("pq1a", "a"), "host", "10.43.0.2")
    with pytest.raises(UserError, match="another tunnel"):
        tunnel.confirm(tunnel.Known("pq1a", "a"), "host", "10.43.0.2")


def test_a_key_of_another_type_is_a_change_too(tmp_path):
    """The server is asked for the kept type first, so one that shows another has lost it."""
    store, ui = tmp_path / "known", Spoken()
    TunnelKeys(HASH, 42422, ui, store).accept(key())
    assert not TunnelKeys(HASH, 42422, ui, store).accept(key("ssh-mldsa44-ed25519"))


def test_keys_that_were_proved_are_learned(tmp_path):
    store, ui = tmp_path / "known", Spoken()
    keys = TunnelKeys(HASH, 42422, ui, store)
    keys.accept(key())
    keys.learn([key("ssh-mldsa44-ed25519"), key()])
    again = TunnelKeys(HASH, 42422, ui, store)
    assert again.preferred() == ["ssh-ed25519", "ssh-mldsa44-ed25519"]
    assert len(store.read_text().splitlines()) == 2


def test_one_key_of_a_type_is_kept(tmp_path):
    """Or a server could show new ones for ever."""
    store, ui = tmp_path / "known", Spoken()
    keys = TunnelKeys(HASH, 42422, ui, store)
    keys.accept(key())
    keys.learn([key(kind, bytes([seed])) for kind in ("ssh-ed25519", "ssh-mldsa44-ed25519") for seed in range(20)])
    again = TunnelKeys(HASH, 42422, ui, store)
    assert again.preferred() == ["ssh-ed25519", "ssh-mldsa44-ed25519"]
    assert again.known()[0][0] == key().blob


def test_hashes_and_ports_have_keys_of_their_own(tmp_path):
    store, ui = tmp_path / "known", Spoken()
    assert TunnelKeys(HASH, 42422, ui, store).accept(key())
    assert TunnelKeys(HASH, 22, ui, store).accept(key(seed=b"b"))
    assert TunnelKeys("0" + HASH[1:], 42422, ui, store).accept(key(seed=b"c"))
    assert [line.split()[0] for line in store.read_text().splitlines()] == [HASH, f"[{HASH}]:22", "0" + HASH[1:]]


def test_a_line_without_an_end_is_not_glued_to(tmp_path):
    store = tmp_path / "known"
    store.write_text("# nothing")
    assert TunnelKeys(HASH, 42422, Spoken(), store).accept(key())
    assert store.read_text().startswith(f"# nothing\n{HASH} ")


def _accept(store, seed, results):
    results.put(TunnelKeys(HASH, 42422, Spoken(), store).accept(key(seed=bytes([seed]))))


def test_of_many_at_once_one_key_is_kept(tmp_path):
    store, context = tmp_path / "known", multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=_accept, args=(store, seed, results)) for seed in range(6)]
    for process in processes:
        process.start()
    accepted = [results.get(timeout=20) for _ in processes]
    for process in processes:
        process.join(20)
    assert len(store.read_text().splitlines()) == 1
    assert accepted.count(True) == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["known"]


# -- known_hosts ---------------------------------------------------------------------------------------


def rules(tmp_path, ui, *lines, strict="ask", host="Host.example", port=22, options=()):
    path = tmp_path / "known_hosts"
    path.write_text("".join(f"{line}\n" for line in lines))
    words = ["-F", "none", "--direct", "-p", str(port), "-o", f"UserKnownHostsFile={path}"]
    words += ["-o", "GlobalKnownHostsFile=none", "-o", f"StrictHostKeyChecking={strict}", *options, host]
    return KnownHosts(resolve(parse(words)), "192.0.2.1", ui), path


def line(name, of, marker=""):
    return f"{marker}{name} {of.algorithm} {base64.b64encode(of.blob).decode()} a comment"


@pytest.mark.parametrize(
    ("names", "port", "found"),
    [
        ("host.example", 22, True),
        ("other,host.example", 22, True),
        ("HOST.example", 22, True),
        ("*.example", 22, True),
        ("*.example,!host.*", 22, False),
        ("ho?t.example", 22, True),
        ("host.example", 2222, True),
        ("host.exampl", 2222, False),
        ("[host.example]:2222", 2222, True),
        ("[host.example]:2222", 22, False),
        ("[*]:2222", 2222, True),
        ("example", 22, False),
    ],
)
def test_names(tmp_path, names, port, found):
    checked, _ = rules(tmp_path, Spoken(), line(names, key()), port=port)
    assert (checked.known()[0] == [key().blob]) is found


def test_hashed_names_of_openssh(tmp_path):
    path = tmp_path / "hashed"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True, timeout=20)
    public = (tmp_path / "k.pub").read_text()
    path.write_text(f"host.example {public}[host.example]:2222 {public}")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(path)], check=True, capture_output=True, timeout=20)
    assert "host.example" not in path.read_text()
    blob = base64.b64decode(public.split()[1])
    for name in ("host.example", "[host.example]:2222"):
        assert [known.blob for known in known_hosts.find([str(path)], [name])] == [blob]
    assert not known_hosts.find([str(path)], ["other.example"])


def test_our_hashed_names_are_found_by_openssh(tmp_path):
    path = tmp_path / "hashed"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "k")], check=True, timeout=20)
    algorithm, blob = (tmp_path / "k.pub").read_text().split()[:2]
    known_hosts.append(str(path), known_hosts.line_of("host.example", algorithm, base64.b64decode(blob), hashed=True))
    found = subprocess.run(
        ["ssh-keygen", "-F", "host.example", "-f", str(path)], capture_output=True, text=True, timeout=20
    )
    assert blob in found.stdout


def test_markers(tmp_path):
    checked, _ = rules(
        tmp_path,
        Spoken(),
        line("*.example", key(seed=b"c"), "@cert-authority "),
        line("*", key(seed=b"r"), "@revoked "),
        line("*", key(seed=b"x"), "@unknown "),
    )
    assert checked.known() == ([], [key(seed=b"c").blob], [key(seed=b"r").blob])


@pytest.mark.parametrize("answer", ["yes", "YES", key().fingerprint])
def test_a_new_key_is_asked_for_and_kept(tmp_path, answer):
    ui = Spoken("maybe", answer)
    checked, path = rules(tmp_path, ui)
    assert checked.accept(key())
    assert "can't be established" in ui.questions[0]
    assert key().fingerprint in ui.questions[0]
    assert len(ui.questions) == 2
    assert path.read_text().split()[:2] == ["host.example", "ssh-ed25519"]
    assert "Permanently added" in ui.said[0]


@pytest.mark.parametrize("answer", ["no", "", None, "SHA256:other"])
def test_no_is_no(tmp_path, answer):
    checked, path = rules(tmp_path, Spoken(answer))
    assert not checked.accept(key())
    assert path.read_text() == ""


def test_accept_new_and_strict(tmp_path):
    ui = Spoken()
    checked, path = rules(tmp_path, ui, strict="accept-new", options=["-o", "HashKnownHosts=yes"])
    assert checked.accept(key())
    assert path.read_text().startswith("|1|")
    checked, path = rules(tmp_path, ui, strict="yes")
    assert not checked.accept(key())
    assert not ui.questions


@pytest.mark.parametrize(("strict", "accepted"), [("yes", False), ("ask", False), ("accept-new", False), ("no", True)])
def test_a_changed_key_is_refused(tmp_path, strict, accepted):
    ui = Spoken("yes")
    checked, path = rules(tmp_path, ui, line("host.example", key()), strict=strict)
    assert checked.accept(key(seed=b"b")) is accepted
    assert any("HAS CHANGED" in said for said in ui.said)
    assert any(f"{path}:1" in said for said in ui.said)
    assert not ui.questions
    assert len(path.read_text().splitlines()) == 1


def test_what_is_known_of_another_port_only_helps(tmp_path):
    """A key of port 22 is good for others of which nothing is known; another key than that is a new one there."""
    ui = Spoken("yes")
    checked, path = rules(tmp_path, ui, line("host.example", key()), port=2222)
    assert checked.known()[0] == [key().blob]
    assert checked.accept(key(seed=b"b"))
    assert len(ui.questions) == 1
    assert path.read_text().splitlines()[1].startswith("[host.example]:2222 ")
    both = line("host.example", key()), line("[host.example]:2222", key(seed=b"b"))
    assert rules(tmp_path, ui, *both, port=2222)[0].known()[0] == [key(seed=b"b").blob]


@pytest.mark.parametrize("asked", [["-A"], ["-X"], ["-L", "1:a:1"], ["-R", "1:a:1"], ["-D", "1"]])
def test_nothing_is_forwarded_with_a_changed_key(tmp_path, asked):
    ui = Spoken()
    checked, _ = rules(tmp_path, ui, line("host.example", key()), strict="no", options=asked)
    assert not checked.accept(key(seed=b"b"))
    assert "forwarding" in ui.said[-1]


def test_an_alias_stands_for_the_host(tmp_path):
    checked, _ = rules(tmp_path, Spoken(), line("other", key()), port=2222, options=["-o", "HostKeyAlias=Other"])
    assert checked.known()[0] == [key().blob]


@given(st.text(max_size=60))
def test_any_line_is_read_or_passed_over(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("known") / "hosts"
    path.write_text(text, errors="surrogatepass", newline="")
    for known in known_hosts.find([str(path)], ["host"]):
        assert known.algorithm


def test_files_that_cannot_be_read_are_passed_over(tmp_path):
    assert known_hosts.find([str(tmp_path), str(tmp_path / "nothing"), os.devnull], ["host"]) == []
