"""The models' terms, computed, are the bytes that the code makes and takes."""

import ast
import re
import types
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from pqtun.protocol import constants, limits
from pqtun.protocol.errors import MessageError
from tests.tamarin import concrete, steps
from tests.tamarin.models import MODELS, ParseError, Rule, Term, preprocess, read

ROOT = Path(__file__).parents[2]
HANDSHAKE = preprocess((MODELS / "handshake.spthy").read_text())
SCHEDULE = preprocess((MODELS / "schedule.spthy").read_text())
RUST = ("schedule/mod.rs", "limits.rs", "tunnel.rs", "sender.rs", "crypto.rs")

Source = Callable[[str], str]  # the text of a file of the project


def source(path: str) -> str:
    return (ROOT / path).read_text()


def module(path: str, text: Source) -> Any:
    """A module from its text, which may be changed; what it imports is the project's."""
    made = types.ModuleType(path.removesuffix(".py").replace("/", "."))
    exec(compile(text(path), path, "exec"), vars(made))
    return made


def secret(name: str) -> bytes:
    return concrete.kdf(1, name.encode().ljust(32), b"")


def part(rule: Rule, name: str) -> Term:
    """What a rule sends or takes in its message."""
    (fact,) = (f for f in (*rule.premises, *rule.conclusions) if f.name == name)
    return rule.expand(fact.arguments[0])


def keys_made(rule: Rule, known: Mapping[str, bytes]) -> list[bytes]:
    """tid, ti, tr and rs of a rule that ends a handshake."""
    return [concrete.value(rule.expand(Term(name)), known) for name in ("tid", "ti", "tr", "rs")]


def refused(call: Callable[..., object], *arguments: Any) -> str:
    """The reason why the code refuses, "" if it does not."""
    try:
        call(*arguments)
    except MessageError as e:
        return str(e)
    return ""


def fails(check: Callable[..., None], *arguments: Any) -> bool:
    try:
        check(*arguments)
    except (AssertionError, LookupError, MessageError, ParseError, TypeError, ValueError):
        return True
    return False


# -- the handshake ------------------------------------------------------------------------------------------------


def check_handshake(model: str, text: Source) -> None:
    """What the client sends, and the keys that it has afterwards."""
    rule = read(model).rules["Initiator"]
    names = ("~k0", "~k3", "~e", "~s", "~t")
    known = {name: secret(name) for name in names}
    known["skem_ct(mpk, ~k0)"] = b"c" * constants.MCELIECE_CT_BYTES
    known["ekem_ct(npk, ~k3)"] = b"C" * constants.SNTRUP_CT_BYTES
    code = module("pqtun/protocol/handshake.py", text)
    public = {name: concrete.value(Term("^", (Term("'g'"), Term(name))), known) for name in ("~s", "~t")}
    drawn = code.InitiatorSecrets(
        known["skem_ct(mpk, ~k0)"],
        bytearray(known["~k0"]),
        code.X25519Secret(known["~e"]),
        known["ekem_ct(npk, ~k3)"],
        bytearray(known["~k3"]),
    )
    server = code.ServerPublicKey(bytes(constants.MCELIECE_PK_BYTES), public["~s"])
    datagram, session = code.compose(drawn, server, code.EphemeralPublicKey(b"", public["~t"]))
    (out,) = (
        f.arguments[0] for f in rule.conclusions if f.name == "Out" and f.arguments[0].arguments[0].name == "'01 00'"
    )
    assert concrete.value(rule.expand(out), known) == datagram
    assert keys_made(rule, known) == [session.tid, session.send_root, session.recv_root, session.resume_secret]


def check_responder(model: str, text: Source) -> None:
    """What the server takes, and the keys that it has afterwards. The KEMs give it the keys of the model."""
    rule = read(model).rules["Responder"]
    known = {name: secret(name) for name in ("k0", "k3", "~y", "~sx", "~ex")}
    known["skem_ct(skem_pk(~sm), k0)"] = b"c" * constants.MCELIECE_CT_BYTES
    known["ekem_ct(ekem_pk(~en), k3)"] = b"C" * constants.SNTRUP_CT_BYTES
    code = module("pqtun/protocol/handshake.py", text)
    vars(code)["primitives"] = types.SimpleNamespace(
        skem_dec=lambda ciphertext, _: bytearray(known["k0"] if ciphertext[0] == ord("c") else 32),
        ekem_dec=lambda ciphertext, _: bytearray(known["k3"] if ciphertext[0] == ord("C") else 32),
    )
    message = code.parse(concrete.value(part(rule, "In"), known))
    ephemerals = [code.EphemeralSecretKey(b"", key) for key in (secret("a later half minute"), known["~ex"])]
    session = code.respond(message, code.ServerSecretKey(b"", known["~sx"]), ephemerals)
    assert keys_made(rule, known) == [session.tid, session.recv_root, session.send_root, session.resume_secret]


def check_primitives(text: Source) -> None:
    code = module("pqtun/protocol/primitives.py", text)
    key, data, ad = secret("key"), secret("data"), secret("ad")
    for n in (1, 2, 4, 19):
        for given in (b"", data):
            assert b"".join(code.kdf(n, bytearray(key), given)) == concrete.kdf(n, key, given)
    chain, out = bytearray(key), bytearray(64)
    code.mix(chain, data)
    assert chain == concrete.kdf(1, key, data)
    code.expand(bytearray(key), out)
    assert out == concrete.kdf(2, key, b"")
    known = {"k": key, "a": ad, "m": data}
    sealed = concrete.value(Term("aead", (Term("k"), Term("'zero'"), Term("a"), Term("m"))), known)
    assert code.seal(key, ad, data) == sealed
    assert code.open_sealed(key, ad, sealed) == data
    assert code.hash32(data) == concrete.value(Term("h", (Term("m"),)), known)


def check_replays(model: str, text: Source) -> None:
    """What the server remembers of a handshake, and that it is what the model remembers."""
    tree = ast.parse(text("pqtun/daemon/server.py"))
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    (checked,) = (n for n in calls if ast.unparse(n.func) == "self._replays.check")
    (remembered,) = (n for n in calls if ast.unparse(n.func) == "self._replays.remember")
    (name,) = (n.targets[0] for n in ast.walk(tree) if isinstance(n, ast.Assign) and n.value is checked)
    assert ast.unparse(name) == ast.unparse(remembered.args[0])
    term = steps.of_responder(text("pqtun/protocol/handshake.py")).names[ast.unparse(checked.args[0])]
    rule = read(model).rules["Responder"]
    (action,) = (a for a in rule.actions if a.name == "Remembered")
    assert [str(rule.expand(a)) for a in action.arguments] == ["H", str(term)]
    code = module("pqtun/protocol/replay.py", text)
    memory = code.ReplayMemory()
    memory.remember(memory.check(secret("c0"), 0.0), 0.0)
    memory.check(secret("other"), 0.0)
    assert refused(memory.check, secret("c0"), constants.EPHEMERAL_LIFETIME - 1.0) == "replay"


def check_hash(model: str, text: Source) -> None:
    """The announced hash is of both long-term keys, in one order; the model has one hash in place of the tree."""
    for rule, names in (("Initiator", ["mpk", "('g'^~s)"]), ("Long_term_key", ["skem_pk(~sm)", "('g'^~sx)"])):
        made = read(model).rules[rule]
        assert str(made.expand(Term("H"))) == f"h(<{', '.join(names)}>)"
    tree = ast.parse(text("pqtun/protocol/keytree.py"))
    levels = [ast.unparse(n) for n in ast.walk(tree) if isinstance(n, ast.Assign)]
    assert "level = key.mceliece_pk + key.x25519_pk" in levels


# -- the first packets, and resumption ------------------------------------------------------------------------------


def header(tid: bytes, epoch: int, counter: int) -> bytes:
    """The bytes that an ad stands for."""
    return constants.TUNNEL + tid + epoch.to_bytes(2, "big") + counter.to_bytes(4, "big")


def check_packets(model: str, text: Source) -> None:
    """The first packet each way, sent and taken."""
    known = {name: secret(name) for name in ("tid", "ti", "tr")} | {"~m": b"data", "m": b"data"}
    code = module("pqtun/protocol/tunnel.py", text)
    rules = read(model).rules
    for name, send, receive in (
        ("Client_sends", "ti", "tr"),
        ("Server_sends", "tr", "ti"),
        ("Client_receives", "ti", "tr"),
        ("Server_receives", "tr", "ti"),
    ):
        ad, sealed = part(rules[name], "Out" if name.endswith("sends") else "In").arguments
        assert [str(a) for a in ad.arguments] == ["'02 00'", "tid", "'0'", "'0'"]
        known[str(ad)] = header(known["tid"], 0, 0)
        datagram = known[str(ad)] + concrete.value(sealed, known)
        tunnel = code.Tunnel(known["tid"], known[send], known[receive], 0.0)
        if name.endswith("sends"):
            assert tunnel.seal(b"data", 0.0) == datagram
        else:
            assert tunnel.open(datagram, 0.0) == b"data"


def check_resumption(model: str, text: Source) -> None:
    """What the client puts into a resume, and what the server takes."""
    control = module("pqtun/protocol/control.py", text)
    ticket = module("pqtun/daemon/ticket.py", text)
    memory = module("pqtun/daemon/resumption.py", text)
    vars(ticket)["control"] = control
    vars(memory)["resume_proof"] = control.resume_proof
    known = {name: secret(name) for name in ("tid", "old_tid", "old_rs")}
    session = types.SimpleNamespace(tid=known["old_tid"], resume_secret=known["old_rs"])
    item = ticket.Ticket(session, 0.0).resume(known["tid"])
    packet = control.encode([item], IPv4Address(1))
    start = 20 + len(constants.CONTROL_MAGIC) + 3
    (claim,) = control.parse(packet)
    for name, message in (("Client_resumes", "Out"), ("Server_resumes", "In")):
        rule = read(model).rules[name]
        kind, *fields = part(rule, message).arguments[1].arguments[3].arguments
        assert kind == Term("'resume'")
        assert b"".join(concrete.value(field, known) for field in fields) == packet[start:]
        server = memory.ResumptionMemory()
        server.offer(known["old_tid"], known["old_rs"], 0.0)
        assert not server.claim(claim.tid, claim.proof, secret("another tid"))
        assert server.claim(claim.tid, claim.proof, known["tid"])
        assert not server.claim(claim.tid, claim.proof, known["tid"])  # each rs serves once
    (called,) = (
        n
        for n in ast.walk(ast.parse(text("pqtun/daemon/server.py")))
        if isinstance(n, ast.Call) and ast.unparse(n.func) == "self._resumption.claim"
    )
    assert [ast.unparse(a) for a in called.args] == ["claim.tid", "claim.proof", "tid"]


# -- the key schedule ---------------------------------------------------------------------------------------------


def window(model: str) -> int:
    """How many epochs a receiver has, by the rules: those e with n < e + so many, n being the newest."""
    found = set()
    for rule in read(model).rules.values():
        for action in rule.actions:
            if action.name == "Below" and (later := re.fullmatch(r"\(*%e((?:%\+%1\))+)", str(action.arguments[1]))):
                assert str(action.arguments[0]) == "%n"
                found.add(later[1].count("%1"))
    (number,) = found
    return number


def packet_key(root: bytes, epoch: int, counter: int) -> bytes:
    for _ in range(epoch):
        root = concrete.kdf(2, root, b"")[:32]
    chain = concrete.kdf(2, root, b"")[32:]
    for _ in range(counter // 18):
        chain = concrete.kdf(19, chain, b"")[:32]
    return concrete.kdf(19, chain, b"")[32:][32 * (counter % 18) :][:32]


def check_tunnel(model: str, text: Source) -> None:
    """Packets of later epochs and blocks. The ad of the model is the header: type, tid, epoch, counter."""
    ad, sealed = part(read(model).rules["Send"], "Out").arguments
    assert ad.arguments[-3:] == sealed.arguments[0].arguments[1:]  # epoch; block and number in it stand for the counter
    assert sealed.arguments[2] == ad
    code = module("pqtun/protocol/tunnel.py", text)
    send, receive, tid = secret("send"), secret("receive"), secret("tid")
    sender, receiver = code.Tunnel(tid, send, receive, 0.0), code.Tunnel(tid, receive, send, 0.0)
    for number in (0, 1, 3):
        for count in range(40):
            written = header(tid, number, count)
            body = ChaCha20Poly1305(packet_key(send, number, count)).encrypt(bytes(12), b"data", written)
            bare = ChaCha20Poly1305(packet_key(send, number, count)).encrypt(bytes(12), b"data", b"")
            now = 30.0 * number
            assert sender.seal(b"data", now) == written + body
            assert refused(receiver.open, written + bare, now) == "authentication"
            assert receiver.open(written + body, now) == b"data"
            assert refused(receiver.open, written + body, now) == "replay"


def check_receiver(model: str, text: Source) -> None:
    """Which epochs a receiver keeps, that it erases the keys it used, and that a forged packet leaves nothing."""
    code = module("pqtun/protocol/schedule.py", text)
    kept = window(model)
    for newest in range(8):
        schedule = code.ReceiveSchedule(secret("root"), 0.0)
        for _ in range(newest):
            schedule.step(0.0)
        for epoch in range(newest + 1):
            if newest < epoch + kept:
                candidate = schedule.candidate(epoch, 0, 0.0)
                assert bytes(candidate.key) == packet_key(secret("root"), epoch, 0)
                candidate.reject()
                assert not any(candidate.key)
                again = schedule.candidate(epoch, 0, 0.0)
                again.accept()
                assert not any(again.key)
                assert refused(schedule.candidate, epoch, 0, 0.0) == "replay"
            else:
                assert refused(schedule.candidate, epoch, 0, 0.0) == "old_epoch"
    schedule = code.ReceiveSchedule(secret("root"), 0.0)
    schedule.candidate(code.EPOCHS_AHEAD, 0, 0.0).reject()
    assert schedule.newest == 0


def check_engine(text: Source) -> None:
    """Constants and header of the engine in Rust, whose schedule is held to the one in Python by tests of its own."""
    rust = {name: text(f"native/src/{name}") for name in RUST}
    found = {
        name: int(number)
        for name, number in re.findall(
            r"^pub const (\w+): usize = (\d+);", rust["schedule/mod.rs"] + rust["limits.rs"], re.MULTILINE
        )
    }
    assert found["KEYS_PER_BLOCK"] == constants.KEYS_PER_BLOCK == 18
    assert found["MAX_EPOCHS"] == constants.MAX_EPOCHS
    assert found["EPOCHS_AHEAD"] == limits.EPOCHS_AHEAD
    (body,) = re.findall(r"^pub fn put_header\([^{]*\{\n(.*?)^\}", rust["tunnel.rs"], re.MULTILINE | re.DOTALL)
    assert re.findall(r"out\[(.*?)\]\.copy_from_slice\(&?(.*?)\);", body) == [
        ("..2", "TUNNEL"),
        ("2..INDEX_AT", "tid"),
        ("INDEX_AT..INDEX_AT + 2", "epoch.to_be_bytes()"),
        ("INDEX_AT + 2..HEADER", "counter.to_be_bytes()"),
    ]
    assert "split_at_mut(HEADER)" in rust["sender.rs"]
    assert "put_header(header, &tunnel.tid, epoch, " in rust["sender.rs"]
    assert "self.cipher.seal(key, header, body, tag)" in rust["sender.rs"]
    assert "datagram.split_at_mut(HEADER)" in rust["tunnel.rs"]
    assert "cipher.open(key, header, text, tag)" in rust["tunnel.rs"]
    assert "let (epoch, counter) = index(datagram);" in rust["tunnel.rs"]
    assert "const NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];" in rust["crypto.rs"]
    assert len(re.findall(r"Aad::", rust["crypto.rs"])) == len(re.findall(r"Aad::from\(ad\)", rust["crypto.rs"]))


# -- as they are ---------------------------------------------------------------------------------------------------


def test_the_handshake_makes_the_bytes_of_the_model() -> None:
    check_handshake(HANDSHAKE, source)


def test_the_server_makes_the_bytes_of_the_model() -> None:
    check_responder(HANDSHAKE, source)


def test_the_primitives_take_all_that_they_are_given() -> None:
    check_primitives(source)


def test_the_server_remembers_what_the_model_remembers() -> None:
    check_replays(HANDSHAKE, source)


def test_the_hash_is_of_both_long_term_keys() -> None:
    check_hash(HANDSHAKE, source)


def test_the_first_packets_are_the_models() -> None:
    check_packets(HANDSHAKE, source)


def test_a_resume_is_the_models() -> None:
    check_resumption(HANDSHAKE, source)


def test_later_packets_have_the_header_for_ad() -> None:
    check_tunnel(SCHEDULE, source)


def test_a_receiver_keeps_the_epochs_of_the_model() -> None:
    assert window(SCHEDULE) == constants.MAX_EPOCHS
    check_receiver(SCHEDULE, source)


def test_the_engine_has_the_same_constants_and_header() -> None:
    check_engine(source)


# -- changed -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("check", "model", "old", "new"),
    [
        (check_handshake, HANDSHAKE, "C6 = kdf(C4, ~k3, '1')", "C6 = kdf(C4, C3, '1')"),
        (check_handshake, HANDSHAKE, "tr = kdf(C6, T6, '3')", "tr = kdf(C6, T6, '4')"),
        (check_responder, HANDSHAKE, "C4 = kdf(C3, X^~ex, '1')", "C4 = kdf(C3, X^~sx, '1')"),
        (check_resumption, HANDSHAKE, "mac(old_rs, tid)", "mac(tid, old_rs)"),
        (check_resumption, HANDSHAKE, "<'resume', old_tid, mac(old_rs, tid)>", "<'resume', mac(old_rs, tid), old_tid>"),
        (check_replays, HANDSHAKE, "Remembered(H, c0)", "Remembered(H, ~r)"),
        (check_hash, HANDSHAKE, "H = h(<mpk, xpk>)", "H = h(mpk)"),
        (check_packets, HANDSHAKE, "ad = <'02 00', tid, '0', '0'>", "ad = <'02 00', '0', '0', tid>"),
        (check_packets, HANDSHAKE, "kdf(kdf(tr, 'none', '2'), 'none', '2')", "kdf(kdf(ti, 'none', '2'), 'none', '2')"),
        (check_receiver, SCHEDULE, "Below(%n, %e %+ %1 %+ %1 %+ %1 %+ %1 %+ %1)", "Below(%n, %e %+ %1 %+ %1 %+ %1)"),
    ],
)
def test_a_change_of_a_model_is_found(check: Callable[..., None], model: str, old: str, new: str) -> None:
    assert old in model
    assert fails(check, model.replace(old, new, 1), source)


CODE_MUTATIONS = [
    (check_primitives, "primitives.py", "_keystream(_in_place(stream), len(stream), _in_place(key), data)", "pass"),
    (check_primitives, "primitives.py", "if data:", "if not data:"),
    (check_primitives, "primitives.py", "shake_256", "shake_128"),
    (check_primitives, "primitives.py", "decrypt(ZERO_NONCE, sealed, ad)", "decrypt(ZERO_NONCE, sealed, b'')"),
    (check_primitives, "primitives.py", "encrypt(ZERO_NONCE, message, ad)", "encrypt(ZERO_NONCE, message, None)"),
    (check_primitives, "primitives.py", "ZERO_NONCE = bytes(12)", "ZERO_NONCE = b'1' * 12"),
    (check_responder, "handshake.py", "send_root=tr, recv_root=ti", "send_root=ti, recv_root=tr"),
    (check_responder, "handshake.py", "chain, transcript, message.sealed_sntrup", "chain, b'', message.sealed_sntrup"),
    (check_replays, "daemon/server.py", "check(message.c0, now)", "check(message.sealed_sntrup, now)"),
    (check_replays, "daemon/server.py", "remember(name, now)", "remember(message.c0, now)"),
    (check_replays, "replay.py", "self._spans[-1][1].add(name)", "self._spans[-1][1].add(b'')"),
    (check_resumption, "control.py", "blake2b(tid, key=resume_secret)", "blake2b(resume_secret, key=tid)"),
    (check_resumption, "control.py", "_RESUME_TYPE, tid + proof", "_RESUME_TYPE, proof + tid"),
    (check_resumption, "daemon/ticket.py", "resume_proof(self._secret, tid)", "resume_proof(self._secret, self.tid)"),
    (check_resumption, "daemon/resumption.py", "resume_proof(secret, successor)", "resume_proof(secret, tid)"),
    (check_resumption, "daemon/server.py", "claim(claim.tid, claim.proof, tid)", "claim(tid, claim.proof, claim.tid)"),
    (check_hash, "keytree.py", "key.mceliece_pk + key.x25519_pk", "key.mceliece_pk"),
    (check_packets, "tunnel.py", "encrypt(ZERO_NONCE, plaintext, header)", "encrypt(ZERO_NONCE, plaintext, None)"),
    (check_tunnel, "tunnel.py", "_INDEX.pack(send.epoch, counter)", "_INDEX.pack(counter, send.epoch)"),
    (check_tunnel, "tunnel.py", "encrypt(ZERO_NONCE, plaintext, header)", "encrypt(ZERO_NONCE, plaintext, None)"),
    (check_tunnel, "tunnel.py", "datagram[HEADER_BYTES:], datagram[:HEADER_BYTES]", "datagram[HEADER_BYTES:], b''"),
    (check_receiver, "schedule.py", "while len(self._epochs) > MAX_EPOCHS:", "while False:"),
    (check_receiver, "schedule.py", "        key[:] = _ZERO_KEY\n", ""),
    (check_receiver, "schedule.py", "            self._ahead.erase()\n", ""),
]
RUST_MUTATIONS = [
    ("schedule/mod.rs", "MAX_EPOCHS: usize = 5", "MAX_EPOCHS: usize = 9"),
    ("schedule/mod.rs", "KEYS_PER_BLOCK: usize = 18", "KEYS_PER_BLOCK: usize = 17"),
    ("limits.rs", "EPOCHS_AHEAD: usize = 4", "EPOCHS_AHEAD: usize = 40"),
    ("tunnel.rs", "copy_from_slice(&epoch.to_be_bytes())", "copy_from_slice(&counter.to_be_bytes())"),
    ("tunnel.rs", "cipher.open(key, header, text, tag)", "cipher.open(key, &[], text, tag)"),
    ("sender.rs", "self.cipher.seal(key, header, body, tag)", "self.cipher.seal(key, &[], body, tag)"),
    ("crypto.rs", "Aad::from(ad)", "Aad::empty()"),
]


@pytest.mark.parametrize(("check", "path", "old", "new"), CODE_MUTATIONS)
def test_a_change_of_the_code_is_found(check: Callable[..., None], path: str, old: str, new: str) -> None:
    path = f"pqtun/{path}" if "/" in path else f"pqtun/protocol/{path}"
    assert source(path).count(old) == 1
    models = {check_primitives: (), check_tunnel: (SCHEDULE,), check_receiver: (SCHEDULE,)}.get(check, (HANDSHAKE,))
    assert fails(check, *models, lambda asked: source(asked).replace(old, new) if asked == path else source(asked))


@pytest.mark.parametrize(("name", "old", "new"), RUST_MUTATIONS)
def test_a_change_of_the_engine_is_found(name: str, old: str, new: str) -> None:
    path = f"native/src/{name}"
    assert old in source(path)
    assert fails(check_engine, lambda asked: source(asked).replace(old, new, 1) if asked == path else source(asked))
