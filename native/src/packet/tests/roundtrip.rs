//! Streams joined and cut again: nothing lost, nothing invented, order kept.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::coalesce::{cut, full, tcp_stream, udp_stream, Batch};
use super::coalesce6::six;
use super::inner::nearly;
use super::inner6::nearly6;
use super::*;

/// One step of a flow: which of four flows, what happens, and how many bytes.
fn steps() -> impl Strategy<Value = Vec<(u8, u8, u16)>> {
    prop::collection::vec(
        (0u8..4, any::<u8>(), prop_oneof![4 => Just(64u16), 1 => 0u16..70]),
        1..120,
    )
}

/// Flows that mostly run on, with everything that disturbs one now and then. Two are TCP, two UDP.
fn play(steps: &[(u8, u8, u16)], unfragmented: bool, six: [bool; 4]) -> Vec<Vec<u8>> {
    let fragment = if unfragmented { 0x4000 } else { 0 };
    let mut ips = [TCP, TCP, UDP, UDP].map(|protocol| Ip {
        fragment,
        ..Ip::new(protocol)
    });
    for (ip, _) in ips.iter_mut().zip(six).filter(|(_, six)| *six) {
        (ip.source, ip.target) = (SENDER6.to_vec(), TARGET6.to_vec());
    }
    let mut headers = [1, 2].map(|port| TcpHeader {
        ports: (port, 80),
        ..TcpHeader::default()
    });
    let step = |(index, &(flow, event, size)): (usize, &(u8, u8, u16))| {
        let flow = usize::from(flow);
        let data = noise(index as u64, usize::from(size));
        let (ip, tcp) = (&mut ips[flow], &mut headers[flow % 2]);
        ip.id = ip.id.wrapping_add(1);
        match event {
            0 => ip.tos ^= 1,
            1 => ip.ttl ^= 1,
            2 => ip.id = ip.id.wrapping_add(9),
            3 => ip.fragment ^= 0x4000,
            4 => tcp.acknowledged += 1,
            5 => tcp.window ^= 1,
            6 => tcp.options[11] ^= 1,
            7 => {
                tcp.options = if tcp.options.len() == 12 {
                    vec![1; 16]
                } else {
                    vec![1; 12]
                }
            }
            8 => tcp.sequence = tcp.sequence.wrapping_sub(64),
            9 => tcp.sequence ^= 0x8000_0000,
            _ => {}
        }
        let flags = match event {
            10..=17 => 1 << (event - 10) | 0x10,
            18 => 0x50,
            19..=24 => 0x18,
            _ => 0x10,
        };
        let disturbed = match event {
            25 => Ip {
                fragment: 0x2000,
                ..ip.clone()
            },
            26 => Ip {
                fragment: 9,
                ..ip.clone()
            },
            27 => Ip {
                options: vec![1; 4],
                ..ip.clone()
            },
            28 => Ip {
                fragment: ip.fragment | 0x8000,
                ..ip.clone()
            },
            _ => ip.clone(),
        };
        let packet = if flow < 2 {
            let segment = disturbed.tcp(&TcpHeader { flags, ..tcp.clone() }, &data);
            tcp.sequence = tcp.sequence.wrapping_add(u32::from(size));
            segment
        } else {
            let mut datagram = disturbed.udp((flow as u16, 9), &data);
            if event == 29 && disturbed.options.is_empty() {
                let at = datagram.len() - data.len() - 2;
                datagram[at..at + 2].fill(0);
            }
            datagram
        };
        cleared(&match (event, packet[0] >> 4) {
            (25..=26, 6) => extended(&packet, &[(44, &[0, 0, 0, event - 25, 0, 0, 0, 1])]),
            (27, 6) => extended(&packet, &[(60, &[0, 0, 1, 4, 0, 0, 0, 0])]),
            (28, 6) => [&packet[..3], &[7], &packet[4..]].concat(),
            _ => packet,
        })
    };
    let played = steps.iter().enumerate().map(step);
    played
        .filter(|packet| delivered(packet, Checksums::Partial).is_ok())
        .collect()
}

/// A flow, or the number of a packet that belongs to none.
fn key(packet: &[u8], index: usize) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        return match packet[6] {
            TCP | UDP => [&packet[6..7], &packet[8..44]].concat(),
            _ => index.to_be_bytes().to_vec(),
        };
    }
    let header = usize::from(packet[0] & 15) * 4;
    match packet[9] {
        TCP | UDP if word(packet, 6) & 0x3FFF == 0 => {
            [&packet[9..10], &packet[12..20], &packet[header..header + 4]].concat()
        }
        _ => index.to_be_bytes().to_vec(),
    }
}

fn by_flow(packets: &[Vec<u8>]) -> BTreeMap<Vec<u8>, Vec<Vec<u8>>> {
    let (mut flows, mut others) = (BTreeMap::<_, Vec<_>>::new(), 0);
    for packet in packets {
        let key = key(packet, others);
        others += usize::from(key.len() == size_of::<usize>());
        flows.entry(key).or_default().push(packet.clone());
    }
    flows
}

/// The identification does not matter where fragments are forbidden (RFC 6864); the kernel counts it up when it cuts.
fn without_identification(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 4 && word(&packet, 6) & DONT_FRAGMENT != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cutting_gives_back_what_was_joined(
        steps in steps(),
        unfragmented: bool,
        six: [bool; 4],
        tso in prop::bool::weighted(0.8),
        uso in prop::bool::weighted(0.8),
    ) {
        let packets = play(&steps, unfragmented, six);
        let batch = Batch::of(&packets, tso, uso);
        let want: Vec<_> = packets.iter().map(|packet| without_identification(full(packet))).collect();
        let writes = batch.writes();
        let firsts: Vec<_> = writes.iter().map(|(header, packet)| cut(header, packet)[0].clone()).collect();
        let got: Vec<_> = writes.iter().flat_map(|(header, packet)| cut(header, packet)).map(without_identification).collect();
        prop_assert_eq!(by_flow(&got), by_flow(&want));
        // The runs are in the order of their first packets, and hold each packet once.
        let mut starts: Vec<usize> = batch.coalescer.runs().map(|run| run.packets().next().unwrap().0).collect();
        prop_assert_eq!(firsts.len(), starts.len());
        prop_assert!(starts.is_sorted());
        starts = batch.coalescer.runs().flat_map(|run| run.packets().map(|(start, _)| start)).collect();
        starts.sort_unstable();
        prop_assert_eq!(starts, batch.entries.iter().map(|(start, _)| *start).collect::<Vec<_>>());
    }

    #[test]
    fn undisturbed_flows_come_back_to_the_byte(sizes in prop::collection::vec(1usize..200, 1..90), most in 1usize..200) {
        let sizes: Vec<_> = sizes.iter().map(|size| (*size).min(most)).collect();
        for packets in [
            tcp_stream(&sizes, |_, _, _| {}),
            udp_stream(&sizes, |_, _, _| {}),
            tcp_stream(&sizes, |_, ip, _| six(ip)),
            udp_stream(&sizes, |_, ip, _| six(ip)),
        ] {
            let batch = Batch::of(&packets, true, true);
            let got: Vec<_> = batch.writes().iter().flat_map(|(header, packet)| cut(header, packet)).collect();
            prop_assert_eq!(got, packets.iter().map(|packet| full(packet)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_packets_come_out_once(packets in prop::collection::vec(prop_oneof![nearly(), nearly6()], 0..40)) {
        let packets: Vec<_> = packets.into_iter().filter(|packet| delivered(packet, Checksums::Partial).is_ok()).collect();
        let batch = Batch::of(&packets, true, true);
        let count: usize = batch.counts().iter().sum();
        prop_assert_eq!(count, packets.len());
        let got: Vec<_> = batch.writes().iter().flat_map(|(header, packet)| cut(header, packet)).collect();
        prop_assert_eq!(got.len(), packets.len());
    }

    #[test]
    fn never_panics(
        arena in prop::collection::vec(
            prop_oneof![Just(0x45u8), Just(0x60), Just(TCP), Just(UDP), Just(0), any::<u8>()],
            0..400,
        ),
        places in prop::collection::vec(
            (0usize..420, 0usize..120, 0u8..3, prop_oneof![Just(20u16), Just(40), any::<u16>()]),
            0..40,
        ),
    ) {
        let mut coalescer = Coalescer::new(true, true);
        for (start, len, kind, transport) in places {
            let kind = [Kind::Other, Kind::Tcp { transport }, Kind::Udp { transport }][usize::from(kind)];
            let _ = coalescer.add(&arena, start, &Delivery { len, kind });
        }
        for run in coalescer.runs() {
            prop_assert!(run.pieces().all(|(start, len)| start + len <= arena.len()));
            prop_assert!(run.head().len() >= VNET_HEADER_BYTES);
        }
    }
}
