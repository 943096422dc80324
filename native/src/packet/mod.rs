//! Surgery on the packets inside tunnels: addresses, checksums, cutting and joining. Pure functions over slices.
//!
//! Nothing here allocates per packet, and nothing panics, whatever the bytes are. What is refused is refused with the
//! reason under which it is counted, the same word as in the Python engine.

pub mod checksum;
pub mod coalesce;
mod flow;
pub mod icmp;
pub mod inner;
pub mod inner6;
pub mod mss;
pub mod segment;

pub use coalesce::{Coalescer, Full, Run};
pub use icmp::{echo_token, host_unreachable, too_big, IcmpError};
pub use inner::{clear_destination, largest, peer_of, Checksums, Delivery, Inbound, Kind, Outbound};
pub use segment::{finish_checksum, Plan, VnetHeader, VNET_HEADER_BYTES};

pub(crate) const IPV4_HEADER_BYTES: usize = 20;
pub(crate) const IPV6_HEADER_BYTES: usize = 40;
pub(crate) const ICMP: u8 = 1;
pub(crate) const ICMP6: u8 = 58;
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const DCCP: u8 = 33;
pub(crate) const UDP_LITE: u8 = 136;

pub(crate) const TCP_HEADER_BYTES: usize = 20;
pub(crate) const UDP_HEADER_BYTES: usize = 8;
pub(crate) const TCP_CHECKSUM_AT: usize = 16;
pub(crate) const UDP_CHECKSUM_AT: usize = 6;

pub(crate) const DONT_FRAGMENT: u16 = 0x4000;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000;
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1FFF;

/// Whether a packet says that it is IPv6.
#[inline]
pub(crate) fn is_ipv6(packet: &[u8]) -> bool {
    packet.first().is_some_and(|first| first >> 4 == 6)
}

/// The big-endian 16-bit word at `at`; 0 where there is none.
#[inline]
pub(crate) fn word(data: &[u8], at: usize) -> u16 {
    match data.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

/// The big-endian 32-bit number at `at`; 0 where there is none.
#[inline]
pub(crate) fn long(data: &[u8], at: usize) -> u32 {
    match data.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Writes bytes at `at`, where there is room for all of them.
#[inline]
pub(crate) fn put<const N: usize>(data: &mut [u8], at: usize, value: [u8; N]) {
    if let Some(place) = data.get_mut(at..at + N) {
        place.copy_from_slice(&value);
    }
}

#[cfg(test)]
mod tests;
