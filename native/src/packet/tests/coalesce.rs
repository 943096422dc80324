use super::*;
use crate::packet::coalesce::{MOST_PACKETS, MOST_PIECES, MOST_RUNS};
use crate::packet::segment::{GSO_TCPV4, GSO_UDP_L4, NEEDS_CSUM};

/// A batch as the engine makes it: packets in one arena, with gaps, readdressed and with partial checksums.
pub struct Batch {
    pub coalescer: Coalescer,
    pub arena: Vec<u8>,
    pub entries: Vec<(usize, Delivery)>,
}

impl Batch {
    pub fn of(packets: &[Vec<u8>], tso: bool, uso: bool) -> Self {
        let mut batch = Self {
            coalescer: Coalescer::new(tso, uso),
            arena: vec![0xEE; 13],
            entries: vec![],
        };
        for packet in packets {
            let (packet, kind) = delivered(packet, Checksums::Partial).unwrap();
            batch.entries.push((
                batch.arena.len(),
                Delivery {
                    len: packet.len(),
                    kind,
                },
            ));
            batch.arena.extend(packet);
            batch.arena.extend([0xEE; 5]);
        }
        for (start, delivery) in &batch.entries {
            batch.coalescer.add(&batch.arena, *start, delivery).unwrap();
        }
        batch
    }

    /// What each run gives to the kernel: the virtio header and the packet.
    pub fn writes(&self) -> Vec<(VnetHeader, Vec<u8>)> {
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
    pub fn counts(&self) -> Vec<usize> {
        self.coalescer.runs().map(|run| run.count()).collect()
    }
}

/// What the kernel's GSO makes of a write.
pub fn cut(header: &VnetHeader, packet: &[u8]) -> Vec<Vec<u8>> {
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

pub fn full(packet: &[u8]) -> Vec<u8> {
    delivered(packet, Checksums::Full).unwrap().0
}

pub fn counts(packets: &[Vec<u8>]) -> Vec<usize> {
    Batch::of(packets, true, true).counts()
}

/// A stream of TCP segments; `change` may alter each one.
pub fn tcp_stream(sizes: &[usize], change: impl Fn(usize, &mut Ip, &mut TcpHeader)) -> Vec<Vec<u8>> {
    let mut sequence = 0xFFFF_FE00u32;
    let make = |(index, &size): (usize, &usize)| {
        let mut ip = Ip {
            id: 0xFFFE_u16.wrapping_add(index as u16),
            ..Ip::new(TCP)
        };
        let mut tcp = TcpHeader {
            sequence,
            ..TcpHeader::default()
        };
        sequence = sequence.wrapping_add(size as u32);
        change(index, &mut ip, &mut tcp);
        cleared(&ip.tcp(&tcp, &noise(index as u64, size)))
    };
    sizes.iter().enumerate().map(make).collect()
}

pub fn udp_stream(sizes: &[usize], change: impl Fn(usize, &mut Ip, &mut (u16, u16))) -> Vec<Vec<u8>> {
    let make = |(index, &size): (usize, &usize)| {
        let (mut ip, mut ports) = (
            Ip {
                id: index as u16,
                ..Ip::new(UDP)
            },
            (1, 2),
        );
        change(index, &mut ip, &mut ports);
        cleared(&ip.udp(ports, &noise(index as u64, size)))
    };
    sizes.iter().enumerate().map(make).collect()
}

#[test]
fn tcp_is_joined() {
    let packets = tcp_stream(&[500, 500, 500, 77], |index, _, tcp| {
        tcp.flags |= if index == 3 { 8 } else { 0 }
    });
    let batch = Batch::of(&packets, true, false);
    let writes = batch.writes();
    let [(header, packet)] = &writes[..] else {
        panic!("{:?}", batch.counts())
    };
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV4,
        hdr_len: 52,
        gso_size: 500,
        csum_start: 20,
        csum_offset: 16,
    };
    assert_eq!(*header, want);
    let ip = Ip {
        source: PEER.to_vec(),
        target: HOST.to_vec(),
        id: 0xFFFE,
        ..Ip::new(TCP)
    };
    let tcp = TcpHeader {
        sequence: 0xFFFF_FE00,
        flags: 0x18,
        ..TcpHeader::default()
    };
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[52..].to_vec()).collect();
    let mut want = ip.tcp(&tcp, &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 20)]);
    want[36..38].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(*packet, want);
    assert_eq!(
        cut(header, packet),
        packets.iter().map(|packet| full(packet)).collect::<Vec<_>>()
    );
}

#[test]
fn udp_is_joined() {
    let packets = udp_stream(&[500, 500, 500, 77], |_, _, _| {});
    let batch = Batch::of(&packets, false, true);
    let writes = batch.writes();
    let [(header, packet)] = &writes[..] else {
        panic!("{:?}", batch.counts())
    };
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 28,
        gso_size: 500,
        csum_start: 20,
        csum_offset: 6,
    };
    assert_eq!(*header, want);
    let ip = Ip {
        source: PEER.to_vec(),
        target: HOST.to_vec(),
        id: 0,
        ..Ip::new(UDP)
    };
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[28..].to_vec()).collect();
    let mut want = ip.udp((1, 2), &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 20)]);
    want[26..28].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(*packet, want);
    assert_eq!(
        cut(header, packet),
        packets.iter().map(|packet| full(packet)).collect::<Vec<_>>()
    );
}

#[test]
fn a_packet_by_itself_is_written_as_it_lies() {
    let packets = [tcp_stream(&[9], |_, _, _| {}), udp_stream(&[9], |_, _, _| {})].concat();
    let batch = Batch::of(&packets, true, true);
    for (index, (run, at)) in batch.coalescer.runs().zip([16, 6]).enumerate() {
        let want = VnetHeader {
            flags: NEEDS_CSUM,
            csum_start: 20,
            csum_offset: at,
            ..VnetHeader::default()
        };
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
    let payload: Vec<_> = batch
        .entries
        .iter()
        .map(|(start, delivery)| (start + 52, delivery.len - 52))
        .collect();
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
    assert_eq!(
        counts(&tcp_stream(&[100; 5], |index, ip, _| jump(index, ip))),
        [2, 1, 1, 1]
    );
    assert_eq!(
        counts(&udp_stream(&[100; 5], |index, ip, _| jump(index, ip))),
        [2, 1, 1, 1]
    );
    let unfragmented = |index: usize, ip: &mut Ip| (ip.fragment, ip.id) = (0x4000, index as u16 * 7777);
    assert_eq!(
        counts(&tcp_stream(&[100; 5], |index, ip, _| unfragmented(index, ip))),
        [5]
    );
    assert_eq!(
        counts(&udp_stream(&[100; 5], |index, ip, _| unfragmented(index, ip))),
        [5]
    );
}

#[test]
fn sizes() {
    assert_eq!(counts(&tcp_stream(&[100, 100, 99, 100, 100], |_, _, _| {})), [3, 2]);
    assert_eq!(counts(&udp_stream(&[100, 100, 99, 100, 100], |_, _, _| {})), [3, 2]);
    assert_eq!(counts(&tcp_stream(&[100, 101, 101], |_, _, _| {})), [1, 2]);
    assert_eq!(counts(&udp_stream(&[100, 101, 101], |_, _, _| {})), [1, 2]);
    assert_eq!(
        counts(&tcp_stream(&[100, 0, 100, 100, 0, 0], |_, _, _| {})),
        [1, 1, 2, 1, 1]
    );
    assert_eq!(
        counts(&udp_stream(&[100, 0, 100, 100, 0, 0], |_, _, _| {})),
        [1, 1, 2, 1, 1]
    );
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
fn nothing_overtakes_a_fragment() {
    for fragment in [0x2000, 8] {
        let mut packets = udp_stream(&[104; 4], |_, _, _| {});
        packets.insert(
            2,
            cleared(
                &Ip {
                    fragment,
                    ..Ip::new(UDP)
                }
                .udp((1, 2), &[1; 104]),
            ),
        );
        assert_eq!(counts(&packets), [2, 1, 2]);
    }
}

#[test]
fn an_urgent_pointer_ends_a_run() {
    let mut packets = tcp_stream(&[100; 4], |_, _, _| {});
    packets[2][39] = 1;
    assert_eq!(counts(&packets), [2, 1, 1]);
}

#[test]
fn flows_that_share_a_slot_do_not_mix() {
    // There are more flows than could all have slots of their own, but for luck.
    let make = |port| {
        cleared(
            &Ip {
                fragment: 0x4000,
                ..Ip::new(UDP)
            }
            .udp((port, 2), &[1; 100]),
        )
    };
    let packets: Vec<_> = (1..=MOST_RUNS as u16).map(make).collect();
    assert_eq!(counts(&packets), [1; MOST_RUNS]);
}

#[test]
fn flows_do_not_mix_and_switches_are_obeyed() {
    let tcp = tcp_stream(&[100; 4], |_, _, _| {});
    let other = tcp_stream(&[100; 4], |_, _, tcp| tcp.ports.0 = 7);
    let udp = udp_stream(&[100; 4], |_, _, _| {});
    let more = udp_stream(&[100; 4], |_, _, ports| ports.1 = 7);
    let mixed: Vec<_> = (0..4)
        .flat_map(|i| [&tcp[i], &other[i], &udp[i], &more[i]].map(Vec::clone))
        .collect();
    assert_eq!(counts(&mixed), [4, 4, 4, 4]);
    assert_eq!(Batch::of(&tcp, false, true).counts(), [1; 4]);
    assert_eq!(Batch::of(&udp, true, false).counts(), [1; 4]);
    let others = vec![cleared(&Ip::new(50).packet(&[1; 99])); 3];
    assert_eq!(counts(&others), [1; 3]);
}

#[test]
fn full_and_cleared() {
    let ack = tcp_stream(&[0], |_, _, _| {});
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
    assert_eq!(
        coalescer.add(&batch.arena, batch.entries[0].0, &batch.entries[0].1),
        Err(Full)
    );

    // After clearing, nothing joins a run through what was known before.
    let packets = tcp_stream(&[100; 3], |index, _, tcp| tcp.flags |= if index == 1 { 8 } else { 0 });
    let mut batch = Batch::of(&packets, true, true);
    assert_eq!(batch.counts(), [2, 1]);
    batch.coalescer.clear();
    for (start, delivery) in &batch.entries[..1] {
        assert_eq!(batch.coalescer.add(&batch.arena, *start, delivery), Ok(()));
    }
    batch.coalescer.clear();
    for (start, delivery) in &batch.entries[1..] {
        assert_eq!(batch.coalescer.add(&batch.arena, *start, delivery), Ok(()));
    }
    assert_eq!(batch.counts(), [1, 1]);
}

#[test]
fn what_lies_outside_the_arena_is_ignored() {
    let mut coalescer = Coalescer::new(true, true);
    for (start, len) in [(0, 101), (101, 0), (usize::MAX, 1), (1, usize::MAX)] {
        assert_eq!(
            coalescer.add(&[0; 100], start, &Delivery { len, kind: Kind::Other }),
            Ok(())
        );
    }
    assert!(coalescer.is_empty());
}
