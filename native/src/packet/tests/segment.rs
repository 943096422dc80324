use proptest::prelude::*;

use super::*;
use crate::packet::segment::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

fn header(gso_type: u8, gso_size: u16) -> VnetHeader {
    // The kernel's hdr_len says how much of the packet lies in one piece: not to be trusted.
    VnetHeader {
        flags: NEEDS_CSUM,
        gso_type,
        hdr_len: 0xFFFF,
        gso_size,
        csum_start: 20,
        csum_offset: 16,
    }
}

fn cut(header: &VnetHeader, packet: &[u8]) -> Result<Vec<Vec<u8>>, &'static str> {
    let plan = Plan::new(header, packet)?;
    let segments = (0..plan.count()).map(|index| {
        let mut out = vec![0xAA; plan.longest() + 9];
        let len = plan.write(index, packet, &mut out);
        assert_eq!(len, plan.len(index));
        assert!(out[len..].iter().all(|&byte| byte == 0xAA));
        out.truncate(len);
        out
    });
    Ok(segments.collect())
}

/// What the kernel hands over: the checksum holds only the sum of the pseudo-header.
fn partial(ip: &Ip, mut packet: Vec<u8>, transport: usize) -> Vec<u8> {
    let at = transport + if ip.protocol == TCP { 16 } else { 6 };
    let sum = !checksum(&[&ip.pseudo(packet.len() - transport)]);
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    packet
}

fn ips(protocol: u8) -> [(Ip, usize); 3] {
    let options = vec![1; 8];
    let v4 = Ip {
        id: 0xFFFE,
        fragment: 0x4000,
        ..Ip::new(protocol)
    };
    [(v4.clone(), 20), (Ip { options, ..v4 }, 28), (Ip::v6(protocol), 40)]
}

fn gso_type(ip: &Ip) -> u8 {
    match (ip.protocol, ip.source.len()) {
        (TCP, 4) => GSO_TCPV4,
        (TCP, _) => GSO_TCPV6,
        _ => GSO_UDP_L4,
    }
}

#[test]
fn tcp_segments_are_those_of_a_careful_sender() {
    for (ip, transport) in ips(TCP) {
        for (size, gso) in [
            (1, 1),
            (10, 3),
            (2800, 1400),
            (2801, 1400),
            (4199, 1400),
            (60000, 1148),
            (65000, 65000),
        ] {
            for ecn in [0, GSO_ECN] {
                let data = noise(size as u64, size);
                let tcp = TcpHeader {
                    sequence: 0xFFFF_FF00,
                    flags: 0xD9,
                    ..TcpHeader::default()
                };
                let packet = partial(&ip, ip.tcp(&tcp, &data), transport);
                let got = cut(&header(gso_type(&ip) | ecn, gso as u16), &packet).unwrap();
                let pieces: Vec<_> = data.chunks(gso).collect();
                assert_eq!(got.len(), pieces.len());
                for (index, piece) in pieces.iter().enumerate() {
                    let mut flags = 0x50; // ACK and ECE
                    flags |= if index == 0 { 0x80 } else { 0 };
                    flags |= if index + 1 == pieces.len() { 0x09 } else { 0 };
                    let sequence = tcp.sequence.wrapping_add((index * gso) as u32);
                    let ip = Ip {
                        id: ip.id.wrapping_add(index as u16),
                        ..ip.clone()
                    };
                    assert_eq!(
                        got[index],
                        ip.tcp(
                            &TcpHeader {
                                sequence,
                                flags,
                                ..tcp.clone()
                            },
                            piece
                        )
                    );
                }
            }
        }
    }
}

#[test]
fn udp_segments_are_those_of_a_careful_sender() {
    for (ip, transport) in ips(UDP) {
        for (size, gso) in [
            (1, 1),
            (10, 3),
            (2800, 1400),
            (2801, 1400),
            (4199, 1400),
            (60000, 1172),
            (65000, 65000),
        ] {
            let data = noise(size as u64, size);
            let packet = partial(&ip, ip.udp((7, 9), &data), transport);
            let got = cut(&header(gso_type(&ip), gso as u16), &packet).unwrap();
            let want = data.chunks(gso).enumerate().map(|(index, piece)| {
                let ip = Ip {
                    id: ip.id.wrapping_add(index as u16),
                    ..ip.clone()
                };
                ip.udp((7, 9), piece)
            });
            assert_eq!(got, want.collect::<Vec<_>>());
        }
    }
}

#[test]
fn udp_checksum_of_a_segment_is_never_zero() {
    let ip = Ip { id: 0, ..Ip::new(UDP) };
    let corner = checksum(&[&ip.pseudo(10), &[0, 7, 0, 9, 0, 10, 0, 0]]);
    let data = [corner.to_be_bytes(), [1, 2]].concat();
    let got = cut(&header(GSO_UDP_L4, 2), &ip.udp((7, 9), &data)).unwrap();
    assert_eq!(word(&got[0], 26), 0xFFFF);
    assert_eq!(got[0], ip.udp((7, 9), &data[..2]));
}

#[test]
fn what_does_not_agree_is_refused() {
    for protocol in [TCP, UDP] {
        for (ip, transport) in ips(protocol) {
            let make = |ip: &Ip| match protocol {
                TCP => ip.tcp(&TcpHeader::default(), &[1; 100]),
                _ => ip.udp((1, 2), &[1; 100]),
            };
            let packet = make(&ip);
            let right = header(gso_type(&ip), 10);
            assert!(Plan::new(&right, &packet).is_ok());
            for size in 0..packet.len() {
                assert_eq!(Plan::new(&right, &packet[..size]).err(), Some("tun_gso"));
            }
            assert_eq!(Plan::new(&right, &[&packet[..], &[0]].concat()).err(), Some("tun_gso"));
            for gso_size in [0, 101, 0xFFFF] {
                assert_eq!(
                    Plan::new(&header(right.gso_type, gso_size), &packet).err(),
                    Some("tun_gso")
                );
            }
            for gso_type in (0..=255).filter(|kind| kind & !GSO_ECN != right.gso_type) {
                assert_eq!(Plan::new(&header(gso_type, 10), &packet).err(), Some("tun_gso"));
            }
            for fragment in [0x2000, 1, 0x1FFF] {
                if ip.source.len() == 4 {
                    let packet = make(&Ip { fragment, ..ip.clone() });
                    assert_eq!(Plan::new(&right, &packet).err(), Some("tun_gso"));
                }
            }
            let other = Ip {
                protocol: if protocol == TCP { UDP } else { TCP },
                ..ip.clone()
            };
            assert_eq!(Plan::new(&right, &make(&other)).err(), Some("tun_gso"));
            let mut wrong = packet.clone();
            if protocol == TCP {
                for words in [0, 4, 15] {
                    wrong[transport + 12] = words << 4;
                    assert_eq!(Plan::new(&right, &wrong).is_err(), words < 5);
                }
                let short = ip.tcp(
                    &TcpHeader {
                        options: vec![],
                        ..TcpHeader::default()
                    },
                    &[0x60; 3],
                );
                let mut wrong = short.clone();
                wrong[transport + 12] = 0x60; // a header past the end
                assert_eq!(Plan::new(&header(right.gso_type, 1), &wrong).err(), Some("tun_gso"));
            } else {
                wrong[transport + 5] ^= 1;
                assert_eq!(Plan::new(&right, &wrong).err(), Some("tun_gso"));
            }
        }
    }
}

#[test]
fn writing_without_room_or_index_writes_nothing() {
    let packet = Ip::new(UDP).udp((1, 2), &[1; 25]);
    let plan = Plan::new(&header(GSO_UDP_L4, 10), &packet).unwrap();
    assert_eq!((plan.count(), plan.longest(), plan.len(2), plan.len(3)), (3, 38, 33, 0));
    assert_eq!(plan.len(usize::MAX), 0);
    assert_eq!(plan.write(0, &packet, &mut [0; 37]), 0);
    assert_eq!(plan.write(3, &packet, &mut [0; 99]), 0);
    assert_eq!(plan.write(usize::MAX, &packet, &mut [0; 99]), 0);
    assert_eq!(plan.write(2, &packet[..50], &mut [0; 99]), 0);
    assert_eq!(plan.write(2, &packet, &mut [0; 33]), 33);
}

#[test]
fn vnet_header_round_trip() {
    let bytes = [1, 0x81, 2, 3, 4, 5, 6, 7, 8, 9];
    let header = VnetHeader::parse(&[&bytes[..], b"more"].concat()).unwrap();
    assert_eq!(header.to_bytes(), bytes);
    assert_eq!(
        (header.flags, header.gso_type, header.hdr_len),
        (1, 0x81, u16::from_ne_bytes([2, 3]))
    );
    assert!(header.is_gso());
    for size in 0..10 {
        assert_eq!(VnetHeader::parse(&bytes[..size]), None);
    }
}

#[test]
fn finishing_a_checksum() {
    for (protocol, at) in [(TCP, 16), (UDP, 6)] {
        let ip = Ip::new(protocol);
        let make = |size| match protocol {
            TCP => ip.tcp(&TcpHeader::default(), &noise(2, size)),
            _ => ip.udp((1, 2), &noise(2, size)),
        };
        for size in 0..90 {
            let mut packet = partial(&ip, make(size), 20);
            let header = VnetHeader {
                flags: NEEDS_CSUM,
                csum_start: 20,
                csum_offset: at,
                ..VnetHeader::default()
            };
            assert_eq!(finish_checksum(&header, &mut packet), Ok(()));
            assert_eq!(packet, make(size));
        }
        let mut packet = make(4);
        assert_eq!(finish_checksum(&VnetHeader::default(), &mut packet), Ok(()));
        assert_eq!(packet, make(4));
        for (csum_start, csum_offset) in [
            (packet.len() as u16 - 1, 0),
            (20, 0xFFFF),
            (0xFFFF, 0xFFFF),
            (0xFFFF, 0),
        ] {
            let header = VnetHeader {
                flags: NEEDS_CSUM,
                csum_start,
                csum_offset,
                ..VnetHeader::default()
            };
            assert_eq!(finish_checksum(&header, &mut packet), Err("tun_checksum"));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn never_panics(
        mut raw in prop::collection::vec(any::<u8>(), 0..200),
        fields in any::<[u8; 10]>(),
        shape in 0u8..4,
        gso_size in 0u16..50,
    ) {
        let size = raw.len() as u16;
        let mut header = VnetHeader::parse(&fields).unwrap();
        let mut finished = raw.clone();
        let _ = finish_checksum(&header, &mut finished);
        if let (1.., true) = (shape, raw.len() >= 40) {
            let protocol = if shape == 3 { UDP } else { TCP };
            raw[0] = 0x40 | (5 + raw[0] % 4);
            raw[2..4].copy_from_slice(&size.to_be_bytes());
            raw[6..8].fill(0);
            raw[9] = protocol;
            header.gso_type = if shape == 3 { GSO_UDP_L4 } else { GSO_TCPV4 };
            header.gso_size = gso_size;
        }
        if let Ok(segments) = cut(&header, &raw) {
            prop_assert!(!segments.is_empty());
            for segment in &segments {
                let header = usize::from(segment[0] & 15) * 4;
                prop_assert_eq!(usize::from(word(segment, 2)), segment.len());
                prop_assert_eq!(checksum(&[&segment[..header]]), 0);
            }
        }
    }
}
