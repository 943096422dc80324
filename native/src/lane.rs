//! One thread's way for packets: a TUN queue and a socket, and what it needs to seal and open.

use std::fs::File;
use std::io::{self, Read};
use std::net::UdpSocket;
use std::sync::Arc;

use crate::crypto::scrub_stack;
use crate::events::Event;
use crate::packet::mss::clamp;
use crate::packet::{finish_checksum, largest, too_big, Plan, VnetHeader, VNET_HEADER_BYTES};
use crate::receiver::Receiver;
use crate::sender::{Plaintext, Sender};
use crate::shared::Shared;
use crate::tunnel::Tunnel;
use crate::waiting::Held;

/// An IPv6 packet has at most 40 bytes and 65535 (RFC 8200), one of IPv4 fewer.
const PACKET: usize = VNET_HEADER_BYTES + 40 + 65535;
/// TUN reads, and bytes read, before the other side gets its turn: enough to fill trains with small packets, and few
/// enough that acknowledgements do not wait long.
const READS: usize = 64;
const READ_BYTES: usize = 128 << 10;
/// A busy thread overwrites its stack once in so many turns, an idle one before it sleeps.
const SCRUB_TURNS: u32 = 32;

pub struct Lane {
    pub shared: Arc<Shared>,
    pub sender: Sender,
    pub receiver: Receiver,
    tun: Arc<File>,
    buffer: Vec<u8>,
    turns: u32,
}

/// What came of reading the TUN device.
#[derive(Debug, PartialEq)]
pub enum Outcome {
    Something,
    Nothing,
    /// The device is gone for good.
    Gone(String),
}

impl Lane {
    pub fn new(
        shared: Arc<Shared>,
        tun: Arc<File>,
        socket: Arc<UdpSocket>,
        slots: usize,
        patient: bool,
    ) -> io::Result<Self> {
        Ok(Lane {
            sender: Sender::new(Arc::clone(&shared), Arc::clone(&socket), patient)?,
            receiver: Receiver::new(Arc::clone(&shared), socket, Arc::clone(&tun), slots)?,
            shared,
            tun,
            buffer: vec![0; PACKET],
            turns: 0,
        })
    }

    /// Whether packets of programs have to wait until the socket takes datagrams again.
    pub fn blocked(&self) -> bool {
        self.sender.blocked()
    }

    /// Reads packets of programs, and sends them.
    pub fn from_tun(&mut self, now: f64) -> Outcome {
        let mut outcome = Outcome::Nothing;
        if self.blocked() {
            self.sender.flush(now);
        }
        let mut bytes = 0;
        for _ in 0..READS {
            if bytes >= READ_BYTES || self.blocked() {
                break;
            }
            match (&*self.tun).read(&mut self.buffer) {
                Ok(0) => {
                    outcome = Outcome::Gone("end of file".into());
                    break;
                }
                Ok(length) => {
                    outcome = Outcome::Something;
                    bytes += length;
                    if let Err(reason) = self.packet(length, now) {
                        self.sender.drops.count(reason);
                    }
                }
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    Some(libc::EINTR) => {}
                    Some(libc::ENOBUFS | libc::ENOMEM) => {
                        self.sender.drops.count_error("tun_read", &error);
                        outcome = Outcome::Something;
                        break;
                    }
                    _ => {
                        outcome = Outcome::Gone(error.to_string());
                        break;
                    }
                },
            }
        }
        self.sender.flush(now);
        outcome
    }

    /// Takes what is held for the address of a tunnel, and queues it for sending.
    pub fn send_held(&mut self, tunnel: &Arc<Tunnel>, held: &mut Held, now: f64) {
        for mut packet in held.take(tunnel.inner()) {
            forward(&mut self.sender, &self.receiver, tunnel, &mut packet, None, now);
        }
    }

    /// Ends a turn: counters are handed in, and no key is left behind where the thread is about to rest.
    pub fn settle(&mut self, busy: bool) {
        self.turns += 1;
        if !busy || self.turns >= SCRUB_TURNS {
            self.turns = 0;
            self.sender.wipe();
            self.receiver.wipe();
            scrub_stack();
        }
        for drops in [&mut self.sender.drops, &mut self.receiver.drops] {
            if !drops.is_empty() && self.shared.merge_drops(drops, !busy) {
                drops.clear();
            }
        }
    }

    fn packet(&mut self, length: usize, now: f64) -> Result<(), &'static str> {
        let head = if self.shared.virtio { VNET_HEADER_BYTES } else { 0 };
        let (head, packet) = self.buffer[..length].split_at_mut_checked(head).ok_or("tun_not_ipv4")?;
        let inner = self.shared.outbound.destination(packet)?;
        let mut plan = None;
        if let Some(header) = VnetHeader::parse(head) {
            if header.is_gso() {
                plan = Some(Plan::new(&header, packet)?);
            } else {
                finish_checksum(&header, packet)?;
            }
        }
        if let Some(tunnel) = self.shared.table.route(inner) {
            forward(&mut self.sender, &self.receiver, &tunnel, packet, plan.as_ref(), now);
            return Ok(());
        }
        let mut waiting = self.shared.waiting();
        // Whoever adds a tunnel holds the lock meanwhile: no packet overtakes those that were held.
        if let Some(tunnel) = self.shared.table.route(inner) {
            drop(waiting);
            forward(&mut self.sender, &self.receiver, &tunnel, packet, plan.as_ref(), now);
            return Ok(());
        }
        if !waiting.held.holds(inner) && !waiting.held.hold(inner, true) {
            return Err("held_addresses_full");
        }
        let wanted = waiting.held.take_report(inner);
        let (count, longest) = plan
            .as_ref()
            .map_or((1, packet.len()), |plan| (plan.count(), plan.longest()));
        let mut segment = vec![0; longest];
        for number in 0..count {
            let length = match &plan {
                Some(plan) => plan.write(number, packet, &mut segment),
                None => {
                    segment.copy_from_slice(packet);
                    packet.len()
                }
            };
            if !waiting.held.add(inner, &segment[..length], now) {
                self.sender.drops.add(("held_full", 0), (count - number) as u64);
                break;
            }
        }
        drop(waiting);
        if wanted {
            self.shared.report(Event::Wanted(inner), &mut self.sender.drops);
        }
        Ok(())
    }
}

/// Queues a packet of a program for the peer, as far as the path there takes it.
fn forward(
    sender: &mut Sender,
    receiver: &Receiver,
    tunnel: &Arc<Tunnel>,
    packet: &mut [u8],
    plan: Option<&Plan>,
    now: f64,
) {
    if let Some(mtu) = tunnel.mtu() {
        if plan.map_or(packet.len(), Plan::longest) > largest(packet, mtu) {
            refuse(receiver, tunnel, packet, plan, mtu);
            return;
        }
        clamp(packet, mtu);
    }
    let text = match plan {
        Some(plan) => Plaintext::Cut(plan, packet),
        None => Plaintext::Packet(packet),
    };
    sender.seal(tunnel, text, now);
}

/// Tells a program that its packet is too big, or the first one that it was to be cut in.
#[cold]
fn refuse(receiver: &Receiver, tunnel: &Tunnel, packet: &[u8], plan: Option<&Plan>, mtu: u16) {
    let count = plan.map_or(1, Plan::count);
    tunnel.send_side().drops.add(("tun_too_big", 0), count as u64);
    let answer = match plan {
        Some(plan) => {
            let mut first = vec![0; plan.longest()];
            plan.write(0, packet, &mut first);
            too_big(&first, mtu)
        }
        None => too_big(packet, mtu),
    };
    if let Some(Err(error)) = answer.map(|answer| receiver.write_packet(answer.as_bytes())) {
        tunnel.count_unwritten(&error, 1);
    }
}
