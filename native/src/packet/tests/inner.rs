use proptest::prelude::*;

use super::*;
use crate::packet::inner::check_options;

pub fn refused(packet: &[u8]) -> &'static str {
    let full = delivered(packet, Checksums::Full).unwrap_err();
    assert_eq!(delivered(packet, Checksums::Partial).unwrap_err(), full);
    full
}

/// The packet that the kernel makes of what was delivered with partial checksums.
pub fn finished(packet: &[u8]) -> Result<Vec<u8>, &'static str> {
    let (mut packet, kind) = delivered(packet, Checksums::Partial)?;
    finish_checksum(&VnetHeader::single(kind), &mut packet)?;
    Ok(packet)
}

#[test]
fn tcp_and_udp_are_readdressed() {
    for size in (0..70).chain([1200, 1399]) {
        let mut here = Ip::new(TCP);
        here.options = vec![1; size % 11 * 4];
        let there = Ip {
            source: PEER.to_vec(),
            target: HOST.to_vec(),
            ..here.clone()
        };
        let data = noise(3, size);
        let sent = cleared(&here.tcp(&TcpHeader::default(), &data));
        let want = there.tcp(&TcpHeader::default(), &data);
        assert_eq!(delivered(&sent, Checksums::Full), Ok((want.clone(), Kind::Other)));
        assert_eq!(finished(&sent), Ok(want.clone()));
        let (partial, kind) = delivered(&sent, Checksums::Partial).unwrap();
        let header = 20 + here.options.len();
        assert_eq!(
            kind,
            Kind::Tcp {
                transport: header as u16
            }
        );
        let pseudo = !checksum(&[&there.pseudo(want.len() - header)]);
        assert_eq!(word(&partial, header + 16), pseudo);

        let (here, there) = (Ip { protocol: UDP, ..here }, Ip { protocol: UDP, ..there });
        let sent = cleared(&here.udp((1, 2), &data));
        let want = there.udp((1, 2), &data);
        assert_eq!(delivered(&sent, Checksums::Full), Ok((want.clone(), Kind::Other)));
        assert_eq!(finished(&sent), Ok(want.clone()));
        let (partial, kind) = delivered(&sent, Checksums::Partial).unwrap();
        assert_eq!(
            kind,
            Kind::Udp {
                transport: header as u16
            }
        );
        assert_eq!(word(&partial, header + 6), !checksum(&[&there.pseudo(8 + size)]));
    }
}

#[test]
fn udp_without_checksum_stays_without_and_needs_nothing() {
    let mut sent = cleared(&Ip::new(UDP).udp((1, 2), b"data"));
    sent[26..28].fill(0);
    for checksums in [Checksums::Full, Checksums::Partial] {
        let (got, kind) = delivered(&sent, checksums).unwrap();
        assert_eq!((&got[20..], kind), (&sent[20..], Kind::Other));
    }
}

#[test]
fn udp_that_ends_before_its_packet_is_summed_here() {
    // The kernel would sum up the surplus too.
    let ip = Ip {
        source: PEER.to_vec(),
        target: HOST.to_vec(),
        ..Ip::new(UDP)
    };
    let datagram = ip.udp((1, 2), b"data")[20..].to_vec();
    let sent = cleared(&ip.packet(&[&datagram[..], b"surplus"].concat()));
    let (full, _) = delivered(&sent, Checksums::Full).unwrap();
    assert_eq!(full[20..], [&datagram[..], b"surplus"].concat());
    assert_eq!(delivered(&sent, Checksums::Partial), Ok((full, Kind::Other)));
}

#[test]
fn udp_checksum_is_never_zero() {
    // One of the 65536 payloads sums up to 0, which must go out as 0xffff.
    let ip = Ip {
        source: PEER.to_vec(),
        target: HOST.to_vec(),
        ..Ip::new(UDP)
    };
    let header = [0, 1, 0, 2, 0, 10, 0, 0];
    let corner = checksum(&[&ip.pseudo(10), &header]);
    for value in [corner.wrapping_sub(1), corner, corner.wrapping_add(1)] {
        let sent = cleared(&Ip::new(UDP).udp((1, 2), &value.to_be_bytes()));
        let (got, _) = delivered(&sent, Checksums::Full).unwrap();
        assert_eq!(word(&got, 26) == 0xFFFF, value == corner);
        assert_ne!(word(&got, 26), 0);
        assert_eq!(finished(&sent), Ok(got));
    }
}

#[test]
fn padding_is_cut_off() {
    let sent = cleared(&Ip::new(TCP).tcp(&TcpHeader::default(), b"data"));
    let mut padded = [&sent[..], &[7; 99]].concat();
    let delivery = inbound().deliver(&mut padded, Checksums::Full).unwrap();
    assert_eq!(delivery.len, sent.len());
    assert_eq!(padded[sent.len()..], [7; 99]);
    assert_eq!(padded[..sent.len()], delivered(&sent, Checksums::Full).unwrap().0);
}

#[test]
fn a_first_fragment_is_mended_from_the_stale_checksum() {
    for protocol in [UDP, TCP] {
        let (here, there) = (
            Ip::new(protocol),
            Ip {
                source: PEER.to_vec(),
                target: HOST.to_vec(),
                ..Ip::new(protocol)
            },
        );
        let make = |ip: &Ip| match protocol {
            TCP => ip.tcp(&TcpHeader::default(), &noise(5, 100)),
            _ => ip.udp((1, 2), &noise(5, 100)),
        };
        let parts = |whole: &[u8], ip: &Ip| {
            let first = Ip {
                fragment: 0x2000,
                ..ip.clone()
            }
            .packet(&whole[20..84]);
            (
                first,
                Ip {
                    fragment: 8,
                    ..ip.clone()
                }
                .packet(&whole[84..]),
            )
        };
        let (first, second) = parts(&make(&here), &here);
        let (want_first, want_second) = parts(&make(&there), &there);
        for checksums in [Checksums::Full, Checksums::Partial] {
            assert_eq!(
                delivered(&cleared(&first), checksums),
                Ok((want_first.clone(), Kind::Other))
            );
            assert_eq!(
                delivered(&cleared(&second), checksums),
                Ok((want_second.clone(), Kind::Other))
            );
        }
    }
}

#[test]
fn the_checksum_of_a_first_fragment_is_never_zero() {
    let ip = Ip {
        source: PEER.to_vec(),
        target: HOST.to_vec(),
        ..Ip::new(UDP)
    };
    let corner = checksum(&[&ip.pseudo(40), &[0, 1, 0, 2, 0, 40, 0, 0]]);
    let data = [&corner.to_be_bytes()[..], &[0; 30]].concat();
    let whole = Ip::new(UDP).udp((1, 2), &data);
    let sent = cleared(
        &Ip {
            fragment: 0x2000,
            ..Ip::new(UDP)
        }
        .packet(&whole[20..44]),
    );
    let (got, _) = delivered(&sent, Checksums::Full).unwrap();
    assert_eq!(word(&got, 26), 0xFFFF);
    assert_eq!(word(&ip.udp((1, 2), &data), 26), 0xFFFF);
}

#[test]
fn icmp_errors_quote_what_we_sent() {
    let ours = Ip {
        source: HOST.to_vec(),
        target: PEER.to_vec(),
        ..Ip::new(UDP)
    }
    .udp((1, 2), &noise(9, 90));
    let seen = Ip {
        source: TARGET.to_vec(),
        target: SENDER.to_vec(),
        ..Ip::new(UDP)
    }
    .udp((1, 2), &noise(9, 90));
    for cut in 20..seen.len() {
        let mut message = [&[3, 4, 0, 0, 0, 0, 4, 0xB0], &seen[..cut]].concat();
        let sum = checksum(&[&message]);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
        let (got, kind) = delivered(&cleared(&Ip::new(ICMP).packet(&message)), Checksums::Partial).unwrap();
        assert_eq!(kind, Kind::Other);
        assert_eq!(checksum(&[&got[20..]]), 0);
        assert_eq!(got[20..22], [3, 4]);
        if cut >= 28 {
            assert_eq!(got[28..], ours[..cut]);
        }
    }
}

#[test]
fn icmp_refused() {
    let quote = Ip::new(UDP).udp((1, 2), b"");
    let message = |kind: u8| [&[kind, 1, 0, 0, 0, 0, 0, 0], &quote[..]].concat();
    assert_eq!(refused(&Ip::new(ICMP).packet(&message(5))), "inner_icmp_redirect");
    for size in 0..28 {
        assert_eq!(refused(&Ip::new(ICMP).packet(&message(3)[..size])), "inner_icmp_quote");
    }
    for first in [0x44, 0x65, 0x4F] {
        let mut message = message(3);
        message[8] = first;
        assert_eq!(refused(&Ip::new(ICMP).packet(&message)), "inner_icmp_quote");
    }
    for kind in [0, 8, 13, 42] {
        let sent = cleared(&Ip::new(ICMP).packet(&message(kind)));
        assert_eq!(delivered(&sent, Checksums::Full).unwrap().0[20..], sent[20..]);
    }
}

#[test]
fn every_truncated_size_is_refused() {
    let packets = [
        Ip::new(TCP).tcp(&TcpHeader::default(), b"x"),
        Ip {
            options: vec![1; 8],
            ..Ip::new(UDP)
        }
        .udp((1, 2), b"payload"),
        Ip {
            fragment: 0x2000,
            ..Ip::new(UDP)
        }
        .udp((1, 2), b"payload!"),
    ];
    for packet in packets {
        assert!(delivered(&packet, Checksums::Full).is_ok());
        for size in 0..packet.len() {
            let want = if size < 20 { "inner_short" } else { "inner_total_length" };
            assert_eq!(refused(&packet[..size]), want);
        }
    }
    for size in 0..20 {
        assert_eq!(refused(&Ip::new(TCP).packet(&[0; 20][..size])), "inner_tcp_length");
    }
    for size in 0..8 {
        assert_eq!(refused(&Ip::new(UDP).packet(&[9; 8][..size])), "inner_udp_length");
    }
    for length in [0, 7, 13, 0xFFFF] {
        let datagram = [&[0, 1, 0, 2], &u16::to_be_bytes(length)[..], &[0; 6]].concat();
        assert_eq!(refused(&Ip::new(UDP).packet(&datagram)), "inner_udp_length");
    }
}

#[test]
fn header_faults_are_refused() {
    let packet = Ip::new(UDP).udp((1, 2), b"data");
    let changed = |at: usize, value: u8| {
        let mut packet = packet.clone();
        packet[at] = value;
        packet
    };
    for version in [0, 5, 7, 15] {
        assert_eq!(refused(&changed(0, version << 4 | 5)), "inner_not_ipv4");
    }
    let mut ipv6 = Ip::inside6(UDP).udp((1, 2), b"data");
    let without = Inbound::new(PEER, HOST).with_ipv6(None);
    assert_eq!(without.deliver(&mut ipv6, Checksums::Full), Err("inner_not_ipv4"));
    for first in [0x40, 0x41, 0x42, 0x43, 0x44, 0x4F] {
        assert_eq!(refused(&changed(0, first)), "inner_header_length");
    }
    assert_eq!(refused(&changed(3, 19)), "inner_header_length");
    let faults: [(&[u8], &str); 8] = [
        (&[131, 7, 4, 192, 0, 2, 1, 0], "inner_source_route"),
        (&[137, 7, 4, 192, 0, 2, 1, 0], "inner_source_route"),
        (&[1, 1, 137, 7, 4, 192, 0, 2], "inner_source_route"),
        (&[7, 4, 4, 0, 131, 3, 4, 0], "inner_source_route"),
        (&[1, 1, 1, 7], "inner_options"),
        (&[7, 1, 4, 0], "inner_options"),
        (&[7, 0, 4, 0], "inner_options"),
        (&[7, 5, 4, 0], "inner_options"),
    ];
    for (options, reason) in faults {
        assert_eq!(
            refused(
                &Ip {
                    options: options.to_vec(),
                    ..Ip::new(UDP)
                }
                .udp((1, 2), b"")
            ),
            reason
        );
    }
    for options in [
        &[0x94, 4, 0, 0][..],
        &[1, 1, 1, 0],
        &[0, 131, 131, 131],
        &[7, 7, 4, 0, 0, 0, 0, 0],
    ] {
        assert_eq!(check_options(options), Ok(()));
    }
}

#[test]
fn fragments_that_no_sender_makes_are_refused() {
    let bad = [
        (0x2000, 12, 50),
        (0x2000, 0, 50),
        (0x0001, 0, 50),
        (0x1FFF, 16, 50),
        (0x1FFD, 16, 50),
        (0x2000, 8, TCP),
        (0x2000, 16, TCP),
        (0x0001, 8, TCP),
        (0x0002, 8, TCP),
        (0x0001, 8, DCCP),
    ];
    for (fragment, size, protocol) in bad {
        assert_eq!(
            refused(
                &Ip {
                    fragment,
                    ..Ip::new(protocol)
                }
                .packet(&vec![0; size])
            ),
            "inner_fragment"
        );
    }
    for (fragment, size, protocol) in [
        (0x2000, 24, TCP),
        (3, 8, TCP),
        (0x2000, 8, UDP),
        (1, 5, UDP),
        (0x1FFC, 5, 50),
    ] {
        assert!(delivered(
            &Ip {
                fragment,
                ..Ip::new(protocol)
            }
            .packet(&vec![0; size]),
            Checksums::Full
        )
        .is_ok());
    }
}

#[test]
fn outbound() {
    let network = u32::from_be_bytes([10, 42, 0, 0]);
    let mask = 0xFFFF_0000;
    let one = Outbound::new(HOST, network, mask, None);
    let both = Outbound::new(HOST, network, mask, Some([192, 0, 2, 1]));
    let packet = |source: [u8; 4], target: [u8; 4]| {
        Ip {
            source: source.to_vec(),
            target: target.to_vec(),
            ..Ip::new(UDP)
        }
        .udp((1, 2), b"data")
    };
    let good = packet(HOST, PEER);
    assert_eq!(one.destination(&good), Ok(PEER));
    assert_eq!(both.destination(&good), Ok(PEER));
    assert_eq!(both.destination(&packet([192, 0, 2, 1], PEER)), Ok(PEER));
    for source in [[10, 42, 0, 9], PEER, [192, 0, 2, 1], [0; 4], [127, 0, 0, 1]] {
        assert_eq!(one.destination(&packet(source, PEER)), Err("tun_source"));
    }
    for target in [
        HOST,
        [10, 42, 0, 0],
        [10, 42, 255, 255],
        [10, 43, 0, 2],
        [224, 0, 0, 1],
        [255; 4],
        [0; 4],
    ] {
        assert_eq!(both.destination(&packet(HOST, target)), Err("tun_destination"));
        assert!(!both.is_peer(target));
    }
    for size in 0..good.len() {
        let want = if size < 20 { "tun_not_ipv4" } else { "tun_length" };
        assert_eq!(one.destination(&good[..size]), Err(want));
    }
    assert_eq!(one.destination(&[&good[..], &[0]].concat()), Err("tun_length"));
    assert_eq!(one.destination(&[&[0x65], &good[1..]].concat()), Err("tun_not_ipv4"));
}

/// Packets that are nearly right: the header fields that matter are drawn from what reaches the branches.
pub fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop_oneof![
        Just(TCP),
        Just(UDP),
        Just(ICMP),
        Just(DCCP),
        Just(UDP_LITE),
        any::<u8>()
    ];
    let fragment = prop_oneof![4 => Just(0u16), 4 => Just(0x4000), 2 => Just(0x2000), 1 => 0u16..16, 1 => any::<u16>()];
    let options = prop_oneof![3 => Just(0usize), 1 => 0usize..11];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        (0usize..1400, any::<u64>()).prop_map(|(size, seed)| noise(seed, size)),
        (0usize..90).prop_map(|size| vec![0xFF; size]),
        (0usize..90).prop_map(|size| vec![0; size]),
    ];
    let fine = prop::bool::weighted(0.7);
    (
        protocol,
        fragment,
        options,
        body,
        fine,
        any::<[u8; 8]>(),
        any::<(u8, u16)>(),
    )
        .prop_map(
            |(protocol, fragment, options, mut body, fine, addresses, (tos, noisy))| {
                let size = body.len();
                if fine && protocol == UDP && size >= 8 {
                    body[4..6].copy_from_slice(&(size as u16 - (noisy & 64) / 64).to_be_bytes());
                }
                if fine && protocol == ICMP && size >= 28 {
                    body[0] = [3, 4, 5, 11, 12, 0][usize::from(noisy % 6)];
                    body[8] = 0x45 + (noisy >> 8 & 1) as u8;
                    body[17] = [TCP, UDP, DCCP, UDP_LITE, 50][usize::from(noisy % 5)];
                    body[14] &= 0xE0;
                }
                let ip = Ip {
                    source: addresses[..4].to_vec(),
                    target: addresses[4..].to_vec(),
                    fragment,
                    tos,
                    ttl: (noisy >> 8) as u8,
                    id: noisy,
                    options: vec![1; options * 4],
                    ..Ip::new(protocol)
                };
                let mut packet = ip.packet(&body);
                if !fine {
                    let length = packet.len();
                    packet[usize::from(noisy) % length] ^= tos;
                }
                packet
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn partial_finished_by_the_kernel_is_full(packet in nearly()) {
        prop_assert_eq!(finished(&packet), delivered(&packet, Checksums::Full).map(|(packet, _)| packet));
    }

    #[test]
    fn never_panics(mut raw in prop::collection::vec(any::<u8>(), 0..120), shape in 0u8..3) {
        let size = raw.len() as u16;
        if let (1.., [first, _, a, b, ..]) = (shape, &mut raw[..]) {
            *first = 0x45;
            if shape == 2 {
                [*a, *b] = size.to_be_bytes();
            }
        }
        let full = delivered(&raw, Checksums::Full);
        if let Ok((packet, _)) = &full {
            match packet[0] >> 4 {
                6 => prop_assert_eq!(&packet[8..40], &[PEER6, HOST6].concat()[..]),
                _ => prop_assert_eq!(&packet[12..20], &[PEER, HOST].concat()[..]),
            }
        }
        prop_assert_eq!(finished(&raw), full.map(|(packet, _)| packet));
        let _ = host_unreachable(&raw);
        let _ = Outbound::new(HOST, 0, 0, None).destination(&raw);
    }
}
