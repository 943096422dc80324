//! Which flow a delivered packet belongs to, and whether it can be joined with others of it.

use super::inner::Kind;
use super::inner6::{DESTINATION_OPTIONS, FRAGMENT};
use super::{
    is_ipv6, long, word, DONT_FRAGMENT, FRAGMENT_OFFSET, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, MORE_FRAGMENTS, TCP,
    TCP_HEADER_BYTES, UDP, UDP_HEADER_BYTES,
};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const URG: u8 = 0x20;
const CWR: u8 = 0x80;
pub(super) const ENDS_RUN: u8 = FIN | PSH;
const NEVER_JOINS: u8 = SYN | RST | URG | CWR;
pub(super) const TCP_FLAGS_AT: usize = 13;

/// Addresses, ports and protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Flow {
    /// Of IPv6, the part from which the rest of private addresses follows.
    pub addresses: u64,
    pub ports: u32,
    pub protocol: u8,
    /// Bytes of the IP header without options, which say the version, too.
    pub ip: u8,
}

impl Flow {
    /// A number below `slots`, a power of two, that is mostly different for different flows.
    #[inline]
    pub fn slot(&self, slots: usize) -> usize {
        let kind = u64::from(self.ip) << 8 | u64::from(self.protocol);
        let ports = (u64::from(self.ports) << 16 | kind).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.addresses ^ ports).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        (mixed >> 40) as usize % slots
    }
}

pub(super) enum Place {
    Flow(Flow),
    /// It may belong to any flow: nothing may overtake it.
    Fragment,
    Elsewhere,
}

/// Finds the flow of a packet, whether or not it can join others.
#[inline]
pub(super) fn flow_of(packet: &[u8]) -> Place {
    let Some(fixed) = packet.first_chunk::<IPV4_HEADER_BYTES>() else {
        return Place::Elsewhere;
    };
    if is_ipv6(fixed) {
        return flow_of_ipv6(packet);
    }
    let protocol = fixed[9];
    if protocol != TCP && protocol != UDP {
        return Place::Elsewhere;
    }
    if word(fixed, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
        return Place::Fragment;
    }
    let [.., a, b, c, d, e, f, g, h] = *fixed;
    Place::Flow(Flow {
        addresses: u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
        ports: long(packet, usize::from(fixed[0] & 15) * 4),
        protocol,
        ip: IPV4_HEADER_BYTES as u8,
    })
}

#[inline]
fn flow_of_ipv6(packet: &[u8]) -> Place {
    match packet.get(6) {
        Some(&protocol @ (TCP | UDP)) => Place::Flow(Flow {
            addresses: u64::from(long(packet, 20)) << 32 | u64::from(long(packet, 36)),
            ports: long(packet, IPV6_HEADER_BYTES),
            protocol,
            ip: IPV6_HEADER_BYTES as u8,
        }),
        Some(&(FRAGMENT | DESTINATION_OPTIONS)) => Place::Fragment,
        _ => Place::Elsewhere,
    }
}

/// A packet that can begin a run or join one.
#[derive(Clone, Copy)]
pub(super) struct Candidate {
    /// Bytes of both headers.
    pub headers: usize,
    pub payload: usize,
    /// Whether nothing may come behind it in its run.
    pub ends_run: bool,
}

impl Candidate {
    /// None if the packet can only be written by itself. `tso` and `uso` say what the kernel takes.
    #[inline]
    pub fn of(packet: &[u8], kind: Kind, flow: &Flow, tso: bool, uso: bool) -> Option<Self> {
        let ip = usize::from(flow.ip);
        let segment = packet.get(ip..)?;
        if !is_ipv6(packet) && !is_plain(packet) {
            return None;
        }
        let (header, ends_run) = match (kind, flow.protocol) {
            (Kind::Tcp { transport }, TCP) if tso && usize::from(transport) == ip => tcp_header(segment)?,
            (Kind::Udp { transport }, UDP) if uso && usize::from(transport) == ip => (UDP_HEADER_BYTES, false),
            _ => return None,
        };
        if segment.len() <= header {
            return None;
        }
        Some(Self {
            headers: ip + header,
            payload: segment.len() - header,
            ends_run,
        })
    }
}

/// Bytes of a TCP header, and whether it ends a run. None if it has other flags than those of a flow that runs.
#[inline]
fn tcp_header(segment: &[u8]) -> Option<(usize, bool)> {
    let fixed = segment.first_chunk::<TCP_HEADER_BYTES>()?;
    let header = usize::from(fixed[12] >> 4) * 4;
    let flags = fixed[TCP_FLAGS_AT];
    if header < TCP_HEADER_BYTES || flags & NEVER_JOINS != 0 {
        return None;
    }
    Some((header, flags & ENDS_RUN != 0))
}

/// Whether an IPv4 header has no options, no reserved flag, and is of no fragment.
#[inline]
fn is_plain(packet: &[u8]) -> bool {
    packet.first() == Some(&0x45) && word(packet, 6) & !DONT_FRAGMENT == 0
}
