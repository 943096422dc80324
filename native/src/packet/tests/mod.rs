//! Packets for tests, built and checked the slow and obvious way (RFC 791, 768, 9293, 8200, 1071).

mod coalesce;
mod coalesce6;
mod icmp;
mod inner;
mod inner6;
mod mss;
mod roundtrip;
mod segment;

use super::*;

pub const SENDER: [u8; 4] = [10, 43, 0, 1];
pub const TARGET: [u8; 4] = [10, 43, 0, 2];
pub const PEER: [u8; 4] = [10, 42, 0, 7];
pub const HOST: [u8; 4] = [10, 42, 0, 1];

/// The private IPv6 addresses beside these, as pqtun/protocol/private6.py has them.
pub const SENDER6: [u8; 16] = 0xfdd7_ef0f_7bd4_0000_0000_8d17_0a2b_0001u128.to_be_bytes();
pub const TARGET6: [u8; 16] = 0xfdd7_ef0f_7bd4_0000_0000_8d16_0a2b_0002u128.to_be_bytes();
pub const PEER6: [u8; 16] = 0xfd33_4f27_86f8_0000_0000_227b_0a2a_0007u128.to_be_bytes();
pub const HOST6: [u8; 16] = 0xfd33_4f27_86f8_0000_0000_2281_0a2a_0001u128.to_be_bytes();

pub fn inbound() -> Inbound {
    Inbound::new(PEER, HOST).with_ipv6(Some(HOST6))
}

/// The RFC 1071 checksum, word by word.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let data = parts.concat();
    let mut total: u32 = 0;
    for pair in data.chunks(2) {
        total += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        total = (total & 0xFFFF) + (total >> 16);
    }
    !(total as u16)
}

#[derive(Clone, Debug)]
pub struct Ip {
    pub source: Vec<u8>,
    pub target: Vec<u8>,
    pub protocol: u8,
    pub fragment: u16,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    pub options: Vec<u8>,
}

impl Ip {
    pub fn new(protocol: u8) -> Self {
        let (source, target) = (SENDER.to_vec(), TARGET.to_vec());
        Self {
            source,
            target,
            protocol,
            fragment: 0,
            tos: 0,
            ttl: 64,
            id: 1,
            options: vec![],
        }
    }

    pub fn v6(protocol: u8) -> Self {
        Self {
            source: (1..17).collect(),
            target: (101..117).collect(),
            ..Self::new(protocol)
        }
    }

    /// A packet from one private IPv6 address to another, at the sender's home.
    pub fn inside6(protocol: u8) -> Self {
        Self {
            source: SENDER6.to_vec(),
            target: TARGET6.to_vec(),
            ..Self::new(protocol)
        }
    }

    /// The same packet here: from the peer to us.
    pub fn here(self) -> Self {
        let (source, target) = match self.source.len() {
            16 => (PEER6.to_vec(), HOST6.to_vec()),
            _ => (PEER.to_vec(), HOST.to_vec()),
        };
        Self { source, target, ..self }
    }

    pub fn pseudo(&self, length: usize) -> Vec<u8> {
        let mut pseudo = [&self.source[..], &self.target[..]].concat();
        pseudo.extend([0, self.protocol]);
        pseudo.extend((length as u16).to_be_bytes());
        pseudo
    }

    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        if self.source.len() == 16 {
            let mut packet = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
            packet.extend((payload.len() as u16).to_be_bytes());
            packet.extend([self.protocol, self.ttl]);
            return [&packet, &self.source[..], &self.target[..], payload].concat();
        }
        let header = 20 + self.options.len();
        let mut packet = vec![0x40 | (header / 4) as u8, self.tos];
        packet.extend(((header + payload.len()) as u16).to_be_bytes());
        packet.extend(self.id.to_be_bytes());
        packet.extend(self.fragment.to_be_bytes());
        packet.extend([self.ttl, self.protocol, 0, 0]);
        packet.extend([&self.source[..], &self.target[..], &self.options[..]].concat());
        let sum = checksum(&[&packet]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        [&packet, payload].concat()
    }

    pub fn udp(&self, ports: (u16, u16), data: &[u8]) -> Vec<u8> {
        let length = 8 + data.len();
        let mut segment = [ports.0, ports.1, length as u16, 0].map(u16::to_be_bytes).concat();
        segment.extend(data);
        let sum = match checksum(&[&self.pseudo(length), &segment]) {
            0 => 0xFFFF,
            sum => sum,
        };
        segment[6..8].copy_from_slice(&sum.to_be_bytes());
        self.packet(&segment)
    }

    pub fn tcp(&self, tcp: &TcpHeader, data: &[u8]) -> Vec<u8> {
        let mut segment = [tcp.ports.0, tcp.ports.1].map(u16::to_be_bytes).concat();
        segment.extend(tcp.sequence.to_be_bytes());
        segment.extend(tcp.acknowledged.to_be_bytes());
        segment.extend([((20 + tcp.options.len()) / 4) as u8 * 16, tcp.flags]);
        segment.extend(tcp.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(&tcp.options);
        segment.extend(data);
        let sum = checksum(&[&self.pseudo(segment.len()), &segment]);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        self.packet(&segment)
    }
}

#[derive(Clone, Debug)]
pub struct TcpHeader {
    pub ports: (u16, u16),
    pub sequence: u32,
    pub acknowledged: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
}

impl Default for TcpHeader {
    fn default() -> Self {
        let timestamps = vec![1, 1, 8, 10, 0, 1, 2, 3, 0, 4, 5, 6];
        Self {
            ports: (1000, 80),
            sequence: 7,
            acknowledged: 9,
            flags: 0x10,
            window: 1024,
            options: timestamps,
        }
    }
}

/// Puts extension headers before what follows the IPv6 header; the first byte of each is overwritten.
pub fn extended(packet: &[u8], headers: &[(u8, &[u8])]) -> Vec<u8> {
    let mut next = packet[6];
    let mut chain = vec![];
    for (kind, header) in headers.iter().rev() {
        chain.splice(0..0, [&[next], &header[1..]].concat());
        next = *kind;
    }
    let length = (packet.len() - 40 + chain.len()) as u16;
    let fixed = [&packet[..4], &length.to_be_bytes(), &[next], &packet[7..40]].concat();
    [&fixed, &chain, &packet[40..]].concat()
}

/// What a sender puts into the tunnel.
pub fn cleared(packet: &[u8]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    clear_destination(&mut packet);
    packet
}

pub fn delivered(packet: &[u8], checksums: Checksums) -> Result<(Vec<u8>, Kind), &'static str> {
    let mut packet = packet.to_vec();
    let delivery = inbound().deliver(&mut packet, checksums)?;
    packet.truncate(delivery.len);
    Ok((packet, delivery.kind))
}

/// Bytes without a pattern, the same for the same seed.
pub fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut step = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| step()).collect()
}
