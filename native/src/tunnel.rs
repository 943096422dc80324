//! One tunnel: the key schedules of both directions, where its peer is, and its counters.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::crypto::Cipher;
pub use crate::crypto::TAG;
use crate::drops::Drops;
use crate::packet::inner::Inbound;
use crate::schedule::{Key, ReceiveSchedule, Refused, SendSchedule, Work};

pub const TID: usize = 32;
/// 02 00, tid, epoch (2 bytes), counter (4 bytes)
pub const HEADER: usize = 2 + TID + 2 + 4;
pub const OVERHEAD: usize = HEADER + TAG;
pub const TUNNEL: [u8; 2] = [2, 0];
pub const COOKIE: usize = 144;
const INDEX_AT: usize = 2 + TID;

pub type Tid = [u8; TID];

/// What sending needs.
pub struct SendSide {
    pub keys: SendSchedule,
    pub endpoint: SocketAddrV4,
    /// To be returned before the next packet.
    pub cookie: Option<Box<[u8; COOKIE]>>,
    /// Whether the way to the peer takes whole trains of datagrams; a link with a small MTU does not.
    pub trains: bool,
    pub last_sent: Option<f64>,
    pub packets: u64,
    pub bytes: u64,
    pub drops: Drops,
}

/// What receiving needs.
pub struct ReceiveSide {
    pub keys: ReceiveSchedule,
    /// Where the newest packet came from.
    pub endpoint: SocketAddrV4,
    /// Epoch and counter of the newest packet, as one number; -1 before the first.
    newest: i64,
    pub last_received: Option<f64>,
    pub packets: u64,
    pub bytes: u64,
    pub drops: Drops,
}

/// What an authenticated packet says beyond its content.
#[derive(Default, Clone, Copy)]
pub struct Heard {
    /// It is the first of this tunnel.
    pub first: bool,
    /// It is newer than all before and came from another address, which is now sent to.
    pub moved: bool,
}

/// What a snapshot says of a tunnel. Times are of the engine's clock, bytes are of inner packets.
pub struct TunnelStats {
    pub tid: Tid,
    pub inner: [u8; 4],
    pub endpoint: SocketAddrV4,
    pub send_epoch: u16,
    pub recv_epoch: u16,
    pub created: f64,
    pub last_sent: Option<f64>,
    pub last_received: Option<f64>,
    pub packets_sent: u64,
    pub packets_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub drops: Drops,
}

pub struct Tunnel {
    pub tid: Tid,
    pub inner: [u8; 4],
    pub inbound: Inbound,
    pub created: f64,
    /// Bits of `ReceiveSchedule::deadline`, for those who do not hold the lock.
    deadline: AtomicU64,
    /// Where both locks are held, `receive` is taken first.
    receive: Mutex<ReceiveSide>,
    send: Mutex<SendSide>,
}

impl Tunnel {
    pub fn new(
        tid: Tid,
        (send_root, receive_root): (&Key, &Key),
        inner: [u8; 4],
        inbound: Inbound,
        endpoint: SocketAddrV4,
        now: f64,
    ) -> io::Result<Self> {
        let keys = ReceiveSchedule::new(receive_root, now)?;
        Ok(Tunnel {
            tid,
            inner,
            inbound,
            created: now,
            deadline: AtomicU64::new(keys.deadline.to_bits()),
            receive: Mutex::new(ReceiveSide {
                keys,
                endpoint,
                newest: -1,
                last_received: None,
                packets: 0,
                bytes: 0,
                drops: Drops::new(),
            }),
            send: Mutex::new(SendSide {
                keys: SendSchedule::new(send_root, now)?,
                endpoint,
                cookie: None,
                trains: true,
                last_sent: None,
                packets: 0,
                bytes: 0,
                drops: Drops::new(),
            }),
        })
    }

    /// When `expire` has something to do next; infinite when dead.
    pub fn deadline(&self) -> f64 {
        f64::from_bits(self.deadline.load(Ordering::Acquire))
    }

    pub fn send_side(&self) -> MutexGuard<'_, SendSide> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the receiving side. `now` may be past a deadline that a timer was late for, after sleep above all.
    pub fn receive_side(&self, now: f64) -> MutexGuard<'_, ReceiveSide> {
        let mut side = self.receive.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= side.keys.deadline {
            side.keys.expire(now);
            self.note(&side);
        }
        side
    }

    /// Erases what is due; returns when there is something to do next, infinite when the tunnel is dead.
    pub fn expire(&self, now: f64) -> f64 {
        self.receive_side(now).keys.deadline
    }

    /// Overwrites every secret; the tunnel is dead afterwards.
    pub fn erase(&self) {
        let mut side = self.receive.lock().unwrap_or_else(PoisonError::into_inner);
        side.keys.erase();
        self.note(&side);
    }

    /// Locks the sending side at the epoch of `now`.
    pub fn ready_to_send(&self, now: f64) -> Result<MutexGuard<'_, SendSide>, Refused> {
        if now >= self.deadline() {
            self.expire(now);
        }
        let mut side = self.send_side();
        side.keys.advance(now)?;
        Ok(side)
    }

    /// Opens a datagram of this tunnel in place; the plaintext is between header and tag. Its key is erased, and the sending
    /// side follows the peer's epoch.
    ///
    /// Refused, with the state as it was: what `ReceiveSchedule::receive` refuses.
    pub fn open(
        &self,
        side: &mut ReceiveSide,
        datagram: &mut [u8],
        source: SocketAddrV4,
        now: f64,
        cipher: &mut Cipher,
        work: &mut Work,
    ) -> Result<Heard, Refused> {
        let (epoch, counter) = index(datagram);
        let (header, rest) = datagram.split_at_mut(HEADER);
        let (text, tag) = rest.split_at_mut(rest.len() - TAG);
        let tag: &[u8; TAG] = (&*tag).try_into().map_err(|_| "length")?;
        let before = side.keys.newest;
        let received = side
            .keys
            .receive(epoch, counter, now, work, |key| cipher.open(key, header, text, tag));
        if side.keys.newest != before {
            self.note(side);
            // The peer's epoch is at most 65535, so that ours, which follows it, cannot end here.
            let _ = self.send_side().keys.step_up_to(epoch, now);
        }
        received?;
        let heard = Heard {
            first: side.last_received.is_none(),
            moved: self.moved(side, (epoch, counter), source),
        };
        side.last_received = Some(now);
        side.packets += 1;
        side.bytes += text.len() as u64;
        Ok(heard)
    }

    /// Moves both directions to the next epoch, and keeps the cookie for the next packet (doc/protocol.md section 7).
    pub fn take_cookie(&self, side: &mut ReceiveSide, cookie: &[u8], now: f64) -> Result<(), Refused> {
        let cookie: &[u8; COOKIE] = cookie.try_into().map_err(|_| "cookie_length")?;
        side.keys.step(now)?;
        self.note(side);
        let mut sending = self.send_side();
        sending.keys.step_up_to(side.keys.newest, now)?;
        sending.cookie = Some(Box::new(*cookie));
        Ok(())
    }

    /// Counts packets of the peer that the TUN device did not take.
    pub fn count_unwritten(&self, error: &io::Error, packets: usize) {
        // Of the sending side, because who writes may hold the other lock.
        self.send_side()
            .drops
            .add(("tun_write", error.raw_os_error().unwrap_or(0)), packets as u64);
    }

    /// All drops of the tunnel.
    pub fn drops(&self) -> Drops {
        self.stats().drops
    }

    /// A snapshot of all counters.
    pub fn stats(&self) -> TunnelStats {
        let received = self.receive.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = self.send_side();
        let mut drops = Drops::new();
        drops.merge(&received.drops);
        drops.merge(&sent.drops);
        TunnelStats {
            tid: self.tid,
            inner: self.inner,
            endpoint: received.endpoint,
            send_epoch: sent.keys.epoch,
            recv_epoch: received.keys.newest,
            created: self.created,
            last_sent: sent.last_sent,
            last_received: received.last_received,
            packets_sent: sent.packets,
            packets_received: received.packets,
            bytes_sent: sent.bytes,
            bytes_received: received.bytes,
            drops,
        }
    }

    /// Only a packet newer than all before it moves the peer, so that a delayed or copied one cannot.
    fn moved(&self, side: &mut ReceiveSide, (epoch, counter): (u16, u32), source: SocketAddrV4) -> bool {
        let index = i64::from(epoch) << 32 | i64::from(counter);
        if index <= side.newest {
            return false;
        }
        side.newest = index;
        if source == side.endpoint {
            return false;
        }
        side.endpoint = source;
        let mut sending = self.send_side();
        sending.endpoint = source;
        sending.trains = true;
        true
    }

    /// Publishes the deadline; without a receiving epoch nothing is sent either.
    fn note(&self, side: &ReceiveSide) {
        self.deadline.store(side.keys.deadline.to_bits(), Ordering::Release);
        if side.keys.dead() {
            self.send_side().keys.erase();
        }
    }
}

/// Epoch and counter of a datagram of at least `HEADER` bytes.
fn index(datagram: &[u8]) -> (u16, u32) {
    let at = |n: usize| datagram[INDEX_AT + n];
    (
        u16::from_be_bytes([at(0), at(1)]),
        u32::from_be_bytes([at(2), at(3), at(4), at(5)]),
    )
}

/// Writes the header of a packet.
pub fn put_header(out: &mut [u8], tid: &Tid, epoch: u16, counter: u32) {
    out[..2].copy_from_slice(&TUNNEL);
    out[2..INDEX_AT].copy_from_slice(tid);
    out[INDEX_AT..INDEX_AT + 2].copy_from_slice(&epoch.to_be_bytes());
    out[INDEX_AT + 2..HEADER].copy_from_slice(&counter.to_be_bytes());
}
