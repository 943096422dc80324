use super::*;

use rustix::io::read;
use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use crate::shared::tests::shared;

const TO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9);

/// A sender whose socket is full at some time: a pair of sockets, which does not look at addresses.
fn sender(patient: bool) -> (Sender, UdpSocket) {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    let socket = Arc::new(UdpSocket::from(ours));
    (
        Sender::new(Arc::new(shared()), socket, patient).unwrap(),
        UdpSocket::from(theirs),
    )
}

fn send(sender: &mut Sender, number: u32) {
    sender.datagram(&number.to_be_bytes(), TO, 0.0);
    sender.flush(0.0);
}

/// Sends until the socket is full; returns how many datagrams there are.
fn fill(sender: &mut Sender) -> u32 {
    for number in 0..100_000 {
        send(sender, number);
        if sender.blocked() {
            return number + 1;
        }
    }
    panic!("the socket is never full");
}

fn received(socket: &UdpSocket) -> Vec<u32> {
    let mut bytes = [0; 4];
    let mut numbers = Vec::new();
    while read(socket, &mut bytes).is_ok() {
        numbers.push(u32::from_be_bytes(bytes));
    }
    numbers
}

#[test]
fn what_finds_no_room_goes_later_and_in_order() {
    let (mut sender, peer) = sender(true);
    let count = fill(&mut sender);
    sender.datagram(&count.to_be_bytes(), TO, 0.0);
    assert_eq!(received(&peer), (0..count - 1).collect::<Vec<_>>());
    sender.flush(0.0);
    assert!(!sender.blocked());
    assert_eq!(received(&peer), [count - 1, count]);
    assert!(sender.drops.is_empty());
}

#[test]
fn what_waits_is_bounded() {
    let (mut sender, peer) = sender(true);
    let sent = fill(&mut sender) - 1;
    for number in 0..1000 {
        send(&mut sender, number);
    }
    let waiting = sender.trains.len() as u64;
    assert!(waiting <= TRAINS as u64);
    let dropped = sender.drops.iter().copied().collect::<Vec<_>>();
    assert_eq!(dropped, [(("send", libc::EAGAIN), 1001 - waiting)]);
    assert_eq!(received(&peer).len(), sent as usize);
    sender.flush(0.0);
    assert_eq!(received(&peer).last(), Some(&999));
}

#[test]
fn who_is_not_patient_drops() {
    let (mut sender, peer) = sender(false);
    while sender.drops.is_empty() {
        send(&mut sender, 7);
    }
    assert!(!sender.blocked() && sender.trains.is_empty());
    received(&peer);
    send(&mut sender, 8);
    assert_eq!(received(&peer), [8]);
}
