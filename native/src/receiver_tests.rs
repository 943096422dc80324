use super::*;

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::net::{socketpair, AddressFamily, SocketFlags, SocketType};

use crate::packet::inner::{Inbound, Kind};
use crate::shared::tests::shared;

/// A receiver, and what programs read.
fn receiver() -> (Receiver, File) {
    let device = || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None);
    let (ours, theirs): (OwnedFd, OwnedFd) = device().unwrap();
    let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
    let receiver = Receiver::new(Arc::new(shared()), socket, Arc::new(File::from(ours)), 1).unwrap();
    (receiver, File::from(theirs))
}

/// Puts a packet of the peer where a batch has it, and takes it in.
fn take_in(receiver: &mut Receiver, packet: &[u8]) {
    receiver.arena[..packet.len()].copy_from_slice(packet);
    let inbound = Inbound::new([10, 43, 0, 7], [10, 43, 0, 1]);
    let delivery = inbound
        .deliver(&mut receiver.arena[..packet.len()], Checksums::Partial)
        .unwrap();
    assert_eq!(delivery.kind, Kind::Other);
    receiver.add(0, &delivery);
}

const PACKET: [u8; 22] = [0x45, 0, 0, 22, 0, 0, 0, 0, 64, 99, 0, 0, 10, 42, 0, 1, 0, 0, 0, 0, 1, 2];

#[test]
fn what_is_taken_in_is_written() {
    let (mut receiver, mut programs) = receiver();
    take_in(&mut receiver, &PACKET);
    receiver.flush();
    let mut read = [0; 100];
    assert_eq!(programs.read(&mut read).unwrap(), 10 + PACKET.len());
    assert_eq!(read[10 + 20..][..2], [1, 2]);
}

/// Its place in the arena holds what comes next, from anybody: it must not be written as a packet.
#[test]
fn a_batch_that_met_a_panic_is_forgotten() {
    let (mut receiver, mut programs) = receiver();
    take_in(&mut receiver, &PACKET);
    receiver.forget();
    receiver.arena[..PACKET.len()].fill(0x45);
    receiver.flush();
    assert!(programs.read(&mut [0; 100]).is_err());
}
