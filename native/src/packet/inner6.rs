//! Addresses and checksums of the IPv6 packets inside a tunnel (doc/protocol.md section 8).
//!
//! A sender only clears the destination, and a receiver puts in the addresses that it knows itself, as with IPv4. But
//! these addresses, and `::`, all sum to 0: checksums hold without being touched, also where they cannot be computed, in
//! fragments and in quotes.

use super::checksum::{complement, sum};
use super::inner::{adjust_word, sum_tcp, sum_udp, transport_layout, Checksums, Delivery, Kind};
use super::{is_ipv6, put, word, ICMP6, IPV6_HEADER_BYTES, TCP, TCP_HEADER_BYTES, UDP};

pub(super) const ICMP6_HEADER_BYTES: usize = 8;
/// Errors quote the packet that caused them (RFC 4443): unreachable, too big, time exceeded, parameter problem.
const ICMP6_ERRORS: [u8; 4] = [1, 2, 3, 4];
const ECHO: [u8; 2] = [128, 129];

/// Extension headers (RFC 8200 section 4).
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
pub(super) const FRAGMENT: u8 = 44;
pub(super) const DESTINATION_OPTIONS: u8 = 60;
const FRAGMENT_OFFSET_6: u16 = 0xFFF8;
const MORE_FRAGMENTS_6: u16 = 1;
const FRAGMENT_BYTES: usize = 8;
/// Options before and behind a fragment header, and one to spare.
const MOST_EXTENSIONS: usize = 4;
const PAD1: u8 = 0;
/// Gives a packet another source (RFC 6275 section 6.3).
const HOME_ADDRESS: u8 = 201;

const PREFIX_BYTES: usize = 8;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;

/// The private IPv6 address beside the private IPv4 address `inner`: both in the /64 and with a sum of 0.
#[inline]
fn address6(prefix: [u8; PREFIX_BYTES], inner: [u8; 4]) -> [u8; 16] {
    let [a, b, c, d, e, f, g, h] = prefix;
    let [i, j] = complement(sum(&prefix) + sum(&inner)).to_be_bytes();
    let [w, x, y, z] = inner;
    [a, b, c, d, e, f, g, h, 0, 0, i, j, w, x, y, z]
}

#[inline]
fn prefix_of(address: [u8; 16]) -> [u8; PREFIX_BYTES] {
    let [a, b, c, d, e, f, g, h, ..] = address;
    [a, b, c, d, e, f, g, h]
}

/// What this host may send into tunnels: IPv6 from its own address to the ones that stand for peers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outbound6 {
    own: [u8; 16],
}

impl Outbound6 {
    pub fn new(own: [u8; 16]) -> Self {
        Self { own }
    }

    /// Returns the private IPv4 address beside the destination of a packet that was read from the TUN device.
    ///
    /// Refuses: tun_length, tun_source, tun_destination. Whether the IPv4 address can be a peer's is not looked at.
    #[inline]
    pub fn destination(&self, packet: &[u8]) -> Result<[u8; 4], &'static str> {
        let Some(fixed) = packet.first_chunk::<IPV6_HEADER_BYTES>() else {
            return Err("tun_length");
        };
        if IPV6_HEADER_BYTES + usize::from(word(fixed, 4)) != packet.len() {
            return Err("tun_length");
        }
        if fixed[SOURCE..DESTINATION] != self.own {
            return Err("tun_source");
        }
        let [.., a, b, c, d] = *fixed;
        let inner = [a, b, c, d];
        if fixed[DESTINATION..] != address6(prefix_of(self.own), inner) {
            return Err("tun_destination");
        }
        Ok(inner)
    }
}

/// Readdresses the packets of one peer for this host: from the peer's private address to our own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Inbound6 {
    peer: [u8; 16],
    host: [u8; 16],
}

impl Inbound6 {
    pub fn new(peer: [u8; 4], own6: [u8; 16]) -> Self {
        Self {
            peer: address6(prefix_of(own6), peer),
            host: own6,
        }
    }

    /// Makes the packet for the TUN device, in place. What is refused is left in an undefined state.
    ///
    /// Refuses: inner6_short, inner6_length, inner6_hop_by_hop, inner6_routing, inner6_options, inner6_fragment,
    /// inner6_tcp_length, inner6_udp_length, inner6_icmp_type, inner6_icmp_quote.
    #[inline]
    pub fn deliver(&self, packet: &mut [u8], checksums: Checksums) -> Result<Delivery, &'static str> {
        if packet.len() < IPV6_HEADER_BYTES {
            return Err("inner6_short");
        }
        let len = IPV6_HEADER_BYTES + usize::from(word(packet, 4));
        let Some(packet) = packet.get_mut(..len) else {
            return Err("inner6_length");
        };
        let upper = upper_layer(packet)?;
        put(packet, SOURCE, self.peer);
        put(packet, DESTINATION, self.host);
        let payload = packet.get_mut(upper.at..).unwrap_or(&mut []);
        let transport = upper.at as u16;
        let unfinished = match upper.protocol {
            ICMP6 if !upper.is_later_fragment() => {
                self.icmp(payload)?;
                None
            }
            _ if upper.fragment.is_some() => None,
            TCP if payload.len() < TCP_HEADER_BYTES => return Err("inner6_tcp_length"),
            TCP => sum_tcp(payload, 0, checksums).then_some(Kind::Tcp { transport }),
            UDP => sum_udp(payload, 0, checksums)
                .ok_or("inner6_udp_length")?
                .then_some(Kind::Udp { transport }),
            _ => None,
        };
        let kind = unfinished.unwrap_or(Kind::Other);
        Ok(Delivery { len, kind })
    }

    /// Lets echoes and errors pass, the latter with the quoted packet as this host sent it.
    ///
    /// The rest is for neighbours on a link (RFC 4861) or for routers, which a peer is not. The checksum is adjusted in
    /// case the quote has other addresses than the peer's own.
    fn icmp(&self, message: &mut [u8]) -> Result<(), &'static str> {
        let Some((icmp, quote)) = message.split_at_mut_checked(ICMP6_HEADER_BYTES) else {
            return Err("inner6_icmp_quote");
        };
        match icmp.first() {
            Some(kind) if ECHO.contains(kind) => return Ok(()),
            Some(kind) if ICMP6_ERRORS.contains(kind) => {}
            _ => return Err("inner6_icmp_type"),
        }
        let Some(addresses) = quote.get(SOURCE..IPV6_HEADER_BYTES).filter(|_| is_ipv6(quote)) else {
            return Err("inner6_icmp_quote");
        };
        adjust_word(icmp, 2, sum(addresses));
        put(quote, SOURCE, self.host);
        put(quote, DESTINATION, self.peer);
        Ok(())
    }
}

/// What stands behind the IPv6 header and its extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    pub protocol: u8,
    pub at: usize,
    /// Offset and flags; None in a packet that is whole.
    pub fragment: Option<u16>,
}

impl Upper {
    pub fn is_later_fragment(&self) -> bool {
        self.fragment.is_some_and(|word| word & FRAGMENT_OFFSET_6 != 0)
    }
}

/// Follows the extension headers of a packet that ends where its length says, and has its IPv6 header.
///
/// Refuses: inner6_hop_by_hop, inner6_routing (the peer would have this host forward it), inner6_options,
/// inner6_fragment (one that no sender makes; the headers are to be in the first one whole, RFC 7112).
#[inline]
pub fn upper_layer(packet: &[u8]) -> Result<Upper, &'static str> {
    let mut upper = Upper {
        protocol: packet.get(6).copied().unwrap_or(HOP_BY_HOP),
        at: IPV6_HEADER_BYTES,
        fragment: None,
    };
    for _ in 0..=MOST_EXTENSIONS {
        let rest = packet.get(upper.at..).unwrap_or(&[]);
        match upper.protocol {
            HOP_BY_HOP => return Err("inner6_hop_by_hop"),
            ROUTING => return Err("inner6_routing"),
            _ if upper.is_later_fragment() => return Ok(upper),
            FRAGMENT => {
                let Some((header, payload)) = rest
                    .split_first_chunk::<FRAGMENT_BYTES>()
                    .filter(|_| upper.fragment.is_none())
                else {
                    return Err("inner6_fragment");
                };
                let fragment = word(header, 2);
                check_fragment(fragment, payload.len(), header[0], packet.len())?;
                upper = Upper {
                    protocol: header[0],
                    at: upper.at + FRAGMENT_BYTES,
                    fragment: Some(fragment),
                };
            }
            DESTINATION_OPTIONS => {
                let &[next, length, ..] = rest else {
                    return Err("inner6_options");
                };
                let bytes = usize::from(length) * 8 + 8;
                check_options(rest.get(2..bytes).ok_or("inner6_options")?)?;
                upper = Upper {
                    protocol: next,
                    at: upper.at + bytes,
                    ..upper
                };
            }
            protocol => {
                let least = match protocol {
                    ICMP6 => ICMP6_HEADER_BYTES,
                    _ => transport_layout(protocol).map_or(0, |(_, length)| length),
                };
                if upper.fragment.is_some() && rest.len() < least {
                    return Err("inner6_fragment");
                }
                return Ok(upper);
            }
        }
    }
    Err("inner6_options")
}

/// Refuses fragments that no sender makes. `fragment` is the 16-bit word of offset and flags.
///
/// Refused (inner6_fragment): empty, reaching past 65535 bytes, not in 8-byte units though more follow, and for
/// protocols with ports those that would overwrite the header.
fn check_fragment(fragment: u16, payload: usize, protocol: u8, total: usize) -> Result<(), &'static str> {
    let offset = usize::from(fragment & FRAGMENT_OFFSET_6);
    let header_end = transport_layout(protocol).map_or(0, |(_, length)| length);
    if payload == 0
        || offset + total > 65535 + IPV6_HEADER_BYTES + FRAGMENT_BYTES
        || (fragment & MORE_FRAGMENTS_6 != 0 && payload % 8 != 0)
        || (0 < offset && offset < header_end)
    {
        return Err("inner6_fragment");
    }
    Ok(())
}

/// Accepts well-formed destination options without a home address (RFC 8200 section 4.2). Refuses: inner6_options.
fn check_options(mut options: &[u8]) -> Result<(), &'static str> {
    loop {
        options = match options {
            [] => return Ok(()),
            [PAD1, rest @ ..] => rest,
            [HOME_ADDRESS, ..] | [_] => return Err("inner6_options"),
            [_, length, rest @ ..] => rest.get(usize::from(*length)..).ok_or("inner6_options")?,
        }
    }
}
