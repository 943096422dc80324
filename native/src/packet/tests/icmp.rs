use super::*;

#[test]
fn host_unreachable_quotes_what_was_sent() {
    for size in [0, 1, 2, 100, 500, 520, 521, 600, 1400] {
        let packet = Ip::new(UDP).udp((1, 2), &noise(1, size));
        let answer = host_unreachable(&packet).unwrap();
        let answer = answer.as_bytes();
        let quote = &packet[..packet.len().min(548)];
        assert_eq!(answer.len(), 28 + quote.len());
        assert_eq!(
            &answer[..10],
            &[
                &[0x45, 0xC0],
                &(answer.len() as u16).to_be_bytes()[..],
                &[0, 0, 0, 0, 64, 1]
            ]
            .concat()
        );
        assert_eq!(checksum(&[&answer[..20]]), 0);
        assert_eq!(checksum(&[&answer[20..]]), 0);
        assert_eq!(answer[12..20], [TARGET, SENDER].concat());
        assert_eq!(answer[20..22], [3, 1]);
        assert_eq!(answer[24..28], [0; 4]);
        assert_eq!(&answer[28..], quote);
    }
}

#[test]
fn no_error_about_errors_later_fragments_and_fragments_of_packets() {
    for kind in 0..=255u8 {
        let error = [3, 4, 5, 11, 12].contains(&kind);
        assert_eq!(
            host_unreachable(&Ip::new(ICMP).packet(&[kind, 0, 0, 0, 0, 0, 0, 0])).is_none(),
            error
        );
    }
    for (fragment, answered) in [
        (0x2000, true),
        (0x4000, true),
        (1, false),
        (0x2001, false),
        (0x1FFF, false),
    ] {
        let packet = Ip {
            fragment,
            ..Ip::new(UDP)
        }
        .udp((1, 2), &[0; 16]);
        assert_eq!(host_unreachable(&packet).is_some(), answered);
    }
    let packet = Ip {
        options: vec![1; 8],
        ..Ip::new(UDP)
    }
    .udp((1, 2), b"");
    for size in 0..packet.len() {
        assert!(host_unreachable(&packet[..size]).is_none());
    }
    assert!(host_unreachable(&packet).is_some());
    assert!(host_unreachable(&[0x44; 100]).is_none());
}

#[test]
fn address_unreachable_quotes_what_was_sent() {
    for size in [0, 1, 2, 100, 1183, 1184, 1185, 1400] {
        let packet = Ip::v6(UDP).udp((1, 2), &noise(1, size));
        let answer = host_unreachable(&packet).unwrap();
        let answer = answer.as_bytes();
        let quote = &packet[..packet.len().min(1232)];
        assert_eq!(answer.len(), 48 + quote.len());
        let length = (answer.len() as u16 - 40).to_be_bytes();
        assert_eq!(answer[..8], [0x60, 0, 0, 0, length[0], length[1], 58, 64]);
        assert_eq!(answer[8..40], [&packet[24..40], &packet[8..24]].concat());
        assert_eq!(answer[40..42], [1, 3]);
        assert_eq!(answer[44..48], [0; 4]);
        assert_eq!(&answer[48..], quote);
        let pseudo = [&answer[8..40], &[0, 0, length[0], length[1], 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&[&pseudo, &answer[40..]]), 0);
    }
}

#[test]
fn too_big_says_how_much_is_taken() {
    let answer = too_big(&Ip::new(UDP).udp((1, 2), &[0; 1400]), 1100).unwrap();
    let answer = answer.as_bytes();
    assert_eq!(answer[20..22], [3, 4]);
    assert_eq!(answer[24..28], [0, 0, 0x04, 0x4C]);
    assert_eq!(checksum(&[&answer[20..]]), 0);
    for (mtu, said) in [(1100, 1280u32), (1280, 1280), (1400, 1400)] {
        let packet = Ip::v6(UDP).udp((1, 2), &[0; 1400]);
        let answer = too_big(&packet, mtu).unwrap();
        let answer = answer.as_bytes();
        assert_eq!(answer[40..42], [2, 0]);
        assert_eq!(answer[44..48], said.to_be_bytes());
        let length = answer.len() as u16 - 40;
        let ip = Ip {
            protocol: ICMP6,
            ..Ip::v6(ICMP6)
        };
        assert_eq!(checksum(&[&ip.pseudo(usize::from(length)), &answer[40..]]), 0);
    }
}

#[test]
fn no_icmpv6_error_about_errors_later_fragments_and_fragments_of_packets() {
    for kind in 0..=255u8 {
        let packet = Ip::v6(ICMP6).packet(&[kind, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(host_unreachable(&packet).is_none(), kind < 128 || kind == 137, "{kind}");
    }
    let packet = Ip::v6(UDP).udp((1, 2), &[0; 16]);
    for (word, answered) in [(1, true), (0, true), (8, false), (0xFFF1, false)] {
        let [high, low] = u16::to_be_bytes(word);
        let fragment = extended(&packet, &[(44, &[0, 0, high, low, 0, 0, 0, 1])]);
        assert_eq!(host_unreachable(&fragment).is_some(), answered);
    }
    for size in 0..48 {
        assert!(host_unreachable(&packet[..size]).is_none());
    }
    assert!(host_unreachable(&packet[..48]).is_some());
}

fn echo(kind: u8) -> Vec<u8> {
    let message = [
        &[kind, 0, 0, 0, 0x70, 0x71, 0, 0],
        &b"pqtunech"[..],
        b"12345678",
        &[0; 20],
    ]
    .concat();
    Ip {
        options: vec![1; 4],
        ..Ip::new(ICMP)
    }
    .packet(&message)
}

#[test]
fn answers_to_echoes_are_recognised() {
    let good = echo(0);
    assert_eq!(echo_token(&good), Some(*b"12345678"));
    assert_eq!(echo_token(&[&good[..], &[1; 9]].concat()), Some(*b"12345678"));
    assert_eq!(echo_token(&echo(8)), None);
    for (at, value) in [
        (0, 0x65),
        (0, 0x44),
        (7, 1),
        (9, UDP),
        (28, 1),
        (29, 0),
        (32, 0),
        (39, 0),
    ] {
        let mut packet = good.clone();
        packet[at] = value;
        assert_eq!(echo_token(&packet), None, "{at}");
    }
    for size in 0..good.len() {
        assert_eq!(echo_token(&good[..size]), None);
    }
    for total in 0..48 {
        let mut packet = good.clone();
        packet[3] = total;
        assert_eq!(echo_token(&packet), None);
    }
    // The first fragment of one: what is behind the token does not matter.
    let mut first = good.clone();
    (first[3], first[6]) = (48, 0x20);
    assert_eq!(echo_token(&first), Some(*b"12345678"));
}
