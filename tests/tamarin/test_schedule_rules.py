"""The rules of schedule.spthy: what a receiver moves on, what thieves get, and what the attacker can derive."""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.tamarin.models import MODELS, ParseError, Rule, Term, read
from tests.tamarin.test_assumptions import STRICT

SCHEDULE = (MODELS / "schedule.spthy").read_text()
STATE = {"Receiver", "ReceiverSteps", "Epoch", "Blocks", "Key"}  # of a receiver, where it is not for good
KEY_FACTS = {"Key", "SendKey"}
STOLEN = {"Root": "root", "Chain": "chain", "Key": "packet_key"}


def t(name: str, *arguments: Term) -> Term:
    return Term(name, arguments)


def later(epoch: Term, by: int = 1) -> Term:
    for _ in range(by):
        epoch = t("%+", epoch, Term("%1"))
    return epoch


def named(facts: tuple[Term, ...], *names: str) -> list[Term]:
    return [f for f in facts if f.name in names]


def packets(rule: Rule) -> list[tuple[Term, tuple[Term, ...], Term]]:
    """Packets that a rule takes or sends as it should: the ad, the place of the key, and what is in them."""
    found = []
    for fact in named((*rule.premises, *rule.conclusions), "In", "Out"):
        message = rule.expand(fact.arguments[0])
        if message.name != "<>" or len(message.arguments) != 2:
            continue
        ad, sealed = message.arguments
        if sealed.name == "aead":
            key, nonce, authenticated, data = sealed.arguments
            if key.name == "packet_key" and str(nonce) == "'zero'" and authenticated == ad:
                found.append((ad, key.arguments, data))
    return found


def wrong_ads(rules: dict[str, Rule]) -> list[str]:
    """An ad is the header: type, tid, epoch, counter. Block and number in it stand for the counter."""
    found = []
    tids = set()
    for rule in rules.values():
        sealed = [f for f in named((*rule.premises, *rule.conclusions), "In", "Out") if "aead(" in str(rule.expand(f))]
        if len(sealed) != len(packets(rule)):
            found.append(f"{rule.name}: {sealed}")
        for ad, (_, *place), _ in packets(rule):
            kind, *fields = ad.arguments
            if str(kind) != "'02 00'" or len(fields) != 4 or fields[1:] != place:
                found.append(f"{rule.name}: ad {ad}")
                continue
            bound = {str(a) for f in rule.premises if f.name not in ("In", "Fr") for a in f.arguments}
            if not any(name in bound for name in re.findall(r"[~$]?\w+", str(fields[0]))):
                found.append(f"{rule.name}: the tid of {ad} is not the tunnel's")
            tids.add(str(fields[0]))
    return found + [f"tids {sorted(tids)}"] * (len(tids) != 1)


def authentic(rule: Rule, moved: Term) -> bool:
    """Whether a rule takes the packet that it moves on for: itself, or by a fact that only such a packet makes."""
    tunnel, *place, data = moved.arguments
    for _, key, inside in packets(rule):
        if key == (tunnel, *place) and inside == data and named(rule.premises, "In"):
            return True
    if Term("!Authentic_epoch", moved.arguments) in rule.premises:
        return True
    for of in named(rule.premises, "!Epoch_of"):
        by = t("!Authentic_block", of.arguments[0], *place[1:], data)
        if of.arguments[1:] == (tunnel, place[0]) and by in rule.premises:
            return True
    return False


def wrong_moves(rules: dict[str, Rule]) -> list[str]:
    """Each rule that changes a receiver says Moved, of a packet that authenticated."""
    found = []
    for rule in rules.values():
        before, after = (Counter(named(side, *STATE)) for side in (rule.premises, rule.conclusions))
        erases = [a for a in rule.actions if a.name == "Erases" and str(a.arguments[0]) == "'receiver'"]
        makes = named(rule.conclusions, "!Key", "!Epoch_of")
        moved = named(rule.actions, "Moved")
        if rule.name != "Tunnel" and (before != after or erases or makes) and len(moved) != 1:
            found.append(f"{rule.name} changes the receiver without Moved")
        found += [f"{rule.name}: {m} without a packet" for m in moved if not authentic(rule, m)]
        for fact in named(rule.conclusions, "!Authentic_epoch", "!Authentic_block"):
            taken = [(key, data) for _, key, data in packets(rule) if named(rule.premises, "In")]
            if fact.name == "!Authentic_epoch":
                right = [(*key, data) for key, data in taken] == [fact.arguments]
            else:
                epochs = [of.arguments for of in named(rule.premises, "!Epoch_of")]
                right = [(*key, data) for key, data in taken] == [
                    (tunnel, epoch, *fact.arguments[1:]) for run, tunnel, epoch in epochs if run == fact.arguments[0]
                ]
            if not right:
                found.append(f"{rule.name}: {fact} without a packet")
    if [str(f.name) for f in rules["Tunnel"].premises] != ["Fr"] * len(rules["Tunnel"].premises):
        found.append("Tunnel takes more than fresh names")
    return found


def wrong_windows(rules: dict[str, Rule]) -> list[str]:
    """A receiver uses the epochs up to its newest, and only the last five."""
    found = []
    for rule in rules.values():
        newest = [f.arguments[1] for f in named(rule.premises, "Receiver")]
        epochs = {f.arguments[-1] for f in named(rule.premises, "!Epoch_of")}
        epochs |= {f.arguments[-3] for f in named(rule.premises, "!Key", "Key")}
        for epoch in epochs:
            for now in newest:
                if {t("NotAbove", epoch, later(now, STRICT)), t("Below", now, later(epoch, 5))} - set(rule.actions):
                    found.append(f"{rule.name}: epoch {epoch} at {now}")
        if epochs and not newest:
            found.append(f"{rule.name}: epochs without a receiver")
    (five,) = (rules["Five_later"].expand(a) for a in rules["Five_later"].actions)
    if five != t("FiveLater", Term("%e"), later(Term("%e"), 5)):
        found.append(f"Five_later: {five}")
    return found


def wrong_keys(rules: dict[str, Rule]) -> list[str]:
    """Each key is used once, and each chain goes on by one block, whose keys it yields."""
    found = []
    for rule in rules.values():
        for fact in named(rule.premises, *KEY_FACTS, *(f"!{name}" for name in KEY_FACTS)):
            side = "'sender'" if "Send" in fact.name else "'receiver'"
            key = t("packet_key", *fact.arguments[-4:])
            if rule.name.startswith("Steal_"):
                continue
            erased = {t("Reads", Term(side), key), t("Erases", Term(side), key)} <= set(rule.actions)
            if not erased and (fact.name.startswith("!") or fact in rule.conclusions):
                found.append(f"{rule.name} keeps {key}")
        for prefix in ("Send", ""):
            for run, block in (f.arguments for f in named(rule.premises, f"{prefix}Blocks")):
                if t(f"{prefix}Blocks", run, block) in rule.conclusions:
                    continue
                (chain,) = (f for f in named(rule.premises, f"{prefix}Epoch") if f.arguments[0] == run)
                made = named(rule.conclusions, f"{prefix}Key", f"!{prefix}Key")
                place = chain.arguments[1:]
                if (
                    place[-1] != block
                    or t(f"{prefix}Blocks", run, later(block)) not in rule.conclusions
                    or t(chain.name, *chain.arguments[:-1], later(block)) not in rule.conclusions
                    or sorted(str(f.arguments[-1]) for f in made) != ["'1'", "'2'"]
                    or {f.arguments[-4:-1] for f in made} != {place}
                ):
                    found.append(f"{rule.name}: {made}")
    return found


def wrong_thefts(rules: dict[str, Rule]) -> list[str]:
    """For each end and each kind of secret one rule gives what the end has, says so, and leaves it all where it was."""
    found = []
    seen = []
    for rule in rules.values():
        stolen = [a for a in rule.actions if a.name in (f"{kind}Stolen" for kind in STOLEN)]
        outs = [f.arguments[0] for f in named(rule.conclusions, "Out")]
        if not stolen:
            if named(rule.actions, "Stolen") or (rule.name[:3] != "KDF" and any(secrets(o) for o in outs)):
                found.append(f"{rule.name} gives away a secret")
            continue
        (action,) = stolen
        kind = action.name.removesuffix("Stolen")
        side, tunnel, *place = action.arguments
        seen.append((str(side).strip("'"), kind))
        holder = "Sender" if str(side) == "'sender'" else "Receiver"
        (newest,) = (f.arguments[1] for f in named(rule.premises, holder))
        if kind == "Root":
            right = place == [newest] and outs == [t("root", tunnel, later(newest))]
        else:
            right = outs == [t(STOLEN[kind], tunnel, *place)]
            prefix = "Send" if holder == "Sender" else ""
            if kind == "Chain":
                held = [f.arguments[1:] for f in named(rule.premises, f"{prefix}Epoch")]
            else:
                held = [f.arguments[1:] for f in named(rule.premises, f"{prefix}Key", f"!{prefix}Key")]
            right = right and held == [(tunnel, *place)]
        right = right and t("Stolen", side, tunnel, newest) in rule.actions
        kept = {f for f in rule.premises if not f.name.startswith("!")}
        if not right or not kept <= set(rule.conclusions):
            found.append(f"{rule.name}: {action} gives {[*map(str, outs)]}")
    if sorted(seen) != sorted((side, kind) for side in ("sender", "receiver") for kind in STOLEN):
        found.append(f"thefts: {seen}")
    return found


def secrets(term: Term) -> bool:
    """Whether a message has a key in it that is not the key of a packet."""
    if term.name in STOLEN.values():
        return True
    parts = term.arguments[1:] if term.name == "aead" else term.arguments
    return any(map(secrets, parts))


def wrong_derivations(rules: dict[str, Rule]) -> list[str]:
    """The attacker derives what the ends derive, freely."""
    expected = {
        "KDF_2": ("root(r, %e)", ["root(r, (%e%+%1))", "chain(r, %e, %1)"]),
        "KDF_19": (
            "chain(r, %e, %b)",
            ["chain(r, %e, (%b%+%1))", "packet_key(r, %e, %b, '1')", "packet_key(r, %e, %b, '2')"],
        ),
    }
    found = []
    for name, (given, made) in expected.items():
        rule = rules[name]
        if ([*map(str, rule.premises)], rule.actions) != ([f"In({given})"], ()):
            found.append(f"{name}: {rule.premises} {rule.actions}")
        if [*map(str, rule.conclusions)] != [f"Out(<{', '.join(made)}>)"]:
            found.append(f"{name}: {rule.conclusions}")
    return found


CHECKS = [wrong_moves, wrong_windows, wrong_keys, wrong_thefts, wrong_derivations, wrong_ads]


@pytest.mark.parametrize("check", CHECKS)
def test_the_rules_do_what_the_code_does(check: Callable[[dict[str, Rule]], list[str]]) -> None:
    assert check(dict(read(SCHEDULE).rules)) == []


def wrong(rules: dict[str, Rule]) -> set[str]:
    return {line for check in CHECKS for line in check(rules)}


def more_is_wrong(text: str) -> bool:
    try:
        return not wrong(dict(read(text).rules)) <= wrong(dict(read(SCHEDULE).rules))
    except (ParseError, LookupError, ValueError):
        return True


MUTATIONS = [
    ("Out(chain(~r, %e, %b)) ]", "Out('none') ]"),
    ("Out(chain(~r, %e, %b)) ]", "Out(chain(~r, %e, %b %+ %1)) ]"),
    ("[ Sender(~r, %n), Out(root(~r, %n %+ %1)) ]", "[ Sender(~r, %n), Out(root(~r, %n %+ %1 %+ %1)) ]"),
    ("Out(packet_key(~r, %e, %c, $i)) ]", "Out(packet_key(~r, %n, %c, $i)) ]"),
    ("[ Receiver(~r, %n), Epoch(~ep, ~r, %e, %b), Out(", "[ Epoch(~ep, ~r, %e, %b), Out("),
    ("Stolen('receiver', ~r, %n), ChainStolen('receiver', ~r, %e, %b)", "ChainStolen('receiver', ~r, %e, %b)"),
    ("Stolen('receiver', ~r, %n), ChainStolen('receiver', ~r, %e, %b)", "Stolen('receiver', ~r, %n), X(~r, %e, %b)"),
    (", Moved(~r, %e, %c, $i, x) ]->\n  [ Receiver(~r, %n), Epoch(", " ]->\n  [ Receiver(~r, %n), Epoch("),
    ("[ Receiver(~r, %n), Epoch(~ep, ~r, %e, %b %+ %1)", "[ Receiver(~r, %n), Epoch(~ep, ~r, %e, %b)"),
    ("ReceiverSteps(~r, %n), !Authentic_epoch(~r, %m, %c, $i, x)", "ReceiverSteps(~r, %n), In(<%m, %c, $i, x>)"),
    ("Up(~r, ~ep, %n %+ %1), Moved(~r, %m, %c, $i, x) ]", "Up(~r, ~ep, %n %+ %1) ]"),
    (", Newest(~r, %n), Moved(~r, %e, %c, $i, x) ]", ", Newest(~r, %n) ]"),
    (", Newest(~r, %n), Moved(~r, %e, %c, $i, x) ]", ", Newest(~r, %n), Moved(~r, %n, %c, $i, x) ]"),
    ("!Authentic_epoch(~r, %m, %c, $i, x) ]\n", "!Authentic_epoch(~r, %n, %c, $i, x) ]\n"),
    ("!Authentic_block(~ep, %c, $i, x) ]\n\n", "!Authentic_block(~r, %c, $i, x) ]\n\n"),
    ("--[ NotAbove(%e, ", "--[ NotAbove(%n, "),
    ("Below(%n, %e %+ %1 %+ %1 %+ %1 %+ %1 %+ %1)", "Below(%n, %n %+ %1)"),
    ("let f = %e %+ %1 %+ %1 %+ %1 %+ %1 %+ %1 in", "let f = %e %+ %1 %+ %1 %+ %1 in"),
    ("SendEpoch(~es, ~r, %n, %b %+ %1), SendBlocks", "SendEpoch(~es, ~r, %n, %b), SendBlocks"),
    ("~r, %n, %b, '2')", "~r, %n, %b, '1')"),
    ("~r, %e, %b, '2')", "~r, %e, %b, '3')"),
    ("In(chain(r, %e, %b)) ] --[ ]-> ", "In(chain(r, %e, %b)) ] --[ Below(%e, %b) ]-> "),
    ("rule KDF_2[no_derivcheck]:\n  [ In(root(r, %e)) ]", "rule KDF_2[no_derivcheck]:\n  [ Sender(r, %e) ]"),
    ("rule Five_later:", "rule Reset: [ Receiver(~r, %n) ] --> [ Receiver(~r, %1) ]\nrule Five_later:"),
    (
        "rule Five_later:",
        "rule Spill: [ Receiver(~r, %n) ] --> [ Receiver(~r, %n), Out(root(~r, %n)) ]\nrule Five_later:",
    ),
]


@pytest.mark.parametrize(("old", "new"), MUTATIONS)
def test_a_change_of_the_rules_is_found(old: str, new: str) -> None:
    assert old in SCHEDULE
    assert more_is_wrong(SCHEDULE.replace(old, new))


@pytest.mark.parametrize(("name", "fact"), [("Send", "SendKey"), ("Receive", "Key")])
def test_a_key_that_stays_is_found(name: str, fact: str) -> None:
    rule = read(SCHEDULE).rules[name]
    (key,) = named(rule.premises, fact, f"!{fact}")
    kept = replace(
        rule,
        premises=tuple(t(f"!{fact}", *f.arguments) if f == key else f for f in rule.premises),
        actions=tuple(a for a in rule.actions if a.name != "Erases"),
    )
    assert wrong_keys({name: kept})
    assert wrong_keys({name: replace(kept, premises=(*rule.premises, key), conclusions=(*rule.conclusions, key))})


ADS = [("'02 00', tid, %e, %b, $i", True), ("'02 00', %e, %b, $i", False), ("'02 00', tid, %b, %e, $i", False),
       ("'02 00', tid, %b, $i", False), ("'02 00', other, %e, %b, $i", False)]  # fmt: skip


@pytest.mark.parametrize(("ad", "right"), ADS)
def test_an_ad_is_the_header(ad: str, right: bool) -> None:
    sealed = "<ad, aead(packet_key(r, %e, %b, $i), 'zero', ad, m)>"
    text = f"rule A: let ad = <{ad}> in [ T(tid, r, %e, %b, $i), In(other) ] --> [ Out({sealed}) ]"
    assert (wrong_ads(dict(read(text).rules)) == []) == right
