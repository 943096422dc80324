use proptest::prelude::*;

use super::inner::{finished, refused};
use super::*;

const PAYLOADS: [usize; 5] = [0, 1, 64, 1199, 1220];

/// One fragment with this offset and these flags.
fn fragment(protocol: u8, word: u16, payload: &[u8]) -> Vec<u8> {
    let [high, low] = word.to_be_bytes();
    extended(
        &Ip::inside6(protocol).packet(payload),
        &[(44, &[0, 0, high, low, 1, 2, 3, 4])],
    )
}

/// 16 bytes of destination options: padding, and one of a kind that nobody knows.
const OPTIONS: [u8; 16] = [0, 1, 1, 4, 0, 0, 0, 0, 0x1E, 2, 9, 9, 0, 0, 1, 0];

fn message(kind: u8, quote: &[u8]) -> Vec<u8> {
    let mut message = [&[kind, 1, 0, 0, 0, 0, 4, 0xB0], quote].concat();
    let pseudo = Ip::inside6(ICMP6).pseudo(message.len());
    let sum = checksum(&[&pseudo, &message]);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

#[test]
fn private_addresses_sum_to_nothing() {
    for address in [SENDER6, TARGET6, PEER6, HOST6] {
        assert_eq!(checksum(&[&address]), 0);
    }
    assert_eq!(HOST6[12..], HOST);
}

#[test]
fn tcp_and_udp_are_readdressed() {
    for size in PAYLOADS {
        for options in [
            &[][..],
            &[(60, &OPTIONS[..])],
            &[(60, &OPTIONS[..]), (60, &OPTIONS[..])],
        ] {
            let transport = (40 + 16 * options.len()) as u16;
            let (data, tcp) = (noise(3, size), TcpHeader::default());
            let sent = cleared(&extended(&Ip::inside6(TCP).tcp(&tcp, &data), options));
            let want = extended(&Ip::inside6(TCP).here().tcp(&tcp, &data), options);
            assert_eq!(delivered(&sent, Checksums::Full), Ok((want.clone(), Kind::Other)));
            assert_eq!(finished(&sent), Ok(want));
            let (partial, kind) = delivered(&sent, Checksums::Partial).unwrap();
            assert_eq!(kind, Kind::Tcp { transport });
            let pseudo = !checksum(&[&Ip::inside6(TCP).here().pseudo(partial.len() - usize::from(transport))]);
            assert_eq!(word(&partial, usize::from(transport) + 16), pseudo);
            assert_eq!(peer_of(&partial), Some(PEER));

            let sent = cleared(&extended(&Ip::inside6(UDP).udp((1, 2), &data), options));
            let want = extended(&Ip::inside6(UDP).here().udp((1, 2), &data), options);
            assert_eq!(delivered(&sent, Checksums::Full), Ok((want.clone(), Kind::Other)));
            assert_eq!(finished(&sent), Ok(want));
            assert_eq!(delivered(&sent, Checksums::Partial).unwrap().1, Kind::Udp { transport });
        }
    }
}

#[test]
fn a_wrong_checksum_is_computed_anew_and_none_stays_none() {
    let mut sent = cleared(&Ip::inside6(TCP).tcp(&TcpHeader::default(), b"data"));
    sent[56..58].copy_from_slice(&[1, 2]);
    let want = Ip::inside6(TCP).here().tcp(&TcpHeader::default(), b"data");
    assert_eq!(delivered(&sent, Checksums::Full).unwrap().0, want);
    let mut sent = cleared(&Ip::inside6(UDP).udp((1, 2), b"data"));
    sent[46..48].fill(0);
    for checksums in [Checksums::Full, Checksums::Partial] {
        let (got, kind) = delivered(&sent, checksums).unwrap();
        assert_eq!((&got[40..], kind), (&sent[40..], Kind::Other));
    }
}

#[test]
fn udp_that_ends_before_its_packet_is_summed_here() {
    let datagram = Ip::inside6(UDP).here().udp((1, 2), b"data")[40..].to_vec();
    let sent = cleared(&Ip::inside6(UDP).packet(&[&datagram[..], b"surplus"].concat()));
    let (full, _) = delivered(&sent, Checksums::Full).unwrap();
    assert_eq!(full[40..], [&datagram[..], b"surplus"].concat());
    assert_eq!(delivered(&sent, Checksums::Partial), Ok((full, Kind::Other)));
}

#[test]
fn padding_is_cut_off() {
    let sent = cleared(&Ip::inside6(TCP).tcp(&TcpHeader::default(), b"data"));
    let padded = [&sent[..], &[7; 99]].concat();
    assert_eq!(delivered(&padded, Checksums::Full), delivered(&sent, Checksums::Full));
}

#[test]
fn fragments_are_readdressed_and_no_more() {
    for (protocol, whole) in [
        (TCP, Ip::inside6(TCP).tcp(&TcpHeader::default(), &noise(5, 100))),
        (UDP, Ip::inside6(UDP).udp((1, 2), &noise(5, 100))),
        (ICMP6, Ip::inside6(ICMP6).packet(&message(128, &noise(5, 100)))),
    ] {
        let want = match protocol {
            TCP => Ip::inside6(TCP).here().tcp(&TcpHeader::default(), &noise(5, 100)),
            UDP => Ip::inside6(UDP).here().udp((1, 2), &noise(5, 100)),
            _ => Ip::inside6(ICMP6).here().packet(&message(128, &noise(5, 100))),
        };
        let first = fragment(protocol, 1, &whole[40..104]);
        let last = fragment(protocol, 64, &whole[104..]);
        let mut joined: Vec<u8> = vec![];
        for part in [first, last] {
            for checksums in [Checksums::Full, Checksums::Partial] {
                let (got, kind) = delivered(&cleared(&part), checksums).unwrap();
                assert_eq!((&got[..8], &got[40..], kind), (&part[..8], &part[40..], Kind::Other));
                assert_eq!(got[8..40], [PEER6, HOST6].concat());
                if checksums == Checksums::Full {
                    joined.extend(&got[48..]);
                }
            }
        }
        assert_eq!(joined, want[40..]);
    }
}

#[test]
fn fragments_that_no_sender_makes_are_refused() {
    for (word, size, protocol) in [
        (1, 12, 50),
        (1, 0, 50),
        (8, 0, 50),
        (0xFFF8, 9, 50),
        (0xFFF9, 16, 50),
        (1, 8, TCP),
        (1, 16, TCP),
        (0, 16, TCP),
        (0, 7, ICMP6),
        (8, 8, TCP),
        (16, 8, TCP),
        (8, 8, DCCP),
        (1, 8, 44),
    ] {
        assert_eq!(
            refused(&fragment(protocol, word, &vec![0; size])),
            "inner6_fragment",
            "{word} {size}"
        );
    }
    for (word, size, protocol) in [
        (1, 24, TCP),
        (24, 8, TCP),
        (1, 8, UDP),
        (8, 5, UDP),
        (0xFFF8, 7, 50),
        (0, 5, 50),
    ] {
        assert!(delivered(&fragment(protocol, word, &vec![0; size]), Checksums::Full).is_ok());
    }
    assert_eq!(
        refused(&extended(&Ip::inside6(44).packet(&[6; 7]), &[])),
        "inner6_fragment"
    );
}

#[test]
fn extension_headers_that_are_refused() {
    let packet = Ip::inside6(UDP).udp((1, 2), b"data");
    let (routing, fragment) = ([0, 0, 0, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]);
    type Headers<'a> = &'a [(u8, &'a [u8])];
    let cases: [(Headers, &str); 11] = [
        (&[(0, &[0, 0, 1, 4, 0, 0, 0, 0])], "inner6_hop_by_hop"),
        (&[(60, &OPTIONS), (0, &OPTIONS)], "inner6_hop_by_hop"),
        (&[(43, &routing)], "inner6_routing"),
        (&[(60, &OPTIONS), (43, &routing)], "inner6_routing"),
        (&[(44, &fragment), (43, &routing)], "inner6_routing"),
        (&[(44, &[0, 0, 0, 8, 0, 0, 0, 1]), (43, &routing)], "inner6_routing"),
        (&[(44, &fragment), (44, &fragment)], "inner6_fragment"),
        (&[(60, &OPTIONS[..]); 5], "inner6_options"),
        (&[(60, &[0, 0, 201, 4, 0, 0, 0, 0])], "inner6_options"),
        (&[(60, &[0, 0, 1, 5, 0, 0, 0, 0])], "inner6_options"),
        (&[(60, &[0, 0, 0, 0, 0, 0, 0, 1])], "inner6_options"),
    ];
    for (headers, reason) in cases {
        assert_eq!(refused(&extended(&packet, headers)), reason, "{headers:?}");
    }
    assert!(delivered(&extended(&packet, &[(60, &OPTIONS[..]); 4]), Checksums::Full).is_ok());
    assert!(delivered(
        &extended(&packet, &[(60, &OPTIONS), (44, &fragment), (60, &OPTIONS)]),
        Checksums::Full
    )
    .is_ok());
    for size in 0..16 {
        assert_eq!(
            refused(&Ip::inside6(60).packet(&[&[59], &OPTIONS[1..]].concat()[..size])),
            "inner6_options"
        );
    }
}

#[test]
fn every_truncated_size_is_refused() {
    let packets = [
        Ip::inside6(TCP).tcp(&TcpHeader::default(), b"x"),
        extended(&Ip::inside6(UDP).udp((1, 2), b"payload"), &[(60, &OPTIONS)]),
        fragment(UDP, 1, &[0; 16]),
    ];
    for packet in packets {
        assert!(delivered(&packet, Checksums::Full).is_ok());
        for size in 0..packet.len() {
            let want = match size {
                0 => "inner_short",
                1..40 => "inner6_short",
                _ => "inner6_length",
            };
            assert_eq!(refused(&packet[..size]), want);
        }
    }
    for size in 0..20 {
        assert_eq!(refused(&Ip::inside6(TCP).packet(&[0; 20][..size])), "inner6_tcp_length");
    }
    for size in 0..8 {
        assert_eq!(refused(&Ip::inside6(UDP).packet(&[9; 8][..size])), "inner6_udp_length");
    }
    for length in [0, 7, 13, 0xFFFF] {
        let datagram = [&[0, 1, 0, 2], &u16::to_be_bytes(length)[..], &[0; 6]].concat();
        assert_eq!(refused(&Ip::inside6(UDP).packet(&datagram)), "inner6_udp_length");
    }
}

#[test]
fn icmp_errors_quote_what_we_sent() {
    let ours = Ip {
        source: HOST6.to_vec(),
        target: PEER6.to_vec(),
        ..Ip::new(UDP)
    }
    .udp((1, 2), &noise(9, 90));
    let seen = Ip {
        source: TARGET6.to_vec(),
        target: SENDER6.to_vec(),
        ..Ip::new(UDP)
    }
    .udp((1, 2), &noise(9, 90));
    for kind in 1..5 {
        for cut in 40..seen.len() {
            let sent = Ip::inside6(ICMP6).packet(&message(kind, &seen[..cut]));
            let (got, rest) = delivered(&cleared(&sent), Checksums::Partial).unwrap();
            assert_eq!(rest, Kind::Other);
            assert_eq!(
                checksum(&[&Ip::inside6(ICMP6).here().pseudo(got.len() - 40), &got[40..]]),
                0
            );
            assert_eq!(got[40..48], sent[40..48]);
            assert_eq!(got[48..], ours[..cut]);
            let first = fragment(ICMP6, 1, &sent[40..40 + (cut + 8) / 8 * 8]);
            let (got, _) = delivered(&cleared(&first), Checksums::Full).unwrap();
            assert_eq!(got[56..], ours[..cut / 8 * 8]);
        }
    }
}

#[test]
fn a_quote_with_other_addresses_keeps_the_checksum_right() {
    let foreign = Ip::v6(UDP).udp((1, 2), b"data");
    let sent = Ip::inside6(ICMP6).packet(&message(1, &foreign));
    let (got, _) = delivered(&cleared(&sent), Checksums::Full).unwrap();
    assert_eq!(
        checksum(&[&Ip::inside6(ICMP6).here().pseudo(got.len() - 40), &got[40..]]),
        0
    );
    assert_eq!(got[56..88], [HOST6, PEER6].concat());
}

#[test]
fn icmp_refused() {
    let quote = Ip::inside6(UDP).udp((1, 2), b"");
    for kind in 0..=255 {
        let sent = cleared(&Ip::inside6(ICMP6).packet(&message(kind, &quote)));
        match kind {
            1..=4 => assert!(delivered(&sent, Checksums::Full).is_ok()),
            128 | 129 => assert_eq!(delivered(&sent, Checksums::Full).unwrap().0[40..], sent[40..]),
            _ => assert_eq!(refused(&sent), "inner6_icmp_type"),
        }
    }
    for size in 0..48 {
        let sent = Ip::inside6(ICMP6).packet(&message(1, &quote)[..size]);
        assert_eq!(refused(&sent), "inner6_icmp_quote");
    }
    let mut sent = Ip::inside6(ICMP6).packet(&message(1, &quote));
    sent[48] = 0x45;
    assert_eq!(refused(&sent), "inner6_icmp_quote");
}

#[test]
fn outbound() {
    let network = u32::from_be_bytes([10, 42, 0, 0]);
    let ends = Outbound::new(HOST, network, 0xFFFF_0000, None);
    let (with, without) = (ends.with_ipv6(Some(HOST6)), ends.with_ipv6(None));
    let packet = |source: [u8; 16], target: [u8; 16]| {
        Ip {
            source: source.to_vec(),
            target: target.to_vec(),
            ..Ip::new(UDP)
        }
        .udp((1, 2), b"data")
    };
    let good = packet(HOST6, PEER6);
    assert_eq!(with.destination(&good), Ok(PEER));
    assert_eq!(without.destination(&good), Err("tun_not_ipv4"));
    let mut clear = good.clone();
    clear_destination(&mut clear);
    assert_eq!(clear, [&good[..24], &[0; 16], &good[40..]].concat());
    for source in [PEER6, SENDER6, [0; 16]] {
        assert_eq!(with.destination(&packet(source, PEER6)), Err("tun_source"));
    }
    let multicast = 0xff02_0000_0000_0000_0000_0000_0000_0002u128.to_be_bytes();
    for target in [HOST6, TARGET6, multicast, [0; 16]] {
        assert_eq!(with.destination(&packet(HOST6, target)), Err("tun_destination"));
    }
    for byte in 0..16 {
        let mut target = PEER6;
        target[byte] ^= 1;
        assert_eq!(
            with.destination(&packet(HOST6, target)),
            Err("tun_destination"),
            "{byte}"
        );
    }
    for size in 1..good.len() {
        assert_eq!(with.destination(&good[..size]), Err("tun_length"));
    }
    assert_eq!(with.destination(&[]), Err("tun_not_ipv4"));
    assert_eq!(with.destination(&[&good[..], &[0]].concat()), Err("tun_length"));
}

#[test]
fn the_least_mtu_of_ipv6() {
    for (mtu, want) in [(576, 1280), (1280, 1280), (1281, 1281)] {
        assert_eq!(largest(&Ip::inside6(UDP).udp((1, 2), b""), mtu), want);
        assert_eq!(largest(&Ip::new(UDP).udp((1, 2), b""), mtu), usize::from(mtu));
    }
}

/// Packets that are nearly right, with extension headers.
pub fn nearly6() -> impl Strategy<Value = Vec<u8>> {
    let protocol = prop_oneof![
        3 => Just(TCP),
        3 => Just(UDP),
        3 => Just(ICMP6),
        1 => prop_oneof![Just(DCCP), Just(0), Just(43), Just(44), Just(60), Just(59)],
        1 => any::<u8>(),
    ];
    let header = prop_oneof![
        4 => Just((60u8, OPTIONS.to_vec())),
        2 => (prop_oneof![Just(0u16), Just(1), Just(8), Just(24), any::<u16>()])
            .prop_map(|word| (44, [&[0, 0][..], &word.to_be_bytes(), &[0, 0, 0, 7]].concat())),
        1 => prop::collection::vec(any::<u8>(), 8..24).prop_map(|bytes| (60, bytes)),
    ];
    let headers = prop_oneof![2 => Just(vec![]), 1 => prop::collection::vec(header, 0..4)];
    let body = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..120),
        (0usize..1400, any::<u64>()).prop_map(|(size, seed)| noise(seed, size)),
        (0usize..90).prop_map(|size| vec![0xFF; size]),
    ];
    (protocol, headers, body, prop::bool::weighted(0.7), any::<(u8, u16)>()).prop_map(
        |(protocol, headers, mut body, fine, (kind, noisy))| {
            let size = body.len();
            if fine && protocol == UDP && size >= 8 {
                body[4..6].copy_from_slice(&(size as u16 - (noisy & 64) / 64).to_be_bytes());
            }
            if fine && protocol == ICMP6 && size >= 9 {
                body[0] = [1, 2, 3, 4, 128, 129][usize::from(kind % 6)];
                body[8] = 0x60;
            }
            let headers: Vec<_> = headers.iter().map(|(kind, bytes)| (*kind, &bytes[..])).collect();
            let mut packet = extended(&Ip::inside6(protocol).packet(&body), &headers);
            if !fine {
                let length = packet.len();
                packet[1 + usize::from(noisy) % (length - 1)] ^= kind;
            }
            packet
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn partial_finished_by_the_kernel_is_full(packet in nearly6()) {
        prop_assert_eq!(finished(&packet), delivered(&packet, Checksums::Full).map(|(packet, _)| packet));
    }

    #[test]
    fn never_panics(mut raw in prop::collection::vec(prop_oneof![Just(0u8), Just(44), Just(60), any::<u8>()], 1..160)) {
        raw[0] = 0x60;
        if let Some(length) = raw.len().checked_sub(40) {
            raw[4..6].copy_from_slice(&(length as u16).to_be_bytes());
        }
        let full = delivered(&raw, Checksums::Full);
        if let Ok((packet, _)) = &full {
            prop_assert_eq!(&packet[8..40], &[PEER6, HOST6].concat()[..]);
        }
        prop_assert_eq!(finished(&raw), full.map(|(packet, _)| packet));
        let _ = host_unreachable(&raw);
        let _ = too_big(&raw, 1280);
        let mut clamped = raw.clone();
        crate::packet::mss::clamp(&mut clamped, 1280);
    }
}
