//! Addresses and checksums of the packets inside a tunnel (doc/protocol.md section 7).
//!
//! A sender only clears the destination. It leaves all checksums as they were, so they are stale in the tunnel; the
//! receiver puts in the addresses that it knows itself and makes the checksums right. What is said of IPv4 only is here;
//! IPv6, between pqtun ends, is handed to `inner6`.

use super::checksum::{complement, fold, minus, remainder, sum};
use super::inner6::{Inbound6, Outbound6};
use super::{
    is_ipv6, long, put, word, DCCP, FRAGMENT_OFFSET, ICMP, IPV4_HEADER_BYTES, MORE_FRAGMENTS, TCP, TCP_CHECKSUM_AT,
    TCP_HEADER_BYTES, UDP, UDP_CHECKSUM_AT, UDP_HEADER_BYTES, UDP_LITE,
};

/// What every IPv6 link carries (RFC 8200 section 5).
const IPV6_LEAST_MTU: usize = 1280;

const ICMP_REDIRECT: u8 = 5;
/// Errors quote the packet that caused them (RFC 792): unreachable, source quench, redirect, time exceeded, parameter.
pub(super) const ICMP_ERRORS: [u8; 5] = [3, 4, ICMP_REDIRECT, 11, 12];
const ICMP_HEADER_BYTES: usize = 8;
const LOOSE_SOURCE_ROUTE: u8 = 131;
const STRICT_SOURCE_ROUTE: u8 = 137;

/// Where the checksum over the pseudo-header stands (RFC 9293, 768, 4340, 3828), and how long the header is.
pub(super) const fn transport_layout(protocol: u8) -> Option<(usize, usize)> {
    match protocol {
        TCP => Some((TCP_CHECKSUM_AT, TCP_HEADER_BYTES)),
        UDP => Some((UDP_CHECKSUM_AT, UDP_HEADER_BYTES)),
        DCCP => Some((6, 12)),
        UDP_LITE => Some((6, 8)),
        _ => None,
    }
}

/// How many bytes a packet of this version may have on its way to a peer of that MTU.
#[inline]
pub fn largest(packet: &[u8], mtu: u16) -> usize {
    let mtu = usize::from(mtu);
    if is_ipv6(packet) {
        mtu.max(IPV6_LEAST_MTU)
    } else {
        mtu
    }
}

/// Makes the plaintext for the tunnel: the packet with destination 0.0.0.0 or `::`, nothing else changed.
#[inline]
pub fn clear_destination(packet: &mut [u8]) {
    if is_ipv6(packet) {
        put(packet, 24, [0; 16]);
    } else {
        put(packet, 16, [0; 4]);
    }
}

/// The private IPv4 address that stands for the peer which a delivered packet came from.
#[inline]
pub fn peer_of(packet: &[u8]) -> Option<[u8; 4]> {
    let at = if is_ipv6(packet) { 20 } else { 12 };
    packet.get(at..at + 4)?.try_into().ok()
}

/// What this host may send into tunnels: packets from its own addresses to single addresses of its subnet.
#[derive(Clone, Copy, Debug)]
pub struct Outbound {
    sources: [[u8; 4]; 2],
    network: u32,
    mask: u32,
    not_peers: [u32; 3],
    six: Option<Outbound6>,
}

impl Outbound {
    /// `deliver_to` is the host address that may send besides `own`, where one is configured.
    pub fn new(own: [u8; 4], network: u32, mask: u32, deliver_to: Option<[u8; 4]>) -> Self {
        Self {
            sources: [own, deliver_to.unwrap_or(own)],
            network,
            mask,
            not_peers: [u32::from_be_bytes(own), network, network | !mask],
            six: None,
        }
    }

    /// The same with IPv6, if there is an address `own6` beside `own`; its first 64 bits are the prefix of all peers.
    pub fn with_ipv6(self, own6: Option<[u8; 16]>) -> Self {
        let six = own6.map(Outbound6::new);
        Self { six, ..self }
    }

    /// Returns the destination of a packet that was read from the TUN device; of IPv6, the one beside it.
    ///
    /// Refuses: tun_not_ipv4, tun_length, tun_source, tun_destination (own address, broadcast, multicast or otherwise
    /// outside the subnet).
    #[inline]
    pub fn destination(&self, packet: &[u8]) -> Result<[u8; 4], &'static str> {
        if let (Some(six), true) = (&self.six, is_ipv6(packet)) {
            return six.destination(packet).and_then(|inner| {
                if self.is_peer(inner) {
                    Ok(inner)
                } else {
                    Err("tun_destination")
                }
            });
        }
        let Some(fixed) = packet.first_chunk::<IPV4_HEADER_BYTES>() else {
            return Err("tun_not_ipv4");
        };
        if fixed[0] >> 4 != 4 {
            return Err("tun_not_ipv4");
        }
        if usize::from(word(fixed, 2)) != packet.len() {
            return Err("tun_length");
        }
        let [.., a, b, c, d, e, f, g, h] = *fixed;
        if !self.sources.contains(&[a, b, c, d]) {
            return Err("tun_source");
        }
        let destination = [e, f, g, h];
        if !self.is_peer(destination) {
            return Err("tun_destination");
        }
        Ok(destination)
    }

    /// Whether an address can stand for a peer: in the subnet, neither our own nor a broadcast address.
    #[inline]
    pub fn is_peer(&self, address: [u8; 4]) -> bool {
        let address = u32::from_be_bytes(address);
        address & self.mask == self.network && !self.not_peers.contains(&address)
    }
}

/// How much of the checksums `Inbound::deliver` makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// All of them, for a TUN device without virtio headers.
    Full,
    /// Whole TCP and UDP packets get the sum of their pseudo-header only; the kernel is told to finish it
    /// (VIRTIO_NET_HDR_F_NEEDS_CSUM), which it does not even do where the packet stays on this host.
    Partial,
}

/// What is left to finish in a delivered packet. `transport` is the length of the IP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp { transport: u16 },
    Udp { transport: u16 },
    Other,
}

/// A packet that is ready for the TUN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    /// The IP total length. Bytes past it are padding.
    pub len: usize,
    pub kind: Kind,
}

/// Readdresses the packets of one peer for this host: from the peer's private address to the host's address.
#[derive(Clone, Copy, Debug)]
pub struct Inbound {
    peer: [u8; 4],
    host: [u8; 4],
    address_sum: u64,
    six: Option<Inbound6>,
}

impl Inbound {
    pub fn new(peer: [u8; 4], host: [u8; 4]) -> Self {
        Self {
            peer,
            host,
            address_sum: sum(&peer) + sum(&host),
            six: None,
        }
    }

    /// The same with IPv6, if this host has an address `own6`; its first 64 bits are the prefix of the peer's, too.
    pub fn with_ipv6(self, own6: Option<[u8; 16]>) -> Self {
        let six = own6.map(|own6| Inbound6::new(self.peer, own6));
        Self { six, ..self }
    }

    /// Makes the packet for the TUN device, in place. What is refused is left in an undefined state.
    ///
    /// Refuses: inner_short, inner_not_ipv4, inner_header_length, inner_total_length, inner_options,
    /// inner_source_route, inner_fragment, inner_tcp_length, inner_udp_length, inner_icmp_quote, inner_icmp_redirect;
    /// of IPv6 those of `Inbound6::deliver`.
    #[inline]
    pub fn deliver(&self, packet: &mut [u8], checksums: Checksums) -> Result<Delivery, &'static str> {
        if let (Some(six), true) = (&self.six, is_ipv6(packet)) {
            return six.deliver(packet, checksums);
        }
        let Some(fixed) = packet.first_chunk::<IPV4_HEADER_BYTES>() else {
            return Err("inner_short");
        };
        if fixed[0] >> 4 != 4 {
            return Err("inner_not_ipv4");
        }
        let header = usize::from(fixed[0] & 15) * 4;
        let len = usize::from(word(fixed, 2));
        if header < IPV4_HEADER_BYTES || header > len {
            return Err("inner_header_length");
        }
        let fragment = word(fixed, 6);
        let protocol = fixed[9];
        let stale = word(fixed, 10);
        let mut ip_sum = sum(&fixed[..8]) + u64::from(word(fixed, 8)) + self.address_sum;
        let Some(packet) = packet.get_mut(..len) else {
            return Err("inner_total_length");
        };
        let (ip, payload) = packet.split_at_mut(header);
        if let Some(options) = ip.get(IPV4_HEADER_BYTES..).filter(|options| !options.is_empty()) {
            check_options(options)?;
            ip_sum += sum(options);
        }
        let checksum = complement(ip_sum);
        put(ip, 10, checksum.to_be_bytes());
        put(ip, 12, self.peer);
        put(ip, 16, self.host);
        let mut kind = Kind::Other;
        if fragment & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
            check_fragment(fragment, header, len, protocol)?;
            if fragment & FRAGMENT_OFFSET == 0 {
                self.adjust(payload, protocol, u64::from(checksum) + minus(stale))?;
            }
        } else if protocol == TCP {
            if payload.len() < TCP_HEADER_BYTES {
                return Err("inner_tcp_length");
            }
            if sum_tcp(payload, self.address_sum, checksums) {
                kind = Kind::Tcp {
                    transport: header as u16,
                };
            }
        } else if protocol == UDP {
            if sum_udp(payload, self.address_sum, checksums).ok_or("inner_udp_length")? {
                kind = Kind::Udp {
                    transport: header as u16,
                };
            }
        } else {
            self.adjust(payload, protocol, u64::from(checksum) + minus(stale))?;
        }
        Ok(Delivery { len, kind })
    }

    /// Adjusts the payload of a first fragment or of another protocol: nothing is summed over that is not there.
    fn adjust(&self, payload: &mut [u8], protocol: u8, change: u64) -> Result<(), &'static str> {
        if protocol == ICMP {
            return self.readdress_quote(payload);
        }
        adjust_transport(payload, protocol, change);
        Ok(())
    }

    /// Gives the packet quoted in an ICMP error the addresses with which this host sent it (RFC 5508 section 4.2).
    ///
    /// The kernel finds the socket or route concerned by them. All checksums are adjusted, not computed: the quote is
    /// cut short, and the error may be a first fragment.
    fn readdress_quote(&self, message: &mut [u8]) -> Result<(), &'static str> {
        let Some((icmp, quote)) = message.split_at_mut_checked(ICMP_HEADER_BYTES) else {
            return Err("inner_icmp_quote");
        };
        match icmp.first() {
            Some(&ICMP_REDIRECT) => return Err("inner_icmp_redirect"), // there is no router between the peer and us
            Some(kind) if ICMP_ERRORS.contains(kind) => {}
            _ => return Ok(()),
        }
        let first = quote.first().copied().unwrap_or(0);
        let header = usize::from(first & 15) * 4;
        if header < IPV4_HEADER_BYTES || quote.len() < header || first >> 4 != 4 {
            return Err("inner_icmp_quote");
        }
        let before = sum(quote);
        let quoted = u64::from(long(quote, 12)) + u64::from(long(quote, 16));
        let change = quoted + minus(fold(self.address_sum));
        put(quote, 12, self.host);
        put(quote, 16, self.peer);
        adjust_word(quote, 10, change);
        let fragment = word(quote, 6);
        if let (Some(&protocol), true) = (quote.get(9), fragment & FRAGMENT_OFFSET == 0) {
            adjust_transport(quote.get_mut(header..).unwrap_or(&mut []), protocol, change);
        }
        adjust_word(icmp, 2, before + minus(fold(sum(quote))));
        Ok(())
    }
}

/// Makes the checksum of a whole TCP segment; returns whether the kernel has to finish it.
#[inline]
pub(super) fn sum_tcp(segment: &mut [u8], address_sum: u64, checksums: Checksums) -> bool {
    let pseudo = address_sum + u64::from(TCP) + segment.len() as u64;
    if checksums == Checksums::Partial {
        put(segment, TCP_CHECKSUM_AT, fold(pseudo).to_be_bytes());
        return true;
    }
    let checksum = checksum(segment, pseudo, TCP_CHECKSUM_AT);
    put(segment, TCP_CHECKSUM_AT, checksum.to_be_bytes());
    false
}

/// Makes the checksum of a UDP datagram; returns whether the kernel has to finish it. None: its length is wrong.
///
/// The kernel would sum to the end of the packet, so a datagram that ends before it (RFC 9868) is summed here.
#[inline]
pub(super) fn sum_udp(payload: &mut [u8], address_sum: u64, checksums: Checksums) -> Option<bool> {
    let length = usize::from(word(payload, 4));
    if length < UDP_HEADER_BYTES || length > payload.len() {
        return None;
    }
    if word(payload, UDP_CHECKSUM_AT) == 0 {
        return Some(false); // the sender chose to have none
    }
    let pseudo = address_sum + u64::from(UDP) + length as u64;
    if checksums == Checksums::Partial && length == payload.len() {
        put(payload, UDP_CHECKSUM_AT, fold(pseudo).to_be_bytes());
        return Some(true);
    }
    let checksum = checksum(payload.get(..length)?, pseudo, UDP_CHECKSUM_AT);
    put(payload, UDP_CHECKSUM_AT, never_zero(checksum).to_be_bytes());
    Some(false)
}

/// Computes a checksum at `at` over a segment and its pseudo-header (RFC 9293, RFC 768).
#[inline]
fn checksum(segment: &[u8], pseudo: u64, at: usize) -> u16 {
    complement(sum(segment) + minus(word(segment, at)) + pseudo)
}

/// Accepts well-formed IPv4 options without a source route (RFC 791 section 3.1).
///
/// A source-routed packet would be forwarded by this host to an address of the peer's choice. Refuses: inner_options,
/// inner_source_route.
pub fn check_options(mut options: &[u8]) -> Result<(), &'static str> {
    loop {
        options = match options {
            [] | [0, ..] => return Ok(()),
            [1, rest @ ..] => rest,
            [LOOSE_SOURCE_ROUTE | STRICT_SOURCE_ROUTE, ..] => return Err("inner_source_route"),
            [_] => return Err("inner_options"),
            [_, length, ..] if *length < 2 => return Err("inner_options"),
            [_, length, ..] => options.get(usize::from(*length)..).ok_or("inner_options")?,
        }
    }
}

/// Refuses fragments that no sender makes. `fragment` is the 16-bit word of flags and offset.
///
/// Refused (inner_fragment): empty, reaching past 65535 bytes, not in 8-byte units though more follow, and for
/// protocols with ports those that split the header (RFC 1858, RFC 3128).
fn check_fragment(fragment: u16, header: usize, total: usize, protocol: u8) -> Result<(), &'static str> {
    let offset = usize::from(fragment & FRAGMENT_OFFSET) * 8;
    let payload = total - header;
    let header_end = transport_layout(protocol).map_or(0, |(_, length)| length);
    if payload == 0
        || offset + total > 65535
        || (fragment & MORE_FRAGMENTS != 0 && payload % 8 != 0)
        || (offset == 0 && payload < header_end)
        || (0 < offset && offset < header_end)
    {
        return Err("inner_fragment");
    }
    Ok(())
}

/// Adjusts a transport checksum by what the IP header checksum of the same packet changed by.
///
/// Both cover the addresses, and nothing else has changed. This is how a fragment is mended although the address that
/// the sender cleared is not on the wire: the stale IP checksum still holds its contribution (RFC 1624).
fn adjust_transport(segment: &mut [u8], protocol: u8, change: u64) {
    let Some((at, _)) = transport_layout(protocol) else {
        return;
    };
    if segment.len() < at + 2 || (protocol == UDP && word(segment, at) == 0) {
        return;
    }
    adjust_word(segment, at, change);
    if protocol == UDP {
        let checksum = never_zero(word(segment, at));
        put(segment, at, checksum.to_be_bytes());
    }
}

pub(super) fn adjust_word(data: &mut [u8], at: usize, change: u64) {
    let value = remainder(u64::from(word(data, at)) + change);
    put(data, at, value.to_be_bytes());
}

/// The UDP checksum 0 means that there is none (RFC 768).
#[inline]
fn never_zero(checksum: u16) -> u16 {
    match checksum {
        0 => 0xFFFF,
        checksum => checksum,
    }
}
