//! Virtio headers of the TUN device, and the cutting of packets that the kernel left to be cut (GSO).
//!
//! linux/virtio_net.h, Virtio 1.2 section 5.1.6. The kernel's hints are not trusted: lengths come from the headers.

use super::checksum::{complement, sum};
use super::{
    long, put, word, FRAGMENT_OFFSET, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, MORE_FRAGMENTS, TCP, TCP_CHECKSUM_AT,
    TCP_HEADER_BYTES, UDP, UDP_CHECKSUM_AT, UDP_HEADER_BYTES,
};

pub const VNET_HEADER_BYTES: usize = 10;
/// `flags`: the checksum from `csum_start` to the end is to be computed, and begins with what its field holds.
pub const NEEDS_CSUM: u8 = 1;
pub const GSO_NONE: u8 = 0;
pub const GSO_TCPV4: u8 = 1;
pub const GSO_TCPV6: u8 = 4;
pub const GSO_UDP_L4: u8 = 5;
/// May be set besides the type, for TCP with ECN.
pub const GSO_ECN: u8 = 0x80;

const MOST_HEADER_BYTES: usize = 120;
const REFUSED: &str = "tun_gso";

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;

/// `struct virtio_net_hdr`, which stands before each packet of a TUN device with IFF_VNET_HDR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VnetHeader {
    pub flags: u8,
    pub gso_type: u8,
    pub hdr_len: u16,
    pub gso_size: u16,
    pub csum_start: u16,
    pub csum_offset: u16,
}

impl VnetHeader {
    /// Reads the first 10 bytes, in the byte order of this machine. None if there are fewer.
    #[inline]
    pub fn parse(data: &[u8]) -> Option<Self> {
        let [flags, gso_type, a, b, c, d, e, f, g, h] = *data.first_chunk::<VNET_HEADER_BYTES>()?;
        Some(Self {
            flags,
            gso_type,
            hdr_len: u16::from_ne_bytes([a, b]),
            gso_size: u16::from_ne_bytes([c, d]),
            csum_start: u16::from_ne_bytes([e, f]),
            csum_offset: u16::from_ne_bytes([g, h]),
        })
    }

    #[inline]
    pub fn to_bytes(self) -> [u8; VNET_HEADER_BYTES] {
        let [a, b] = self.hdr_len.to_ne_bytes();
        let [c, d] = self.gso_size.to_ne_bytes();
        let [e, f] = self.csum_start.to_ne_bytes();
        let [g, h] = self.csum_offset.to_ne_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h]
    }

    /// Whether the packet behind it is to be cut with a `Plan`.
    #[inline]
    pub fn is_gso(&self) -> bool {
        self.gso_type != GSO_NONE
    }
}

/// Finishes the checksum of a packet that needs it and is not to be cut.
///
/// Refuses (tun_checksum) a place outside the packet.
#[inline]
pub fn finish_checksum(header: &VnetHeader, packet: &mut [u8]) -> Result<(), &'static str> {
    if header.flags & NEEDS_CSUM == 0 {
        return Ok(());
    }
    let at = usize::from(header.csum_offset);
    let Some(segment) = packet
        .get_mut(usize::from(header.csum_start)..)
        .filter(|rest| rest.len() >= at + 2)
    else {
        return Err("tun_checksum");
    };
    let mut checksum = complement(sum(segment));
    if checksum == 0 && at == UDP_CHECKSUM_AT {
        checksum = 0xFFFF; // 0 would say that there is none (RFC 768)
    }
    put(segment, at, checksum.to_be_bytes());
    Ok(())
}

/// How one large packet is cut into segments, each with headers and checksums of its own.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The headers with 0 in all that differs between segments: lengths, identification, sequence number, TCP flags,
    /// checksums.
    template: [u8; MOST_HEADER_BYTES],
    transport: usize,
    headers: usize,
    size: usize,
    payload: usize,
    count: usize,
    ipv4: bool,
    identification: u16,
    /// None for UDP.
    tcp: Option<Tcp>,
    ip_sum: u64,
    transport_sum: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tcp {
    sequence: u32,
    flags: u8,
}

impl Plan {
    /// Refuses (tun_gso) other kinds of packets than TCP and UDP_L4 over IPv4 and IPv6 without extension headers, and
    /// lengths that do not agree with each other.
    pub fn new(header: &VnetHeader, packet: &[u8]) -> Result<Self, &'static str> {
        let (protocol, ipv4) = match (header.gso_type & !GSO_ECN, packet.first().map_or(0, |first| first >> 4)) {
            (GSO_TCPV4, 4) => (TCP, true),
            (GSO_TCPV6, 6) => (TCP, false),
            (GSO_UDP_L4, 4) => (UDP, true),
            (GSO_UDP_L4, 6) => (UDP, false),
            _ => return Err(REFUSED),
        };
        let transport = if ipv4 {
            ipv4_header(packet, protocol)?
        } else {
            ipv6_header(packet, protocol)?
        };
        let segment = packet.get(transport..).unwrap_or(&[]);
        let transport_bytes = if protocol == TCP {
            usize::from(segment.get(12).map_or(0, |byte| byte >> 4)) * 4
        } else {
            UDP_HEADER_BYTES
        };
        let least = if protocol == TCP {
            TCP_HEADER_BYTES
        } else {
            UDP_HEADER_BYTES
        };
        if transport_bytes < least || (protocol == UDP && usize::from(word(segment, 4)) != segment.len()) {
            return Err(REFUSED);
        }
        let headers = transport + transport_bytes;
        let size = usize::from(header.gso_size);
        let payload = packet.len().saturating_sub(headers);
        if size == 0 || size > payload {
            return Err(REFUSED);
        }
        let mut template = [0; MOST_HEADER_BYTES];
        let (Some(place), Some(bytes)) = (template.get_mut(..headers), packet.get(..headers)) else {
            return Err(REFUSED);
        };
        place.copy_from_slice(bytes);
        let mut plan = Self {
            template,
            transport,
            headers,
            size,
            payload,
            count: payload.div_ceil(size),
            ipv4,
            identification: word(packet, 4),
            tcp: (protocol == TCP).then(|| Tcp {
                sequence: long(segment, 4),
                flags: segment.get(13).copied().unwrap_or(0),
            }),
            ip_sum: 0,
            transport_sum: 0,
        };
        plan.prepare(protocol);
        Ok(plan)
    }

    /// Clears what differs between segments, and sums up what does not.
    fn prepare(&mut self, protocol: u8) {
        let Some(headers) = self.template.get_mut(..self.headers) else {
            return;
        };
        let (ip, transport) = headers.split_at_mut(self.transport.min(self.headers));
        let addresses = if self.ipv4 {
            put(ip, 2, [0; 4]);
            put(ip, 10, [0; 2]);
            self.ip_sum = sum(ip);
            ip.get(12..20)
        } else {
            put(ip, 4, [0; 2]);
            ip.get(8..40)
        };
        if self.tcp.is_some() {
            put(transport, 4, [0; 4]);
            put(transport, 13, [0; 1]);
            put(transport, TCP_CHECKSUM_AT, [0; 2]);
        } else {
            put(transport, 4, [0; 4]);
        }
        self.transport_sum = sum(addresses.unwrap_or(&[])) + sum(transport) + u64::from(protocol);
    }

    /// How many segments there are: at least 1.
    #[inline]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the longest segment, which is the first, with its headers.
    #[inline]
    pub fn longest(&self) -> usize {
        self.headers + self.size
    }

    /// Bytes of a segment with its headers; 0 if there is none of this index.
    #[inline]
    pub fn len(&self, index: usize) -> usize {
        if index >= self.count {
            return 0;
        }
        self.headers + self.size.min(self.payload - index * self.size)
    }

    /// Writes a segment of `packet`, which is the one that the plan was made for. Returns its bytes (`len`).
    ///
    /// Returns 0, with `out` in an undefined state, if there is no segment of this index or no room for it.
    #[inline]
    pub fn write(&self, index: usize, packet: &[u8], out: &mut [u8]) -> usize {
        let len = self.len(index);
        if len == 0 {
            return 0;
        }
        let start = self.headers + index * self.size;
        let Some((place, out)) = out
            .get_mut(..len)
            .and_then(|out| out.split_at_mut_checked(self.headers))
        else {
            return 0;
        };
        let (Some(payload), Some(template)) = (packet.get(start..start + out.len()), self.template.get(..self.headers))
        else {
            return 0;
        };
        out.copy_from_slice(payload);
        place.copy_from_slice(template);
        self.finish(index, place, sum(out), out.len());
        len
    }

    /// Fills in what differs between segments.
    #[inline]
    fn finish(&self, index: usize, headers: &mut [u8], payload_sum: u64, payload: usize) {
        let (ip, transport) = headers.split_at_mut(self.transport.min(headers.len()));
        let length = transport.len() + payload;
        if self.ipv4 {
            let total = (ip.len() + length) as u16;
            let identification = self.identification.wrapping_add(index as u16);
            put(ip, 2, total.to_be_bytes());
            put(ip, 4, identification.to_be_bytes());
            let checksum = complement(self.ip_sum + u64::from(total) + u64::from(identification));
            put(ip, 10, checksum.to_be_bytes());
        } else {
            put(ip, 4, (length as u16).to_be_bytes());
        }
        let sum = self.transport_sum + payload_sum + length as u64;
        let Some(tcp) = self.tcp else {
            put(transport, 4, (length as u16).to_be_bytes());
            let checksum = match complement(sum + length as u64) {
                0 => 0xFFFF, // 0 would say that there is none (RFC 768)
                checksum => checksum,
            };
            put(transport, UDP_CHECKSUM_AT, checksum.to_be_bytes());
            return;
        };
        let mut flags = tcp.flags;
        if index > 0 {
            flags &= !CWR;
        }
        if index + 1 < self.count {
            flags &= !(FIN | PSH);
        }
        let sequence = tcp.sequence.wrapping_add((index * self.size) as u32);
        put(transport, 4, sequence.to_be_bytes());
        put(transport, 13, [flags]);
        let checksum = complement(sum + u64::from(sequence) + u64::from(flags));
        put(transport, TCP_CHECKSUM_AT, checksum.to_be_bytes());
    }
}

/// Returns the length of the IPv4 header of a packet that is whole and of the protocol.
fn ipv4_header(packet: &[u8], protocol: u8) -> Result<usize, &'static str> {
    let Some(fixed) = packet.first_chunk::<IPV4_HEADER_BYTES>() else {
        return Err(REFUSED);
    };
    let header = usize::from(fixed[0] & 15) * 4;
    if header < IPV4_HEADER_BYTES
        || header > packet.len()
        || usize::from(word(fixed, 2)) != packet.len()
        || word(fixed, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
        || fixed[9] != protocol
    {
        return Err(REFUSED);
    }
    Ok(header)
}

/// The same for IPv6 without extension headers.
fn ipv6_header(packet: &[u8], protocol: u8) -> Result<usize, &'static str> {
    let Some(fixed) = packet.first_chunk::<IPV6_HEADER_BYTES>() else {
        return Err(REFUSED);
    };
    if usize::from(word(fixed, 4)) + IPV6_HEADER_BYTES != packet.len() || fixed[6] != protocol {
        return Err(REFUSED);
    }
    Ok(IPV6_HEADER_BYTES)
}
