//! Receives datagrams, opens those of tunnels, and writes what was in them to the TUN device.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::net::{SocketAddr, UdpSocket};
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::crypto::Cipher;
use crate::drops::Drops;
use crate::events::Event;
use crate::packet::coalesce::MOST_PIECES;
use crate::packet::mss::clamp;
use crate::packet::{echo_token, peer_of, Checksums, Coalescer, Delivery, VnetHeader};
use crate::schedule::{work, Work};
use crate::shared::Shared;
use crate::sys::{self, Incoming, MAX_MESSAGES};
use crate::tunnel::{Heard, ReceiveSide, Tid, Tunnel, COOKIE, COOKIE_PREFIX, HEADER, OVERHEAD, TAG, TID, TUNNEL};

/// The longest UDP payload and what UDP_GRO merges, with room to spare.
const SLOT: usize = 65536;
const CONTROL_PROTOCOL: u8 = 253;
const IPV4_HEADER: usize = 20;

pub struct Receiver {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    tun: Arc<File>,
    cipher: Cipher,
    work: Work,
    arena: Vec<u8>,
    coalescer: Option<Coalescer>,
    joins: bool,
    pub drops: Drops,
}

impl Receiver {
    /// `slots`: messages that are received at a time.
    pub fn new(shared: Arc<Shared>, socket: Arc<UdpSocket>, tun: Arc<File>, slots: usize) -> io::Result<Self> {
        let joins = shared.offload.tun_gro.on();
        let coalescer = shared
            .virtio
            .then(|| Coalescer::new(joins, joins && shared.offload.writes_uso()));
        Ok(Receiver {
            shared,
            socket,
            tun,
            cipher: Cipher::new(),
            work: work()?,
            arena: vec![0; slots * SLOT],
            coalescer,
            joins,
            drops: Drops::new(),
        })
    }

    /// Receives once, and handles what came. False if there was nothing.
    pub fn receive(&mut self, now: f64) -> bool {
        let mut received = [Incoming::NONE; MAX_MESSAGES];
        let count = match sys::receive_messages(self.socket.as_fd(), &mut self.arena, SLOT, &mut received) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
            Err(error) => {
                // An error that the kernel kept for this socket; reading it clears it.
                self.drops.count_error("receive", &error);
                return true;
            }
        };
        for (number, message) in received[..count].iter().enumerate() {
            self.message(number * SLOT, message, now);
        }
        self.flush();
        if self.joins && !self.shared.offload.tun_gro.on() {
            self.joins = false;
            self.coalescer = self.coalescer.is_some().then(|| Coalescer::new(false, false));
        }
        true
    }

    /// Handles one datagram that waited for its tunnel, which nobody else knows yet.
    pub fn receive_early(&mut self, tunnel: &Arc<Tunnel>, datagram: &[u8], source: SocketAddr, now: f64) {
        let length = datagram.len();
        self.arena[..length].copy_from_slice(datagram);
        self.run(tunnel, 0, length, length, source, now);
        self.flush();
    }

    /// Writes a packet that is complete, checksums and all, to the TUN device.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        let head = VnetHeader::default().to_bytes();
        let head = if self.shared.virtio { &head[..] } else { &[] };
        (&*self.tun)
            .write_vectored(&[IoSlice::new(head), IoSlice::new(packet)])
            .map(|_| ())
    }

    /// Forgets what is not written yet: after a panic its place in the arena holds whatever comes next.
    pub fn forget(&mut self) {
        if let Some(coalescer) = &mut self.coalescer {
            coalescer.clear();
        }
    }

    /// Leaves no key behind.
    pub fn wipe(&mut self) {
        self.cipher.wipe();
    }

    fn message(&mut self, start: usize, message: &Incoming, now: f64) {
        let end = start + message.len;
        let size = if message.segment == 0 {
            message.len
        } else {
            message.segment
        };
        let mut at = start;
        if message.len == 0 {
            self.drops.count("datagram_unknown");
        }
        while at < end {
            let datagram = at..end.min(at + size);
            at = match tid_of(&self.arena[datagram.clone()]) {
                Some(tid) => match self.shared.table.tunnel(&tid) {
                    Some(tunnel) => self.run(&tunnel, at, end, size, message.source, now),
                    None => {
                        self.early(&tid, datagram.clone(), message.source, now);
                        datagram.end
                    }
                },
                None => {
                    self.other(datagram.clone(), message.source, now);
                    datagram.end
                }
            }
        }
    }

    /// Opens datagrams of one tunnel from `at` on; returns where the first one stands that is none.
    fn run(
        &mut self,
        tunnel: &Arc<Tunnel>,
        mut at: usize,
        end: usize,
        size: usize,
        source: SocketAddr,
        now: f64,
    ) -> usize {
        let mut side = tunnel.receive_side(now);
        while at < end {
            let datagram = at..end.min(at + size);
            if tid_of(&self.arena[datagram.clone()]) != Some(tunnel.tid) {
                break;
            }
            at = datagram.end;
            let bytes = &mut self.arena[datagram.clone()];
            match tunnel.open(&mut side, bytes, source, now, &mut self.cipher, &mut self.work) {
                Err(reason) => side.drops.count(reason),
                Ok(heard) => {
                    self.heard(tunnel, heard, source);
                    self.opened(tunnel, &mut side, datagram.start + HEADER..datagram.end - TAG, now);
                }
            }
        }
        at
    }

    fn heard(&mut self, tunnel: &Tunnel, heard: Heard, source: SocketAddr) {
        if heard.first {
            self.shared.report(Event::Alive(tunnel.tid), &mut self.drops);
        }
        if heard.moved {
            self.shared.report(Event::Roamed(tunnel.tid, source), &mut self.drops);
        }
    }

    fn opened(&mut self, tunnel: &Tunnel, side: &mut ReceiveSide, text: Range<usize>, now: f64) {
        let plaintext = &mut self.arena[text.clone()];
        if plaintext.starts_with(COOKIE_PREFIX) {
            if self.shared.admission.is_server() {
                side.drops.count("cookie_unwanted"); // only servers make cookies
                return;
            }
            match tunnel.take_cookie(side, plaintext, now) {
                Ok(()) => self
                    .shared
                    .report(Event::Cookie(tunnel.tid, plaintext.to_vec()), &mut self.drops),
                Err(reason) => side.drops.count(reason),
            }
        } else if !is_control(plaintext) {
            self.deliver(tunnel, side, text, now);
        } else if side.takes_control(now) {
            self.shared
                .report(Event::Control(tunnel.tid, plaintext.to_vec()), &mut self.drops);
        } else {
            side.drops.count("control_limit");
        }
    }

    /// Hands a packet on to the programs.
    fn deliver(&mut self, tunnel: &Tunnel, side: &mut ReceiveSide, text: Range<usize>, now: f64) {
        let plaintext = &mut self.arena[text.clone()];
        if let Some(mtu) = tunnel.mtu() {
            clamp(plaintext, mtu);
        }
        if let Some(coalescer) = &mut self.coalescer {
            match side.inbound.deliver(plaintext, Checksums::Partial) {
                Err(reason) => side.drops.count(reason),
                Ok(delivery) => {
                    side.last_used = Some(now);
                    if coalescer.add(&self.arena, text.start, &delivery).is_err() {
                        self.flush();
                        self.add(text.start, &delivery);
                    }
                }
            }
        } else {
            match side.inbound.deliver(plaintext, Checksums::Full) {
                Err(reason) => side.drops.count(reason),
                Ok(delivery) => match (&*self.tun).write(&plaintext[..delivery.len]) {
                    Ok(_) => side.last_used = Some(now),
                    Err(error) => side.drops.count_error("tun_write", &error),
                },
            }
        }
    }

    fn add(&mut self, start: usize, delivery: &Delivery) {
        if let Some(coalescer) = &mut self.coalescer {
            // It is empty: there is room.
            let _ = coalescer.add(&self.arena, start, delivery);
        }
    }

    /// Writes what was joined to the TUN device.
    fn flush(&mut self) {
        let Some(coalescer) = &mut self.coalescer else { return };
        for run in coalescer.runs() {
            let mut slices = [IoSlice::new(&[]); 1 + MOST_PIECES];
            slices[0] = IoSlice::new(run.head());
            let mut count = 1;
            for (slice, (start, length)) in slices[1..].iter_mut().zip(run.pieces()) {
                *slice = IoSlice::new(&self.arena[start..start + length]);
                count += 1;
            }
            let Err(error) = (&*self.tun).write_vectored(&slices[..count]) else {
                continue;
            };
            // Memory that is short for the moment says nothing about the kernel.
            let passing = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM));
            let mut failed = Some(error);
            let mut lost = 1;
            if run.count() > 1 {
                // The kernel does not take the whole. If it takes the parts, it will get only parts from now on.
                failed = None;
                lost = 0;
                for (start, delivery) in run.packets() {
                    let head = VnetHeader::single(delivery.kind).to_bytes();
                    let packet = [
                        IoSlice::new(&head),
                        IoSlice::new(&self.arena[start..start + delivery.len]),
                    ];
                    if let Err(error) = (&*self.tun).write_vectored(&packet) {
                        failed = Some(error);
                        lost += 1;
                    }
                }
                if failed.is_none() && !passing {
                    self.shared.offload.tun_gro.fail();
                }
            }
            if let Some(error) = failed {
                let drops = match run
                    .packets()
                    .next()
                    .and_then(|(start, _)| peer_of(&self.arena[start..]))
                {
                    Some(inner) => self.shared.table.latest(inner),
                    None => None,
                };
                match drops {
                    Some(tunnel) => tunnel.count_unwritten(&error, lost),
                    None => self
                        .drops
                        .add(("tun_write", error.raw_os_error().unwrap_or(0)), lost as u64),
                }
            }
        }
        coalescer.clear();
    }

    fn early(&mut self, tid: &Tid, datagram: Range<usize>, source: SocketAddr, now: f64) {
        // Whoever adds the tunnel writes the packet: what came before it is to be written first.
        self.flush();
        let mut waiting = self.shared.waiting();
        // Whoever adds a tunnel holds the lock meanwhile: the packet goes where it belongs.
        if let Some(tunnel) = self.shared.table.tunnel(tid) {
            drop(waiting);
            self.run(&tunnel, datagram.start, datagram.end, datagram.len(), source, now);
            return;
        }
        let dropped = waiting.early.add(tid, &self.arena[datagram], source, now);
        drop(waiting);
        if dropped > 0 {
            self.drops.add(("early_full", 0), dropped);
        }
    }

    fn other(&mut self, datagram: Range<usize>, source: SocketAddr, now: f64) {
        let bytes = &self.arena[datagram.clone()];
        if bytes.starts_with(&TUNNEL) {
            self.drops.count("tunnel_short");
            return;
        }
        let (bytes, packet) = behind_cookie(bytes);
        match self.shared.admission.admit(bytes, source, now) {
            Ok(expected) => {
                let event = Event::Datagram(bytes.to_vec(), source, expected);
                self.shared.report(event, &mut self.drops);
                if let Some(tid) = packet {
                    self.early(&tid, datagram.start + COOKIE..datagram.end, source, now);
                }
            }
            Err(reason) => self.drops.count(reason),
        }
    }
}

/// The tunnel that a datagram belongs to; None if it is no tunnel packet, or too short for one.
fn tid_of(datagram: &[u8]) -> Option<Tid> {
    if datagram.len() < OVERHEAD || !datagram.starts_with(&TUNNEL) {
        return None;
    }
    datagram[TUNNEL.len()..TUNNEL.len() + TID].try_into().ok()
}

/// A returned cookie without the tunnel packet that a PQConnect client sends behind it in the same datagram, and the
/// tunnel of that; any other datagram as it is.
fn behind_cookie(datagram: &[u8]) -> (&[u8], Option<Tid>) {
    match datagram.split_at_checked(COOKIE) {
        Some((cookie, packet)) if cookie.starts_with(COOKIE_PREFIX) => match tid_of(packet) {
            Some(tid) => (cookie, Some(tid)),
            None => (datagram, None),
        },
        _ => (datagram, None),
    }
}

/// Whether a plaintext is for the control plane: a control packet (section 8) or the answer to an echo of ours.
fn is_control(plaintext: &[u8]) -> bool {
    plaintext.len() >= IPV4_HEADER
        && plaintext[0] >> 4 == 4
        && (plaintext[9] == CONTROL_PROTOCOL || echo_token(plaintext).is_some())
}

#[cfg(test)]
#[path = "receiver_tests.rs"]
mod tests;
