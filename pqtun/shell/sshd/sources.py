"""Where a key may be used from: patterns of addresses (PATTERNS in ssh_config(5), `from=` in authorized_keys(5))."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address


class PatternError(ValueError):
    """A list that no address is to be compared with, as its writer meant something else."""


def listed(patterns: str, source: Address) -> bool:
    """Whether a list with commas names the address: one pattern fits, and none with ``!`` does.

    A pattern is an address, a network such as 10.43.0.0/16, or a text with ``*`` and ``?``. Names of hosts fit
    nothing: no name is asked for, as in sshd with UseDNS off. Raises PatternError for an empty pattern and for a
    network whose address has bits behind its prefix.
    """
    fits = False
    refused = False
    for pattern in patterns.split(","):
        negated = pattern.startswith("!")
        wanted = pattern[1:] if negated else pattern
        if not wanted:
            raise PatternError("an empty pattern")
        if _fits(wanted, source):
            fits = fits or not negated
            refused = refused or negated
    return fits and not refused


def in_networks(networks: str, source: Address) -> bool:
    """Whether a list of addresses and networks, without patterns, has the address. Raises PatternError."""
    found = [_network(text) for text in networks.split(",")]
    if None in found:
        raise PatternError("not a list of addresses and networks")
    return any(source in network for network in found if network is not None)


def check(patterns: str) -> None:
    """Raises PatternError where `listed` would."""
    listed(patterns, IPv4Address(0))


def _fits(pattern: str, source: Address) -> bool:
    network = _network(pattern)
    return matches(pattern.lower(), str(source)) if network is None else source in network


def _network(text: str) -> IPv4Network | IPv6Network | None:
    """A network or a single address; None if the text is neither. Raises PatternError if it is a broken network."""
    try:
        return ip_network(text)
    except ValueError:
        if "/" in text:
            raise PatternError(f"not a network: {text}") from None
        return None


def matches(pattern: str, text: str) -> bool:
    """Whether ``*`` (any characters) and ``?`` (one) make the pattern the text; no other character is special.

    Takes no longer than their lengths multiplied, whatever the pattern.
    """
    here = star = at_star = 0
    have_star = False
    position = 0
    while position < len(text):
        if here < len(pattern) and pattern[here] == "*":
            have_star, star, at_star = True, here, position
            here += 1
        elif here < len(pattern) and pattern[here] in ("?", text[position]):
            here += 1
            position += 1
        elif have_star:  # the last star takes one character more
            at_star += 1
            here, position = star + 1, at_star
        else:
            return False
    return not pattern[here:].strip("*")
