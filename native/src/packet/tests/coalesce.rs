use std::collections::BTreeMap;

use proptest::prelude::*;

use super::inner::nearly;
use super::*;
use crate::packet::coalesce::{MOST_PACKETS, MOST_PIECES, MOST_RUNS};
use crate::packet::segment::{GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM};

/// A batch as the engine makes it: packets in one arena, with gaps, readdressed and with partial checksums.
struct Batch {
    coalescer: Coalescer,
    arena: Vec<u8>,
    entries: Vec<(usize, Delivery)>,
}

impl Batch {
    fn of(packets: &[Vec<u8>], tso: bool, uso: bool) -> Self {
        let mut batch = Self { coalescer: Coalescer::new(tso, uso), arena: vec![0xEE; 13], entries: vec![] };
        for packet in packets {
            let (packet, kind) = delivered(packet, Checksums::Partial).unwrap();
            batch.entries.push((batch.arena.len(), Delivery { len: packet.len(), kind }));
            batch.arena.extend(packet);
            batch.arena.extend([0xEE; 5]);
        }
        for (start, delivery) in &batch.entries {
            batch.coalescer.add(&batch.arena, *start, delivery).unwrap();
        }
        batch
    }

    /// What each run gives to the kernel: the virtio header and the packet.
    fn writes(&self) -> Vec<(VnetHeader, Vec<u8>)> {
        let write = |run: Run| {
            let mut bytes = run.head().to_vec();
            let pieces: Vec<_> = run.pieces().collect();
            assert!(!pieces.is_empty() && pieces.len() <= MOST_PIECES && pieces.len() == run.count());
            for (start, len) in pieces {
                bytes.extend(&self.arena[start..start + len]);
            }
            (VnetHeader::parse(&bytes).unwrap(), bytes[VNET_HEADER_BYTES..].to_vec())
        };
        self.coalescer.runs().map(write).collect()
    }

    /// How many packets there are in each run.
    fn counts(&self) -> Vec<usize> {
        self.coalescer.runs().map(|run| run.count()).collect()
    }
}

/// What the kernel's GSO makes of a write.
fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
    let mut packet = packet.to_vec();
    if !header.is_gso() {
        finish_checksum(header, &mut packet).unwrap();
        return vec![packet];
    }
    let plan = Plan::new(header, &packet).unwrap();
    assert!(plan.count() > 1);
    let segments = (0..plan.count()).map(|index| {
        let mut out = vec![0; plan.len(index)];
        plan.write(index, &packet, &mut out);
        out
    });
    segments.collect()
}

fn full(packet: &[u8]) -> Vec<u8> {
    delivered(packet, Checksums::Full).unwrap().0
}

fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    Batch::of(packets, true, true).counts()
}

/// A stream of TCP segments; `change` may alter each one.
fn tcp_stream(sizes: &[usize], change: impl Fn(usize, &mut Ip, &mut TcpHeader)) -> Vec<Vec<u8>> {
    let mut sequence = 0xFFFF_FE00u32;
    let make = |(index, &size): (usize, &usize)| {
        let mut ip = Ip { id: 0xFFFE_u16.wrapping_add(index as u16), ..Ip::new(TCP) };
        let mut tcp = TcpHeader { sequence, ..TcpHeader::default() };
        sequence = sequence.wrapping_add(size as u32);
        change(index, &mut ip, &mut tcp);
        cleared(&ip.tcp(&tcp, &noise(index as u64, size)))
    };
    sizes.iter().enumerate().map(make).collect()
}

fn udp_stream(sizes: &[usize], change: impl Fn(usize, &mut Ip, &mut (u16, u16))) -> Vec<Vec<u8>> {
    let make = |(index, &size): (usize, &usize)| {
        let (mut ip, mut ports) = (Ip { id: index as u16, ..Ip::new(UDP) }, (1, 2));
        change(index, &mut ip, &mut ports);
        cleared(&ip.udp(ports, &noise(index as u64, size)))
    };
    sizes.iter().enumerate().map(make).collect()
}

#[test]
fn tcp_is_joined() {
    let packets = tcp_stream(&[500, 500, 500, 77], |index, _, tcp| tcp.flags |= if index == 3 { 8 } else { 0 });
    let batch = Batch::of(&packets, true, false);
    let writes = batch.writes();
    let [(header, packet)] = &writes[..] else { panic!("{:?}", batch.counts()) };
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 52,
        gso_size: 500,
        csum_start: 20,
        csum_offset: 16,
    };
    assert_eq!(*header, want);
    let ip = Ip { source: PEER.to_vec(), target: HOST.to_vec(), id: 0xFFFE, ..Ip::new(TCP) };
    let tcp = TcpHeader { sequence: 0xFFFF_FE00, flags: 0x18, ..TcpHeader::default() };
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[52..].to_vec()).collect();
    let mut want = ip.tcp(&tcp, &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 20)]);
    want[36..38].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(*packet, want);
    assert_eq!(cut(header, packet), packets.iter().map(|packet| full(packet)).collect::<Vec<_>>());
}

#[test]
fn udp_is_joined() {
    let packets = udp_stream(&[500, 500, 500, 77], |_, _, _| {});
    let batch = Batch::of(&packets, false, true);
    let writes = batch.writes();
    let [(header, packet)] = &writes[..] else { panic!("{:?}", batch.counts()) };
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 28,
        gso_size: 500,
        csum_start: 20,
        csum_offset: 6,
    };
    assert_eq!(*header, want);
    let ip = Ip { source: PEER.to_vec(), target: HOST.to_vec(), id: 0, ..Ip::new(UDP) };
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[28..].to_vec()).collect();
    let mut want = ip.udp((1, 2), &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 20)]);
    want[26..28].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(*packet, want);
    assert_eq!(cut(header, packet), packets.iter().map(|packet| full(packet)).collect::<Vec<_>>());
}

#[test]
fn a_packet_by_itself_is_written_as_it_lies() {
    let packets = [tcp_stream(&[9], |_, _, _| {}), udp_stream(&[9], |_, _, _| {})].concat();
    let batch = Batch::of(&packets, true, true);
    for (index, (run, at)) in batch.coalescer.runs().zip([16, 6]).enumerate() {
        let want = VnetHeader { flags: NEEDS_CSUM, csum_start: 20, csum_offset: at, ..VnetHeader::default() };
        assert_eq!(run.head(), want.to_bytes());
        let (start, delivery) = batch.entries[index];
        assert_eq!(run.pieces().collect::<Vec<_>>(), [(start, delivery.len)]);
        assert_eq!(run.packets().collect::<Vec<_>>(), [(start, delivery)]);
    }
}

#[test]
fn the_packets_of_a_run_can_be_had_one_by_one() {
    let batch = Batch::of(&tcp_stream(&[100; 5], |_, _, _| {}), true, true);
    let run = batch.coalescer.runs().next().unwrap();
    assert_eq!(run.packets().collect::<Vec<_>>(), batch.entries);
    let payload: Vec<_> = batch.entries.iter().map(|(start, delivery)| (start + 52, delivery.len - 52)).collect();
    assert_eq!(run.pieces().collect::<Vec<_>>(), payload);
}

#[test]
fn what_ends_a_run_and_what_never_joins() {
    let sizes = [104; 5]; // so that fragments are in units of 8 bytes
    assert_eq!(counts(&tcp_stream(&sizes, |_, _, _| {})), [5]);
    type Change = fn(&mut Ip, &mut TcpHeader);
    let own: [Change; 10] = [
        |_, tcp| tcp.flags |= 0x02,
        |_, tcp| tcp.flags |= 0x04,
        |_, tcp| tcp.flags |= 0x20,
        |_, tcp| tcp.flags |= 0x80,
        |ip, _| ip.options = vec![1; 4],
        |ip, _| ip.fragment = 0x8000,
        |ip, _| ip.fragment = 0x2000,
        |ip, _| ip.fragment = 0x0010,
        |_, tcp| tcp.flags |= 0x02 | 0x08,
        |ip, _| ip.protocol = 132,
    ];
    for (case, change) in own.iter().enumerate() {
        let packets = tcp_stream(&sizes, |index, ip, tcp| {
            if index == 2 {
                change(ip, tcp)
            }
        });
        // Another protocol is no part of the flow, but what follows is not contiguous.
        assert_eq!(counts(&packets), [2, 1, 2], "{case}");
    }
    let new: [Change; 8] = [
        |ip, _| ip.tos = 2,
        |ip, _| ip.ttl = 63,
        |ip, _| ip.fragment = 0x4000,
        |_, tcp| tcp.acknowledged += 1,
        |_, tcp| tcp.window += 1,
        |_, tcp| tcp.flags |= 0x40,
        |_, tcp| tcp.options[11] += 1,
        |_, tcp| tcp.options = vec![],
    ];
    for (case, change) in new.iter().enumerate() {
        let packets = tcp_stream(&sizes, |index, ip, tcp| {
            if index >= 2 {
                change(ip, tcp)
            }
        });
        assert_eq!(counts(&packets), [2, 3], "{case}");
    }
    for flags in [0x01, 0x08, 0x09] {
        assert_eq!(
            counts(&tcp_stream(&sizes, |index, _, tcp| tcp.flags |= if index == 2 { flags } else { 0 })),
            [3, 2]
        );
        assert_eq!(
            counts(&tcp_stream(&sizes, |index, _, tcp| tcp.flags |= if index == 0 { flags } else { 0 })),
            [1, 4]
        );
    }
}

#[test]
fn identifications() {
    let jump = |index: usize, ip: &mut Ip| ip.id = if index < 2 { index as u16 } else { 9 };
    assert_eq!(counts(&tcp_stream(&[100; 5], |index, ip, _| jump(index, ip))), [2, 1, 1, 1]);
    assert_eq!(counts(&udp_stream(&[100; 5], |index, ip, _| jump(index, ip))), [2, 1, 1, 1]);
    let unfragmented = |index: usize, ip: &mut Ip| (ip.fragment, ip.id) = (0x4000, index as u16 * 7777);
    assert_eq!(counts(&tcp_stream(&[100; 5], |index, ip, _| unfragmented(index, ip))), [5]);
    assert_eq!(counts(&udp_stream(&[100; 5], |index, ip, _| unfragmented(index, ip))), [5]);
}

#[test]
fn sizes() {
    assert_eq!(counts(&tcp_stream(&[100, 100, 99, 100, 100], |_, _, _| {})), [3, 2]);
    assert_eq!(counts(&udp_stream(&[100, 100, 99, 100, 100], |_, _, _| {})), [3, 2]);
    assert_eq!(counts(&tcp_stream(&[100, 101, 101], |_, _, _| {})), [1, 2]);
    assert_eq!(counts(&udp_stream(&[100, 101, 101], |_, _, _| {})), [1, 2]);
    assert_eq!(counts(&tcp_stream(&[100, 0, 100, 100, 0, 0], |_, _, _| {})), [1, 1, 2, 1, 1]);
    assert_eq!(counts(&udp_stream(&[100, 0, 100, 100, 0, 0], |_, _, _| {})), [1, 1, 2, 1, 1]);
    assert_eq!(counts(&tcp_stream(&[10; 130], |_, _, _| {})), [64, 64, 2]);
    assert_eq!(counts(&udp_stream(&[10; 130], |_, _, _| {})), [64, 64, 2]);
    assert_eq!(counts(&tcp_stream(&[1400; 50], |_, _, _| {})), [46, 4]);
    assert_eq!(counts(&udp_stream(&[16377; 4], |_, _, _| {})), [3, 1]);
    assert_eq!(counts(&udp_stream(&[16377, 16377, 16377, 16376], |_, _, _| {})), [4]);
}

#[test]
fn a_gap_or_a_repeat_ends_a_run() {
    for shift in [1, 100, 0xFFFF_FF9C] {
        let packets = tcp_stream(&[100; 4], |index, _, tcp| {
            tcp.sequence = tcp.sequence.wrapping_add(if index >= 2 { shift } else { 0 });
        });
        assert_eq!(counts(&packets), [2, 2]);
    }
}

#[test]
fn udp_without_checksum_or_with_a_surplus_stays_alone_and_in_order() {
    let mut packets = udp_stream(&[100; 6], |_, _, _| {});
    packets[2][26..28].fill(0);
    assert_eq!(counts(&packets), [2, 1, 3]);
    packets[4][25] -= 1;
    assert_eq!(counts(&packets), [2, 1, 1, 1, 1]);
}

#[test]
fn flows_do_not_mix_and_switches_are_obeyed() {
    let tcp = tcp_stream(&[100; 4], |_, _, _| {});
    let other = tcp_stream(&[100; 4], |_, _, tcp| tcp.ports.0 = 7);
    let udp = udp_stream(&[100; 4], |_, _, _| {});
    let more = udp_stream(&[100; 4], |_, _, ports| ports.1 = 7);
    let mixed: Vec<_> = (0..4).flat_map(|i| [&tcp[i], &other[i], &udp[i], &more[i]].map(Vec::clone)).collect();
    assert_eq!(counts(&mixed), [4, 4, 4, 4]);
    assert_eq!(Batch::of(&tcp, false, true).counts(), [1; 4]);
    assert_eq!(Batch::of(&udp, true, false).counts(), [1; 4]);
    let others = vec![cleared(&Ip::new(50).packet(&[1; 99])); 3];
    assert_eq!(counts(&others), [1; 3]);
}

#[test]
fn full_and_cleared() {
    let ack = tcp_stream(&[0], |_, _, _| {});
    let data = tcp_stream(&[1], |_, _, _| {});
    let batch = Batch::of(&ack, true, true);
    let (start, delivery) = batch.entries[0];
    let mut coalescer = batch.coalescer;
    for _ in 1..MOST_RUNS {
        assert_eq!(coalescer.add(&batch.arena, start, &delivery), Ok(()));
    }
    assert_eq!(coalescer.add(&batch.arena, start, &delivery), Err(Full));
    assert_eq!(coalescer.runs().count(), MOST_RUNS);
    coalescer.clear();
    assert!(coalescer.is_empty());
    assert_eq!(coalescer.add(&batch.arena, start, &delivery), Ok(()));

    let packets = udp_stream(&vec![100; MOST_PACKETS], |_, _, _| {});
    let batch = Batch::of(&packets, true, true);
    assert_eq!(batch.counts(), [MOST_PIECES; MOST_PACKETS / MOST_PIECES]);
    let mut coalescer = batch.coalescer;
    assert_eq!(coalescer.add(&batch.arena, batch.entries[0].0, &batch.entries[0].1), Err(Full));
    // After clearing, nothing joins a run of before.
    coalescer.clear();
    let batch = Batch::of(&data, true, true);
    assert_eq!(coalescer.add(&batch.arena, batch.entries[0].0, &batch.entries[0].1), Ok(()));
    assert_eq!(coalescer.runs().map(|run| run.count()).collect::<Vec<_>>(), [1]);
}

#[test]
fn what_lies_outside_the_arena_is_ignored() {
    let mut coalescer = Coalescer::new(true, true);
    for (start, len) in [(0, 101), (101, 0), (usize::MAX, 1), (1, usize::MAX)] {
        assert_eq!(coalescer.add(&[0; 100], start, &Delivery { len, kind: Kind::Other }), Ok(()));
    }
    assert!(coalescer.is_empty());
}

/// One step of a flow: which of four flows, what happens, and how many bytes.
fn steps() -> impl Strategy<Value = Vec<(u8, u8, u16)>> {
    prop::collection::vec((0u8..4, any::<u8>(), prop_oneof![4 => Just(64u16), 1 => 0u16..70]), 1..120)
}

/// Flows that mostly run on, with everything that disturbs one now and then. Two are TCP, two UDP.
fn play(steps: &[(u8, u8, u16)], unfragmented: bool) -> Vec<Vec<u8>> {
    let fragment = if unfragmented { 0x4000 } else { 0 };
    let mut ips = [TCP, TCP, UDP, UDP].map(|protocol| Ip { fragment, ..Ip::new(protocol) });
    let mut headers = [1, 2].map(|port| TcpHeader { ports: (port, 80), ..TcpHeader::default() });
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
            7 => tcp.options = if tcp.options.len() == 12 { vec![1; 16] } else { vec![1; 12] },
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
            25 => Ip { fragment: 0x2000, ..ip.clone() },
            26 => Ip { fragment: 9, ..ip.clone() },
            27 => Ip { options: vec![1; 4], ..ip.clone() },
            28 => Ip { fragment: ip.fragment | 0x8000, ..ip.clone() },
            _ => ip.clone(),
        };
        let packet = if flow < 2 {
            let segment = disturbed.tcp(&TcpHeader { flags, ..tcp.clone() }, &data);
            tcp.sequence = tcp.sequence.wrapping_add(u32::from(size));
            segment
        } else {
            let mut datagram = disturbed.udp((flow as u16, 9), &data);
            if event == 29 && disturbed.options.is_empty() {
                datagram[26..28].fill(0);
            }
            datagram
        };
        cleared(&packet)
    };
    let played = steps.iter().enumerate().map(step);
    played.filter(|packet| delivered(packet, Checksums::Partial).is_ok()).collect()
}

/// A flow, or the number of a packet that belongs to none.
fn key(packet: &[u8], index: usize) -> Vec<u8> {
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
    if word(&packet, 6) & DONT_FRAGMENT != 0 {
        packet[4..6].fill(0);
        packet[10..12].fill(0);
    }
    packet
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn cutting_gives_back_what_was_joined(steps in steps(), unfragmented: bool, tso: bool, uso: bool) {
        let packets = play(&steps, unfragmented);
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
        for packets in [tcp_stream(&sizes, |_, _, _| {}), udp_stream(&sizes, |_, _, _| {})] {
            let batch = Batch::of(&packets, true, true);
            let got: Vec<_> = batch.writes().iter().flat_map(|(header, packet)| cut(header, packet)).collect();
            prop_assert_eq!(got, packets.iter().map(|packet| full(packet)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn any_packets_come_out_once(packets in prop::collection::vec(nearly(), 0..40)) {
        let packets: Vec<_> = packets.into_iter().filter(|packet| delivered(packet, Checksums::Partial).is_ok()).collect();
        let batch = Batch::of(&packets, true, true);
        let count: usize = batch.counts().iter().sum();
        prop_assert_eq!(count, packets.len());
        let got: Vec<_> = batch.writes().iter().flat_map(|(header, packet)| cut(header, packet)).collect();
        prop_assert_eq!(got.len(), packets.len());
    }

    #[test]
    fn never_panics(
        arena in prop::collection::vec(prop_oneof![Just(0x45u8), Just(TCP), Just(UDP), Just(0), any::<u8>()], 0..400),
        places in prop::collection::vec((0usize..420, 0usize..120, 0u8..3, prop_oneof![Just(20u16), any::<u16>()]), 0..40),
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
