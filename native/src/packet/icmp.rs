//! The ICMP message that tells this host's own programs that a peer cannot be reached (RFC 792, RFC 1812).

use super::checksum::{complement, sum};
use super::inner::ICMP_ERRORS;
use super::{put, word, FRAGMENT_OFFSET, ICMP, IPV4_HEADER_BYTES};

/// An ICMP error has at most 576 bytes (RFC 1812 section 4.3.2.3): two headers, and 548 bytes of what it is about.
pub const UNREACHABLE_BYTES: usize = 576;
const ICMP_HEADER_BYTES: usize = 8;
const QUOTE_AT: usize = IPV4_HEADER_BYTES + ICMP_HEADER_BYTES;
const DESTINATION_UNREACHABLE: u8 = 3;
const HOST_UNREACHABLE: u8 = 1;
/// The type of service that RFC 1812 section 4.3.2.5 asks for in errors.
const INTERNETWORK_CONTROL: u8 = 0xC0;
const TTL: u8 = 64;

/// An ICMP error for the TUN device: 56 to 576 bytes.
pub struct Unreachable {
    bytes: [u8; UNREACHABLE_BYTES],
    len: usize,
}

impl Unreachable {
    /// The whole IPv4 packet.
    pub fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

/// Returns the ICMP "host unreachable" that answers an IPv4 packet which a program here sent.
///
/// It comes from the address that the program wanted: our own as a source would be dropped as martian. None where no
/// error may be sent: about an ICMP error, a fragment that is not the first, or what is too short to tell.
pub fn host_unreachable(packet: &[u8]) -> Option<Unreachable> {
    let fixed = packet.first_chunk::<IPV4_HEADER_BYTES>()?;
    let header = usize::from(fixed[0] & 15) * 4;
    if header < IPV4_HEADER_BYTES || packet.len() < header + 8 || word(fixed, 6) & FRAGMENT_OFFSET != 0 {
        return None;
    }
    if fixed[9] == ICMP && ICMP_ERRORS.contains(packet.get(header)?) {
        return None;
    }
    let mut bytes = [0; UNREACHABLE_BYTES];
    let (ip, message) = bytes.split_at_mut(IPV4_HEADER_BYTES);
    let room = UNREACHABLE_BYTES - QUOTE_AT;
    let len = QUOTE_AT + packet.len().min(room);
    for (place, byte) in message.iter_mut().skip(ICMP_HEADER_BYTES).zip(packet) {
        *place = *byte;
    }
    put(message, 0, [DESTINATION_UNREACHABLE, HOST_UNREACHABLE]);
    let checksum = complement(sum(message));
    put(message, 2, checksum.to_be_bytes());
    put(ip, 0, [0x45, INTERNETWORK_CONTROL]);
    put(ip, 2, (len as u16).to_be_bytes());
    put(ip, 8, [TTL, ICMP]);
    let [.., a, b, c, d, e, f, g, h] = *fixed;
    put(ip, 12, [e, f, g, h, a, b, c, d]);
    let checksum = complement(sum(ip));
    put(ip, 10, checksum.to_be_bytes());
    Some(Unreachable { bytes, len })
}
