//! Seals packets and sends them in trains: datagrams of one tunnel, all of one length but the last, in one message.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};

use zeroize::Zeroize;

use crate::cookie::Sealing;
use crate::crypto::Cipher;
use crate::drops::Drops;
use crate::packet::{clear_destination, Plan};
use crate::schedule::{Key, Refused, KEY};
use crate::secret::{Pool, Secret};
use crate::shared::Shared;
use crate::sys::{self, Outgoing, MAX_MESSAGES, MAX_SEGMENTS, MAX_UDP_PAYLOAD};
use crate::tunnel::{put_header, SendSide, Tunnel, COOKIE, HEADER, OVERHEAD, TAG};

/// The longest datagram that is ever sealed: an IP packet of 65535 bytes; the kernel refuses it, and it is counted.
const LONGEST: usize = 65535 + OVERHEAD;
/// A full train is sent at once, so that the other end can begin while we go on.
const BUFFER: usize = 2 * LONGEST;
const FULL: usize = LONGEST / 2;
/// Trains that wait at most.
const TRAINS: usize = 64;

static KEYS: Pool<{ MAX_SEGMENTS * KEY }> = Pool::new();

/// What goes into a tunnel.
#[derive(Clone, Copy)]
pub enum Plaintext<'a> {
    /// A packet of a program; its destination is cleared.
    Packet(&'a [u8]),
    /// A packet of a program that is yet to be cut.
    Cut(&'a Plan, &'a [u8]),
    /// Of the control plane; it stays as it is.
    Raw(&'a [u8]),
    /// The same, dropped where the peer is sent to at another address.
    Question(&'a [u8], SocketAddr),
    /// The same, after which the tunnel sends nothing more.
    Last(&'a [u8]),
}

impl Plaintext<'_> {
    fn count(&self) -> usize {
        match self {
            Plaintext::Cut(plan, _) => plan.count(),
            _ => 1,
        }
    }

    fn len(&self, number: usize) -> usize {
        match self {
            Plaintext::Packet(packet) | Plaintext::Raw(packet) | Plaintext::Question(packet, _) => packet.len(),
            Plaintext::Last(packet) => packet.len(),
            Plaintext::Cut(plan, _) => plan.len(number),
        }
    }

    fn write(&self, number: usize, out: &mut [u8]) {
        match self {
            Plaintext::Raw(packet) | Plaintext::Question(packet, _) | Plaintext::Last(packet) => {
                return out.copy_from_slice(packet)
            }
            Plaintext::Packet(packet) => out.copy_from_slice(packet),
            Plaintext::Cut(plan, packet) => {
                plan.write(number, packet, out);
            }
        }
        clear_destination(out);
    }
}

struct Train {
    tunnel: Option<Arc<Tunnel>>,
    to: SocketAddr,
    start: usize,
    end: usize,
    /// Bytes of each datagram, of the last at most.
    stride: usize,
    count: usize,
    /// Nothing can be added: it ends with a shorter datagram, or is to be sent alone.
    complete: bool,
    /// Whether it has packets of programs.
    used: bool,
}

pub struct Sender {
    shared: Arc<Shared>,
    socket: Arc<UdpSocket>,
    /// Whether trains wait for room in the socket buffer; else they are dropped.
    patient: bool,
    blocked: bool,
    cipher: Cipher,
    keys: Secret<{ MAX_SEGMENTS * KEY }>,
    buffer: Vec<u8>,
    used: usize,
    trains: Vec<Train>,
    pub drops: Drops,
}

impl Sender {
    pub fn new(shared: Arc<Shared>, socket: Arc<UdpSocket>, patient: bool) -> io::Result<Self> {
        Ok(Sender {
            shared,
            socket,
            patient,
            blocked: false,
            cipher: Cipher::new(),
            keys: KEYS.take()?,
            buffer: vec![0; BUFFER],
            used: 0,
            trains: Vec::with_capacity(TRAINS),
            drops: Drops::new(),
        })
    }

    /// Seals `text` for the peer and queues it; `flush` sends it. What is refused is counted for the tunnel.
    pub fn seal(&mut self, tunnel: &Arc<Tunnel>, text: Plaintext, now: f64) {
        let total = text.count();
        let mut done = 0;
        while done < total {
            match tunnel.ready_to_send(now) {
                Ok(side) => done += self.seal_some(tunnel, side, text, done, now),
                Err(reason) => {
                    tunnel.send_side().drops.add((reason, 0), (total - done) as u64);
                    return;
                }
            }
        }
    }

    /// Seals and queues the state of the tunnel, and erases its keys: the tunnel that comes back has those of the next epoch
    /// again, so that none of them may have been used by then (section 7).
    ///
    /// Refused, with nothing queued: "dead", "epoch_end".
    pub fn put_aside(&mut self, tunnel: &Arc<Tunnel>, sealing: &Sealing, now: f64) -> Result<(), Refused> {
        let mut cookie = [0; COOKIE];
        let mut receive = tunnel.receive_side(now);
        let mut side = tunnel.send_side();
        side.keys.advance(now)?;
        sealing.write(&tunnel.tid, &side.keys, &receive.keys, &mut self.cipher, &mut cookie)?;
        // Without letting go of a lock before its keys are gone.
        self.seal_some(tunnel, side, Plaintext::Last(&cookie), 0, now);
        tunnel.erase_both(&mut receive);
        Ok(())
    }

    /// Seals and queues some packets of `text` from number `done` on; returns how many are done, one at least.
    fn seal_some<'a>(
        &mut self,
        tunnel: &'a Arc<Tunnel>,
        mut side: MutexGuard<'a, SendSide>,
        text: Plaintext,
        done: usize,
        now: f64,
    ) -> usize {
        if matches!(text, Plaintext::Question(_, only) if only != side.endpoint) {
            side.drops.count("moved_on");
            return 1;
        }
        let mut want = (text.count() - done).min(MAX_SEGMENTS);
        if !side.confirmed {
            let cookie = if side.cookie.is_some() { COOKIE } else { 0 };
            let size = |n| OVERHEAD + text.len(n) + if n == done { cookie } else { 0 };
            let sizes = (done..done + want).map(size);
            want = tunnel.afford(&mut side, &self.shared.unconfirmed, sizes, now);
            if want == 0 {
                side.drops.count("unconfirmed");
                return 1; // a shorter one may still go
            }
        }
        let (first, count) = side.keys.take_keys(want, &mut *self.keys);
        let (epoch, to) = (side.keys.epoch, side.endpoint);
        let trains = side.trains && self.shared.offload.udp_gso.on();
        let used = matches!(text, Plaintext::Packet(_) | Plaintext::Cut(..));
        let cookie = side.cookie.take();
        if let Plaintext::Last(_) = text {
            side.keys.erase();
        }
        drop(side);
        if let Some(cookie) = cookie {
            // The server has put its state aside and needs it back to read what follows (section 7).
            self.datagram(&*cookie, to, now);
        }
        for n in 0..count {
            let length = text.len(done + n);
            let start = self.make_room(OVERHEAD + length, now);
            let out = &mut self.buffer[start..start + OVERHEAD + length];
            let (header, rest) = out.split_at_mut(HEADER);
            let (body, tag) = rest.split_at_mut(length);
            put_header(header, &tunnel.tid, epoch, first.wrapping_add(n as u32));
            text.write(done + n, body);
            let key: &Key = self.keys[n * KEY..(n + 1) * KEY]
                .try_into()
                .expect("a slice of 32 bytes");
            let tag: &mut [u8; TAG] = tag.try_into().expect("a slice of 16 bytes");
            self.cipher.seal(key, header, body, tag);
            self.couple(Some(tunnel), to, OVERHEAD + length, trains);
            if let (true, Some(train)) = (used, self.trains.last_mut()) {
                train.used = true;
            }
        }
        self.keys[..count * KEY].zeroize();
        if self.used >= FULL {
            self.flush(now);
        }
        count
    }

    /// Queues a datagram of the control plane.
    pub fn datagram(&mut self, data: &[u8], to: SocketAddr, now: f64) {
        if data.len() > LONGEST {
            self.drops
                .count_error("send", &io::Error::from_raw_os_error(libc::EMSGSIZE));
            return;
        }
        let start = self.make_room(data.len(), now);
        self.buffer[start..start + data.len()].copy_from_slice(data);
        self.couple(None, to, data.len(), false);
    }

    /// Whether trains wait for room in the socket buffer: nothing more should be sealed until `flush` has sent them.
    pub fn blocked(&self) -> bool {
        self.blocked
    }

    /// Sends everything that is queued, as far as there is room for it.
    pub fn flush(&mut self, now: f64) {
        self.blocked = false;
        let mut next = 0;
        while next < self.trains.len() {
            let mut messages = [Outgoing {
                data: &[],
                to: self.trains[next].to,
                segment: 0,
            }; MAX_MESSAGES];
            let count = MAX_MESSAGES.min(self.trains.len() - next);
            for (message, train) in messages.iter_mut().zip(&self.trains[next..]) {
                *message = Outgoing {
                    data: &self.buffer[train.start..train.end],
                    to: train.to,
                    segment: if train.count > 1 { train.stride as u16 } else { 0 },
                };
            }
            match sys::send_messages(self.socket.as_fd(), &messages[..count]) {
                Ok(sent) => {
                    for train in &self.trains[next..next + sent] {
                        account(train, train.end - train.start, train.count, now);
                    }
                    next += sent;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && self.patient => {
                    self.blocked = true;
                    self.trains.drain(..next);
                    return;
                }
                Err(error) => {
                    self.refused(next, &error, now);
                    next += 1;
                }
            }
        }
        self.trains.clear();
        self.used = 0;
    }

    /// Leaves no key behind.
    pub fn wipe(&mut self) {
        self.cipher.wipe();
    }

    fn make_room(&mut self, length: usize, now: f64) -> usize {
        if self.is_full(length) {
            self.flush(now);
        }
        if self.is_full(length) {
            let error = io::Error::from_raw_os_error(libc::EAGAIN);
            (0..self.trains.len()).for_each(|number| self.refused(number, &error, now));
            self.trains.clear();
            self.used = 0;
        }
        self.used
    }

    fn is_full(&self, length: usize) -> bool {
        self.used + length > BUFFER || self.trains.len() == TRAINS
    }

    /// Adds what was written to the free part of the buffer to the last train, or makes it a new one.
    fn couple(&mut self, tunnel: Option<&Arc<Tunnel>>, to: SocketAddr, length: usize, trains: bool) {
        let start = self.used;
        self.used += length;
        if let (Some(tunnel), Some(last)) = (tunnel, self.trains.last_mut()) {
            if !last.complete
                && length <= last.stride
                && last.count < MAX_SEGMENTS
                && self.used - last.start <= MAX_UDP_PAYLOAD
                && last.to == to
                && last.tunnel.as_ref().is_some_and(|other| Arc::ptr_eq(other, tunnel))
            {
                last.count += 1;
                last.end = self.used;
                last.complete = length < last.stride;
                return;
            }
        }
        self.trains.push(Train {
            tunnel: tunnel.cloned(),
            to,
            start,
            end: self.used,
            stride: length,
            count: 1,
            complete: !trains,
            used: false,
        });
    }

    /// The kernel did not take a train: its datagrams are sent one by one, where that can help.
    fn refused(&mut self, number: usize, error: &io::Error, now: f64) {
        let train = &self.trains[number];
        let whole = train.start..train.end;
        match (error.raw_os_error(), &train.tunnel) {
            // The way to this peer has a smaller MTU: what is too long for it is cut by IP, but only outside of trains. Or
            // its device computes no checksums (EIO; udp(7), UDP_SEGMENT); another peer's way may be through another device.
            (Some(libc::EINVAL | libc::EMSGSIZE | libc::EIO), Some(tunnel)) if train.count > 1 => {
                tunnel.send_side().trains = false;
            }
            (code, tunnel) => {
                let reason = ("send", code.unwrap_or(0));
                match tunnel {
                    Some(tunnel) => tunnel.send_side().drops.add(reason, train.count as u64),
                    None => self.drops.add(reason, train.count as u64),
                }
                return;
            }
        }
        for data in self.buffer[whole].chunks(train.stride) {
            let alone = [Outgoing {
                data,
                to: train.to,
                segment: 0,
            }];
            match sys::send_messages(self.socket.as_fd(), &alone) {
                Ok(_) => account(train, data.len(), 1, now),
                Err(error) => {
                    if let Some(tunnel) = &train.tunnel {
                        tunnel.send_side().drops.count_error("send", &error);
                    }
                }
            }
        }
    }
}

fn account(train: &Train, bytes: usize, count: usize, now: f64) {
    if let Some(tunnel) = &train.tunnel {
        let mut side = tunnel.send_side();
        side.last_sent = Some(now);
        if train.used {
            side.last_used = Some(now);
        }
        side.packets += count as u64;
        side.bytes += (bytes - count * OVERHEAD) as u64;
    }
}

#[cfg(test)]
#[path = "sender_tests.rs"]
mod tests;
