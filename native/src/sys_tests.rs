use super::*;

use std::net::UdpSocket;
use std::os::fd::AsFd;

fn bound(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))
}

/// Waits for a message; returns its length, where it came from and how it is to be cut.
fn wait_for(socket: &UdpSocket, arena: &mut [u8]) -> Incoming {
    let mut received = [Incoming::NONE];
    let slot = arena.len();
    while receive_messages(socket.as_fd(), arena, slot, &mut received).is_err() {}
    received[0]
}

#[test]
fn segments_are_cut_and_merged_by_the_kernel() {
    let ((a, from), (b, to)) = (bound("127.0.0.1:0"), bound("127.0.0.1:0"));
    set_udp_gro(b.as_fd()).unwrap();
    assert!(has_udp_segment(a.as_fd()));
    let data: Vec<u8> = (0..=255).cycle().take(2500).collect();
    let messages = [
        Outgoing {
            data: &data,
            to,
            segment: 1000,
        },
        Outgoing {
            data: b"x",
            to,
            segment: 0,
        },
    ];
    assert_eq!(send_messages(a.as_fd(), &messages).unwrap(), 2);
    let mut arena = vec![0; 3 * 4096];
    let mut received = [Incoming::NONE; 3];
    let mut bytes: Vec<u8> = Vec::new();
    while bytes.len() < 2501 {
        let Ok(count) = receive_messages(b.as_fd(), &mut arena, 4096, &mut received) else {
            continue;
        };
        for (message, slot) in received.iter().zip(arena.chunks(4096)).take(count) {
            assert_eq!(message.source, from);
            assert!(message.len <= 1000 || message.segment == 1000);
            bytes.extend(&slot[..message.len]);
        }
    }
    assert_eq!(bytes[..2500], data);
    let error = receive_messages(b.as_fd(), &mut arena, 4096, &mut received).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
}

#[test]
fn short_turns_are_granted() {
    std::thread::spawn(|| take_short_turns(200_000).unwrap())
        .join()
        .unwrap();
}

#[test]
fn a_closed_descriptor_is_not_taken() {
    assert!(own_fd(-1).is_err());
    assert!(own_fd(1 << 20).is_err());
}

/// Both kinds of addresses through one socket: IPv4 ones are never seen mapped.
#[test]
fn a_socket_for_both_families() {
    let ((both, to_both), (four, to_four)) = (bound("[::]:0"), bound("127.0.0.1:0"));
    let six = UdpSocket::bind("[::1]:0").unwrap();
    let to_six = six.local_addr().unwrap();
    set_udp_gro(both.as_fd()).unwrap();
    let message = |to| Outgoing {
        data: b"abcdef",
        to,
        segment: 3,
    };
    assert_eq!(
        send_messages(both.as_fd(), &[message(to_four), message(to_six)]).unwrap(),
        2
    );
    let mut arena = [0; 64];
    for (socket, source) in [
        (&four, to_both),
        (&six, SocketAddr::new(Ipv6Addr::LOCALHOST.into(), to_both.port())),
    ] {
        for _ in 0..2 {
            let got = wait_for(socket, &mut arena);
            assert_eq!((got.len, got.source), (3, source));
        }
    }
    send_messages(four.as_fd(), &[message(to_both)]).unwrap();
    let run = wait_for(&both, &mut arena);
    assert_eq!((run.source, run.len, run.segment), (to_four, 6, 3));
    let to_both = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), to_both.port());
    send_messages(six.as_fd(), &[message(to_both)]).unwrap();
    let run = wait_for(&both, &mut arena);
    assert_eq!((run.source, run.len, run.segment), (to_six, 6, 3));
    let refused = send_messages(four.as_fd(), &[message(to_six)]).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EAFNOSUPPORT));
}
