//! ICMP errors to this host's own programs, and the answers to echo requests of ours (RFC 792, 1812, 1191, 4443).
//!
//! Errors come from the address that the program wanted: our own as a source would be dropped as martian. There is none
//! where none may be sent: about an ICMP error, a fragment that is not the first, or what is too short to tell.

use super::checksum::{complement, sum};
use super::inner::{largest, ICMP_ERRORS};
use super::inner6::{upper_layer, ICMP6_HEADER_BYTES};
use super::{is_ipv6, long, put, word, FRAGMENT_OFFSET, ICMP, ICMP6, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES};

/// An ICMP error has at most 576 bytes (RFC 1812 section 4.3.2.3): two headers, and 548 bytes of what it is about.
const MOST_BYTES: usize = 576;
/// An ICMPv6 error has at most the least MTU of IPv6 (RFC 4443 section 2.4).
const MOST_BYTES_6: usize = 1280;
const ICMP_HEADER_BYTES: usize = 8;
const DESTINATION_UNREACHABLE: u8 = 3;
const HOST_UNREACHABLE: u8 = 1;
const FRAGMENTATION_NEEDED: u8 = 4;
const ECHO_REPLY: u8 = 0;
const DESTINATION_UNREACHABLE_6: u8 = 1;
const ADDRESS_UNREACHABLE_6: u8 = 3;
const PACKET_TOO_BIG_6: u8 = 2;
const REDIRECT_6: u8 = 137;
/// The type of service that RFC 1812 section 4.3.2.5 asks for in errors.
const INTERNETWORK_CONTROL: u8 = 0xC0;
const TTL: u8 = 64;

/// Echo requests of ours: their identifier, and what stands before the token (pqtun/pump/icmp.py makes them).
const ECHO_IDENTIFIER: u16 = 0x7071;
const ECHO_PREFIX: &[u8; 8] = b"pqtunech";
const TOKEN_BYTES: usize = 8;

/// An ICMP error for the TUN device: 56 to 576 bytes, or 96 to 1280 of IPv6.
pub struct IcmpError {
    bytes: [u8; MOST_BYTES_6],
    len: usize,
}

impl IcmpError {
    /// The whole IP packet.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Returns the "host unreachable" (of IPv6: address unreachable) about a packet which a program here sent.
pub fn host_unreachable(packet: &[u8]) -> Option<IcmpError> {
    if is_ipv6(packet) {
        return error6(packet, [DESTINATION_UNREACHABLE_6, ADDRESS_UNREACHABLE_6], 0);
    }
    error4(packet, [DESTINATION_UNREACHABLE, HOST_UNREACHABLE], 0)
}

/// Returns what tells the program that the way takes only `mtu` bytes: fragmentation needed, or packet too big.
///
/// The latter says 1280 at least, as every path of IPv6 takes that.
pub fn too_big(packet: &[u8], mtu: u16) -> Option<IcmpError> {
    let mtu = largest(packet, mtu) as u32;
    if is_ipv6(packet) {
        return error6(packet, [PACKET_TOO_BIG_6, 0], mtu);
    }
    error4(packet, [DESTINATION_UNREACHABLE, FRAGMENTATION_NEEDED], mtu)
}

/// Returns the token if a packet answers an echo request of ours; the first fragment of an answer will do.
///
/// Neither addresses nor checksums are looked at: PQConnect leaves them as they were.
#[inline]
pub fn echo_token(packet: &[u8]) -> Option<[u8; TOKEN_BYTES]> {
    let fixed = packet.first_chunk::<IPV4_HEADER_BYTES>()?;
    let header = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || fixed[9] != ICMP || header < IPV4_HEADER_BYTES || word(fixed, 6) & FRAGMENT_OFFSET != 0 {
        return None;
    }
    let message = packet.get(header..usize::from(word(fixed, 2)))?;
    let (icmp, data) = message.split_first_chunk::<ICMP_HEADER_BYTES>()?;
    if icmp[0] != ECHO_REPLY || word(icmp, 4) != ECHO_IDENTIFIER {
        return None;
    }
    data.strip_prefix(ECHO_PREFIX)?.first_chunk().copied()
}

/// `rest`: what stands behind the checksum.
fn error4(packet: &[u8], kind: [u8; 2], rest: u32) -> Option<IcmpError> {
    let fixed = packet.first_chunk::<IPV4_HEADER_BYTES>()?;
    let header = usize::from(fixed[0] & 15) * 4;
    if header < IPV4_HEADER_BYTES || packet.len() < header + 8 || word(fixed, 6) & FRAGMENT_OFFSET != 0 {
        return None;
    }
    if fixed[9] == ICMP && ICMP_ERRORS.contains(packet.get(header)?) {
        return None;
    }
    let mut bytes = [0; MOST_BYTES_6];
    let (ip, message) = bytes.split_at_mut(IPV4_HEADER_BYTES);
    let room = MOST_BYTES - IPV4_HEADER_BYTES - ICMP_HEADER_BYTES;
    let len = IPV4_HEADER_BYTES + write(message, kind, rest, packet, room, 0);
    put(ip, 0, [0x45, INTERNETWORK_CONTROL]);
    put(ip, 2, (len as u16).to_be_bytes());
    put(ip, 8, [TTL, ICMP]);
    put(ip, 12, long(fixed, 16).to_be_bytes());
    put(ip, 16, long(fixed, 12).to_be_bytes());
    let checksum = complement(sum(ip));
    put(ip, 10, checksum.to_be_bytes());
    Some(IcmpError { bytes, len })
}

fn error6(packet: &[u8], kind: [u8; 2], rest: u32) -> Option<IcmpError> {
    let fixed = packet.first_chunk::<IPV6_HEADER_BYTES>()?;
    let upper = upper_layer(packet).ok().filter(|upper| !upper.is_later_fragment())?;
    let payload = packet.get(upper.at..).filter(|payload| payload.len() >= 8)?;
    if upper.protocol == ICMP6 && payload.first().is_some_and(|&kind| kind < 128 || kind == REDIRECT_6) {
        return None;
    }
    let mut bytes = [0; MOST_BYTES_6];
    let (ip, message) = bytes.split_at_mut(IPV6_HEADER_BYTES);
    let room = MOST_BYTES_6 - IPV6_HEADER_BYTES - ICMP6_HEADER_BYTES;
    let (_, addresses) = fixed.split_at(8);
    let length = ICMP6_HEADER_BYTES + packet.len().min(room);
    let pseudo = sum(addresses) + u64::from(ICMP6) + length as u64;
    write(message, kind, rest, packet, room, pseudo);
    put(ip, 0, [6 << 4]);
    put(ip, 4, (length as u16).to_be_bytes());
    put(ip, 6, [ICMP6, TTL]);
    let (source, destination) = addresses.split_at(16);
    for (place, byte) in ip.iter_mut().skip(8).zip(destination.iter().chain(source)) {
        *place = *byte;
    }
    let len = IPV6_HEADER_BYTES + length;
    Some(IcmpError { bytes, len })
}

/// Writes an ICMP message that quotes `room` bytes of the packet at most; returns how many it has.
fn write(message: &mut [u8], kind: [u8; 2], rest: u32, packet: &[u8], room: usize, pseudo: u64) -> usize {
    let quote = packet.get(..room).unwrap_or(packet);
    for (place, byte) in message.iter_mut().skip(ICMP_HEADER_BYTES).zip(quote) {
        *place = *byte;
    }
    put(message, 0, kind);
    put(message, 4, rest.to_be_bytes());
    let checksum = complement(sum(message) + pseudo);
    put(message, 2, checksum.to_be_bytes());
    ICMP_HEADER_BYTES + quote.len()
}
