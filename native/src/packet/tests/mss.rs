use proptest::prelude::*;

use super::inner6::nearly6;
use super::*;
use crate::packet::mss::clamp;

const SYN: u8 = 2;
const SYN_ACK: u8 = 0x12;

fn syn(ip: &Ip, flags: u8, options: &[u8]) -> Vec<u8> {
    let tcp = TcpHeader {
        flags,
        options: options.to_vec(),
        ..TcpHeader::default()
    };
    ip.tcp(&tcp, b"")
}

fn clamped(packet: &[u8], mtu: u16) -> Vec<u8> {
    let mut packet = packet.to_vec();
    clamp(&mut packet, mtu);
    packet
}

fn mss(size: u16) -> Vec<u8> {
    [&[2, 4], &size.to_be_bytes()[..]].concat()
}

#[test]
fn a_larger_one_is_lowered() {
    for (ip, headers, mtu) in [
        (Ip::new(TCP), 40, 1100),
        (Ip::new(TCP), 40, 576),
        (Ip::v6(TCP), 60, 1300),
    ] {
        for flags in [SYN, SYN_ACK, 0xC2] {
            for said in [mtu - headers + 1, 1460, 0xFFFF] {
                let timestamps = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0];
                let packet = syn(&ip, flags, &[&mss(said)[..], &timestamps].concat());
                let want = syn(&ip, flags, &[&mss(mtu - headers)[..], &timestamps].concat());
                assert_eq!(clamped(&packet, mtu), want);
            }
        }
    }
    assert_eq!(
        clamped(&syn(&Ip::v6(TCP), SYN, &mss(1460)), 600),
        syn(&Ip::v6(TCP), SYN, &mss(1220))
    );
}

#[test]
fn it_is_never_raised() {
    for said in [0, 1, 536, 1059, 1060] {
        let packet = syn(&Ip::new(TCP), SYN, &mss(said));
        assert_eq!(clamped(&packet, 1100), packet);
    }
}

#[test]
fn at_odd_places_and_more_than_once() {
    for before in [&[1][..], &[1, 1], &[1, 1, 1], &[3, 3, 7], &[30, 5, 1, 2, 3]] {
        let options = |size| {
            let mut options = [before, &mss(size), &[1], &mss(size), &mss(9)].concat();
            options.resize(options.len().next_multiple_of(4), 0);
            options
        };
        let packet = syn(&Ip::new(TCP), SYN, &options(1460));
        assert_eq!(clamped(&packet, 1100), syn(&Ip::new(TCP), SYN, &options(1060)));
    }
}

#[test]
fn what_makes_no_sense_stays() {
    for options in [
        &[0, 2, 4, 9, 9, 0, 0, 0][..], // behind the end
        &[2, 5, 9, 9, 9, 1, 1, 1],     // of another length
        &[2, 3, 9, 1],
        &[2, 0, 9, 9],
        &[3, 1, 2, 4, 9, 9, 1, 1],
        &[3, 9, 2, 4, 9, 9, 1, 1],
        &[1, 1, 2, 4],
        &[1, 1, 1, 2],
        &[],
    ] {
        let packet = syn(&Ip::new(TCP), SYN, options);
        assert_eq!(clamped(&packet, 1100), packet, "{options:?}");
    }
}

#[test]
fn only_whole_syns_of_tcp() {
    let good = syn(&Ip::new(TCP), SYN, &mss(1460));
    assert_ne!(clamped(&good, 1100), good);
    for flags in [0x10, 0x18, 0x11, 4] {
        let packet = syn(&Ip::new(TCP), flags, &mss(1460));
        assert_eq!(clamped(&packet, 1100), packet);
    }
    for size in 0..good.len() {
        assert_eq!(clamped(&good[..size], 1100), good[..size]);
    }
    for (at, value) in [
        (0, 0x44),
        (0, 0x55),
        (6, 0x20),
        (7, 1),
        (9, UDP),
        (32, 0x40),
        (32, 0xF0),
    ] {
        let mut packet = good.clone();
        packet[at] = value;
        assert_eq!(clamped(&packet, 1100), packet, "{at}");
    }
    let good = syn(&Ip::v6(TCP), SYN, &mss(1460));
    assert_ne!(clamped(&good, 1300), good);
    for size in 0..good.len() {
        assert_eq!(clamped(&good[..size], 1300), good[..size]);
    }
}

#[test]
fn padding_is_no_part_of_a_header() {
    for (ip, headers) in [(Ip::new(TCP), 40), (Ip::v6(TCP), 60)] {
        let (packet, mtu) = (syn(&ip, SYN, &mss(1460)), 1300);
        let padded = [&packet[..], &[7; 9]].concat();
        let want = [&syn(&ip, SYN, &mss(mtu - headers))[..], &[7; 9]].concat();
        assert_eq!(clamped(&padded, mtu), want);
        // A length that ends within the header, and one that nothing is behind.
        let at = if headers == 40 { 3 } else { 5 };
        for change in [-1i8, -4, 1] {
            let mut packet = packet.clone();
            packet[at] = packet[at].wrapping_add_signed(change);
            assert_eq!(clamped(&packet, mtu), packet);
        }
    }
}

#[test]
fn behind_options_of_ipv4_and_ipv6() {
    let ip = Ip {
        options: vec![1; 8],
        ..Ip::new(TCP)
    };
    assert_eq!(clamped(&syn(&ip, SYN, &mss(1460)), 1100), syn(&ip, SYN, &mss(1060)));
    let behind = |size| {
        let packet = syn(&Ip::v6(TCP), SYN, &mss(size));
        let mut long = [&packet[..40], &[TCP, 0, 1, 4, 0, 0, 0, 0], &packet[40..]].concat();
        long[5] += 8;
        long[6] = 60;
        long
    };
    assert_eq!(clamped(&behind(1460), 1300), behind(1240));
}

#[test]
fn before_what_finishes_or_cuts() {
    // Of a peer's packet the checksum is made anew behind us, so that it may be stale here.
    let (here, there) = (Ip::inside6(TCP), Ip::inside6(TCP).here());
    let mut packet = clamped(&cleared(&syn(&here, SYN, &mss(1460))), 1300);
    inbound().deliver(&mut packet, Checksums::Full).unwrap();
    assert_eq!(packet, syn(&there, SYN, &mss(1240)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn any_options_end_in_a_packet_that_is_as_valid_as_before(
        options in prop::collection::vec(prop_oneof![Just(1u8), Just(2), Just(4), any::<u8>()], 0..40),
        flags in prop_oneof![Just(SYN), Just(SYN_ACK), any::<u8>()],
        mtu in 576u16..,
        six: bool,
    ) {
        let options = [&options[..], &vec![0; options.len().next_multiple_of(4) - options.len()]].concat();
        let ip = if six { Ip::v6(TCP) } else { Ip::new(TCP) };
        let packet = syn(&ip, flags, &options);
        let got = clamped(&packet, mtu);
        let transport = if six { 40 } else { 20 };
        prop_assert_eq!(&got[..transport + 16], &packet[..transport + 16]);
        prop_assert_eq!(checksum(&[&ip.pseudo(got.len() - transport), &got[transport..]]), 0);
        prop_assert_eq!(clamped(&got, mtu), got.clone());
        let most = largest(&packet, mtu) - transport - 20;
        let at = |place: usize, packet: &[u8]| u32::from_be_bytes(packet[place..place + 4].try_into().unwrap());
        let lowered = 0x0204_0000 | most as u32;
        let places = transport + 20..packet.len().saturating_sub(3);
        let strange = places.filter(|&place| at(place, &got) >> 16 == 0x0204 && at(place, &got) != lowered);
        prop_assert!(strange.into_iter().all(|place| at(place, &got) == at(place, &packet)));
    }

    #[test]
    fn never_panics(raw in nearly6(), first: u8, mtu: u16) {
        let mut raw = raw;
        clamp(&mut raw, mtu);
        raw[0] = first;
        clamp(&mut raw, mtu);
    }
}
