//! The maximum segment size that TCP connections begin with (RFC 9293 section 3.7.1).

use super::checksum::{fold, minus};
use super::inner::{adjust_word, largest};
use super::inner6::{upper_layer, DESTINATION_OPTIONS};
use super::{
    is_ipv6, put, word, FRAGMENT_OFFSET, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, MORE_FRAGMENTS, TCP, TCP_CHECKSUM_AT,
    TCP_HEADER_BYTES,
};

const SYN: u8 = 0x02;
const FLAGS_AT: usize = 13;
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const MSS_BYTES: u8 = 4;

/// Changes a packet such that no segment of its connection will exceed `mtu` bytes with its headers.
///
/// Only a SYN or SYN-ACK whose maximum segment size is larger is changed: it is lowered and the checksum adjusted, which
/// must be a whole one: of a program's packet call `finish_checksum` before, of a peer's call `Inbound::deliver` after. It
/// is never raised, and options that make no sense stay. IPv6 takes 1280 bytes at least. Padding is not looked at.
#[inline]
pub fn clamp(packet: &mut [u8], mtu: u16) {
    if let Some(at) = syn(packet) {
        let total = if is_ipv6(packet) {
            IPV6_HEADER_BYTES + usize::from(word(packet, 4))
        } else {
            usize::from(word(packet, 2))
        };
        if let Some(packet) = packet.get_mut(..total) {
            clamp_syn(packet, at, mtu);
        }
    }
}

#[cold]
fn clamp_syn(packet: &mut [u8], at: usize, mtu: u16) {
    let ip = if is_ipv6(packet) {
        IPV6_HEADER_BYTES
    } else {
        IPV4_HEADER_BYTES
    };
    let most = largest(packet, mtu).saturating_sub(ip + TCP_HEADER_BYTES) as u16;
    let Some(header) = packet.get_mut(at..) else { return };
    let end = usize::from(header.get(12).map_or(0, |byte| byte >> 4)) * 4;
    let Some(header) = header.get_mut(..end) else { return };
    let mut option = TCP_HEADER_BYTES;
    while let Some(&[kind, length]) = header.get(option..option + 2) {
        match kind {
            END => return,
            NOTHING => {
                option += 1;
                continue;
            }
            _ if length < 2 || option + usize::from(length) > end => return,
            MSS if length == MSS_BYTES && word(header, option + 2) > most => {
                let change = u64::from(word(header, option + 2)) + minus(most);
                put(header, option + 2, most.to_be_bytes());
                // An option may begin at an odd place: its bytes then count in the other halves of two words.
                let shift = 8 * (option as u32 & 1);
                adjust_word(header, TCP_CHECKSUM_AT, u64::from(fold(change)) << shift);
            }
            _ => {}
        }
        option += usize::from(length);
    }
}

/// Where the TCP header of a SYN begins; None if it is none, or is in fragments.
#[inline]
fn syn(packet: &[u8]) -> Option<usize> {
    let at = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&TCP) && word(packet, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) == 0 => {
            usize::from(packet.first()? & 15) * 4
        }
        6 => match *packet.get(6)? {
            TCP => IPV6_HEADER_BYTES,
            DESTINATION_OPTIONS => behind_options(packet)?,
            _ => return None,
        },
        _ => return None,
    };
    let header = packet.get(at..at + TCP_HEADER_BYTES)?;
    (at >= IPV4_HEADER_BYTES && header.get(FLAGS_AT)? & SYN != 0).then_some(at)
}

#[cold]
fn behind_options(packet: &[u8]) -> Option<usize> {
    let upper = upper_layer(packet).ok()?;
    (upper.protocol == TCP && upper.fragment.is_none()).then_some(upper.at)
}
