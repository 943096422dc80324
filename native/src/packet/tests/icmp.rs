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
