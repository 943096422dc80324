use super::coalesce::{counts, cut, full, tcp_stream, udp_stream, Batch};
use super::*;
use crate::packet::segment::{GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

const PAD: [u8; 8] = [0, 0, 1, 4, 0, 0, 0, 0];

/// Makes a packet one of IPv6, between private addresses.
pub fn six(ip: &mut Ip) {
    (ip.source, ip.target) = (SENDER6.to_vec(), TARGET6.to_vec());
}

/// The one packet of a batch that was joined as a whole, and where its payloads begin.
fn joined(packets: &[Vec<u8>]) -> (VnetHeader, Vec<u8>) {
    let batch = Batch::of(packets, true, true);
    let writes = batch.writes();
    assert_eq!(writes.len(), 1, "{:?}", batch.counts());
    let want: Vec<_> = packets.iter().map(|packet| full(packet)).collect();
    assert_eq!(cut(&writes[0].0, &writes[0].1), want);
    writes[0].clone()
}

#[test]
fn tcp_is_joined() {
    let packets = tcp_stream(&[500, 500, 500, 77], |index, ip, tcp| {
        six(ip);
        tcp.flags |= if index == 3 { 8 } else { 0 }
    });
    let (header, packet) = joined(&packets);
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_TCPV6,
        hdr_len: 72,
        gso_size: 500,
        csum_start: 40,
        csum_offset: 16,
    };
    assert_eq!(header, want);
    let ip = Ip::inside6(TCP).here();
    let tcp = TcpHeader {
        sequence: 0xFFFF_FE00,
        flags: 0x18,
        ..TcpHeader::default()
    };
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[72..].to_vec()).collect();
    let mut want = ip.tcp(&tcp, &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 40)]);
    want[56..58].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(packet, want);
}

#[test]
fn udp_is_joined() {
    let packets = udp_stream(&[500, 500, 500, 77], |_, ip, _| six(ip));
    let (header, packet) = joined(&packets);
    let want = VnetHeader {
        flags: NEEDS_CSUM,
        gso_type: GSO_UDP_L4,
        hdr_len: 48,
        gso_size: 500,
        csum_start: 40,
        csum_offset: 6,
    };
    assert_eq!(header, want);
    let ip = Ip::inside6(UDP).here();
    let data: Vec<u8> = packets.iter().flat_map(|packet| packet[48..].to_vec()).collect();
    let mut want = ip.udp((1, 2), &data);
    let pseudo = !checksum(&[&ip.pseudo(want.len() - 40)]);
    want[46..48].copy_from_slice(&pseudo.to_be_bytes());
    assert_eq!(packet, want);
}

#[test]
fn the_longest_run_fits_into_a_packet() {
    let packets = tcp_stream(&[1428; 50], |_, ip, _| six(ip));
    assert_eq!(counts(&packets), [45, 5]);
    let udp = |sizes: &[usize]| counts(&udp_stream(sizes, |_, ip, _| six(ip)));
    assert_eq!(udp(&[16372, 16372, 16372, 16371]), [4]);
    assert_eq!(udp(&[16372; 4]), [3, 1]);
    assert_eq!(udp(&[10; 130]), [64, 64, 2]);
}

#[test]
fn what_ends_a_run() {
    let stream = |change: fn(&mut Ip, &mut TcpHeader)| {
        tcp_stream(&[104; 5], |index, ip, tcp| {
            six(ip);
            if index >= 2 {
                change(ip, tcp);
            }
        })
    };
    assert_eq!(counts(&stream(|_, _| {})), [5]);
    let changes: [fn(&mut Ip, &mut TcpHeader); 6] = [
        |ip, _| ip.tos = 2,
        |ip, _| ip.ttl = 63,
        |_, tcp| tcp.window += 1,
        |_, tcp| tcp.acknowledged += 1,
        |_, tcp| tcp.options[11] += 1,
        |_, tcp| tcp.sequence += 1,
    ];
    for (case, change) in changes.into_iter().enumerate() {
        assert_eq!(counts(&stream(change)), [2, 3], "{case}");
    }
    let mut labelled = stream(|_, _| {});
    labelled[3][3] = 1;
    assert_eq!(counts(&labelled), [3, 1, 1]);
    for flags in [2, 4, 0x20, 0x80] {
        let packets = tcp_stream(&[104; 5], |index, ip, tcp| {
            six(ip);
            tcp.flags |= if index == 2 { flags } else { 0 };
        });
        assert_eq!(counts(&packets), [2, 1, 2], "{flags}");
    }
}

#[test]
fn nothing_overtakes_a_fragment_or_what_hides_its_flow() {
    for header in [
        (44, [0, 0, 0, 1, 0, 0, 0, 1]),
        (44, [0, 0, 1, 0, 0, 0, 0, 1]),
        (60, PAD),
    ] {
        let mut packets = udp_stream(&[104; 4], |_, ip, _| six(ip));
        let fragment = Ip::inside6(UDP).udp((1, 2), &[1; 104]);
        packets.insert(2, cleared(&extended(&fragment, &[(header.0, &header.1)])));
        assert_eq!(counts(&packets), [2, 1, 2]);
    }
    let mut packets = udp_stream(&[104; 4], |_, ip, _| six(ip));
    packets.insert(2, cleared(&Ip::inside6(50).packet(&[1; 104])));
    assert_eq!(counts(&packets), [4, 1]);
}

#[test]
fn udp_without_checksum_stays_alone_and_in_order() {
    let mut packets = udp_stream(&[100; 5], |_, ip, _| six(ip));
    packets[2][46..48].fill(0);
    assert_eq!(counts(&packets), [2, 1, 2]);
}

#[test]
fn both_versions_side_by_side() {
    // The same ports, and addresses that stand beside each other.
    let four = tcp_stream(&[100; 4], |_, _, _| {});
    let six = tcp_stream(&[100; 4], |_, ip, _| six(ip));
    let mixed: Vec<_> = four.into_iter().zip(six).flat_map(|(four, six)| [four, six]).collect();
    assert_eq!(counts(&mixed), [4, 4]);
    assert_eq!(Batch::of(&mixed, false, true).counts(), [1; 8]);
}

#[test]
fn segments_of_what_the_kernel_left_to_be_cut_say_how_long_they_are() {
    // So that a sender knows, before it cuts, what a peer would not get.
    for (ip, longest) in [(Ip::new(TCP), 52 + 1400), (Ip::inside6(TCP), 72 + 1400)] {
        let packet = ip.tcp(&TcpHeader::default(), &noise(1, 3000));
        let header = VnetHeader {
            flags: NEEDS_CSUM,
            gso_type: if longest > 1460 { GSO_TCPV6 } else { 1 },
            gso_size: 1400,
            ..VnetHeader::default()
        };
        assert_eq!(Plan::new(&header, &packet).unwrap().longest(), longest);
    }
}
