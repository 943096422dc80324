//! One tunnel: the key schedules of both directions, where its peer is, and its counters.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::bucket::Bucket;
use crate::crypto::Cipher;
pub use crate::crypto::TAG;
use crate::drops::Drops;
use crate::limits::{CONTROL_BURST, CONTROL_RATE, LEAST_MTU, UNCONFIRMED_BYTES, UNCONFIRMED_FACTOR, UNCONFIRMED_RATE};
use crate::packet::inner::Inbound;
use crate::prefixes::Unconfirmed;
use crate::schedule::{Key, ReceiveSchedule, Refused, SendSchedule, Work};

pub const TID: usize = 32;
/// 02 00, tid, epoch (2 bytes), counter (4 bytes)
pub const HEADER: usize = 2 + TID + 2 + 4;
pub const OVERHEAD: usize = HEADER + TAG;
pub const TUNNEL: [u8; 2] = [2, 0];
pub const COOKIE: usize = 144;
pub const COOKIE_PREFIX: &[u8; 8] = b"pqccookE";
const INDEX_AT: usize = 2 + TID;

pub type Tid = [u8; TID];

/// What a tunnel begins with.
pub struct Beginning<'a> {
    pub tid: Tid,
    pub send_root: &'a Key,
    pub receive_root: &'a Key,
    /// The one that the roots are of.
    pub epoch: u16,
    pub inner: [u8; 4],
    pub endpoint: SocketAddr,
    /// Whether the peer is known to be reached there.
    pub confirmed: bool,
}

/// What sending needs.
pub struct SendSide {
    pub keys: SendSchedule,
    pub endpoint: SocketAddr,
    /// Whether the peer was shown to be reached there; else what is sent is bounded.
    pub confirmed: bool,
    /// Bytes that may be sent where it was not, whatever comes from there.
    unconfirmed: Bucket,
    /// To be returned before the next packet.
    pub cookie: Option<Box<[u8; COOKIE]>>,
    /// Whether the way to the peer takes whole trains of datagrams; a link with a small MTU does not.
    pub trains: bool,
    pub last_sent: Option<f64>,
    pub last_used: Option<f64>,
    pub packets: u64,
    pub bytes: u64,
    pub drops: Drops,
}

/// What receiving needs.
pub struct ReceiveSide {
    pub keys: ReceiveSchedule,
    pub inbound: Inbound,
    /// Where the newest packet came from.
    pub endpoint: SocketAddr,
    /// As on the sending side.
    confirmed: bool,
    control: Bucket,
    /// Epoch and counter of the newest packet, as one number; -1 before the first.
    newest: i64,
    pub last_received: Option<f64>,
    pub last_used: Option<f64>,
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
    pub endpoint: SocketAddr,
    pub send_epoch: u16,
    pub recv_epoch: u16,
    pub created: f64,
    pub last_sent: Option<f64>,
    pub last_received: Option<f64>,
    pub last_used: Option<f64>,
    pub confirmed: bool,
    pub mtu: Option<u16>,
    pub packets_sent: u64,
    pub packets_received: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
    pub drops: Drops,
}

impl TunnelStats {
    /// When it was used last, or made.
    pub fn used(&self) -> f64 {
        self.last_used.unwrap_or(self.created)
    }
}

pub struct Tunnel {
    pub tid: Tid,
    /// Which one of the engine's it was to be added.
    pub number: u64,
    pub created: f64,
    inner: AtomicU32,
    /// Bytes of the longest inner packet; 0 if nobody said.
    mtu: AtomicU16,
    /// Bytes that may be sent to an unconfirmed endpoint because of what came from there. Only who holds `send` takes.
    earned: AtomicU64,
    /// Bits of `ReceiveSchedule::deadline`, for those who do not hold the lock.
    deadline: AtomicU64,
    /// Where both locks are held, `receive` is taken first.
    receive: Mutex<ReceiveSide>,
    send: Mutex<SendSide>,
}

impl Tunnel {
    pub fn new(beginning: &Beginning, inbound: Inbound, number: u64, now: f64) -> io::Result<Self> {
        let &Beginning {
            tid,
            send_root,
            receive_root,
            epoch,
            inner,
            endpoint,
            confirmed,
        } = beginning;
        let keys = ReceiveSchedule::new(receive_root, epoch, now)?;
        Ok(Tunnel {
            tid,
            number,
            created: now,
            inner: AtomicU32::new(u32::from_be_bytes(inner)),
            mtu: AtomicU16::new(0),
            earned: AtomicU64::new(0),
            deadline: AtomicU64::new(keys.deadline.to_bits()),
            receive: Mutex::new(ReceiveSide {
                keys,
                inbound,
                endpoint,
                confirmed,
                control: Bucket::new(CONTROL_BURST, now),
                newest: -1,
                last_received: None,
                last_used: None,
                packets: 0,
                bytes: 0,
                drops: Drops::new(),
            }),
            send: Mutex::new(SendSide {
                keys: SendSchedule::new(send_root, epoch, now)?,
                endpoint,
                confirmed,
                unconfirmed: Bucket::new(UNCONFIRMED_BYTES, now),
                cookie: None,
                trains: true,
                last_sent: None,
                last_used: None,
                packets: 0,
                bytes: 0,
                drops: Drops::new(),
            }),
        })
    }

    /// The private address that it stands for.
    pub fn inner(&self) -> [u8; 4] {
        self.inner.load(Ordering::Relaxed).to_be_bytes()
    }

    /// Stands for another private address from now on.
    pub fn stand_for(&self, inner: [u8; 4], inbound: Inbound) {
        self.lock_receive().inbound = inbound;
        self.inner.store(u32::from_be_bytes(inner), Ordering::Relaxed);
    }

    /// Bytes of the longest inner packet that is to be sent, if somebody said.
    pub fn mtu(&self) -> Option<u16> {
        match self.mtu.load(Ordering::Relaxed) {
            0 => None,
            mtu => Some(mtu),
        }
    }

    pub fn set_mtu(&self, mtu: u32) {
        let mtu = mtu.clamp(LEAST_MTU, u16::MAX.into());
        self.mtu.store(mtu as u16, Ordering::Relaxed);
    }

    /// The peer was shown to be reached at an endpoint; nothing happens if it has moved on.
    pub fn confirm(&self, endpoint: SocketAddr) {
        let mut side = self.lock_receive();
        if side.endpoint == endpoint {
            side.confirmed = true;
            self.send_side().confirmed = true;
        }
    }

    /// How many of these datagrams, from the first on, may be sent to the endpoint. Those are counted.
    pub fn afford(
        &self,
        side: &mut SendSide,
        prefixes: &Unconfirmed,
        sizes: impl Iterator<Item = usize>,
        now: f64,
    ) -> usize {
        let (bucket, host) = (&mut side.unconfirmed, side.endpoint.ip());
        sizes
            .take_while(|size| {
                let earned = self.earned.load(Ordering::Relaxed).min(*size as u64);
                let free = (*size as u64 - earned) as f64;
                let enough = earned == *size as u64
                    || bucket.holds(free, UNCONFIRMED_RATE, UNCONFIRMED_BYTES, now) && prefixes.take(host, free, now);
                if enough {
                    bucket.take(free, UNCONFIRMED_RATE, UNCONFIRMED_BYTES, now);
                    self.earned.fetch_sub(earned, Ordering::Relaxed);
                }
                enough
            })
            .count()
    }

    /// When `expire` has something to do next; infinite when dead.
    pub fn deadline(&self) -> f64 {
        f64::from_bits(self.deadline.load(Ordering::Acquire))
    }

    pub fn send_side(&self) -> MutexGuard<'_, SendSide> {
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_receive(&self) -> MutexGuard<'_, ReceiveSide> {
        self.receive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Locks the receiving side. `now` may be past a deadline that a timer was late for, after sleep above all.
    pub fn receive_side(&self, now: f64) -> MutexGuard<'_, ReceiveSide> {
        let mut side = self.lock_receive();
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
        self.erase_both(&mut self.lock_receive());
    }

    /// The same for who has locked the receiving side.
    pub fn erase_both(&self, side: &mut ReceiveSide) {
        side.keys.erase();
        self.note(side);
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
        source: SocketAddr,
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
        if !side.confirmed && side.endpoint == source {
            let bytes = (OVERHEAD + text.len()) as u64;
            self.earned.fetch_add(UNCONFIRMED_FACTOR * bytes, Ordering::Relaxed);
        }
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
        let received = self.lock_receive();
        let sent = self.send_side();
        let mut drops = Drops::new();
        drops.merge(&received.drops);
        drops.merge(&sent.drops);
        TunnelStats {
            tid: self.tid,
            inner: self.inner(),
            endpoint: received.endpoint,
            send_epoch: sent.keys.epoch,
            recv_epoch: received.keys.newest,
            created: self.created,
            last_sent: sent.last_sent,
            last_received: received.last_received,
            last_used: latest(received.last_used, sent.last_used),
            confirmed: sent.confirmed,
            mtu: self.mtu(),
            packets_sent: sent.packets,
            packets_received: received.packets,
            bytes_sent: sent.bytes,
            bytes_received: received.bytes,
            drops,
        }
    }

    /// Only a packet newer than all before it moves the peer, so that a delayed or copied one cannot.
    fn moved(&self, side: &mut ReceiveSide, (epoch, counter): (u16, u32), source: SocketAddr) -> bool {
        let index = i64::from(epoch) << 32 | i64::from(counter);
        if index <= side.newest {
            return false;
        }
        side.newest = index;
        if source == side.endpoint {
            return false;
        }
        side.endpoint = source;
        side.confirmed = false;
        let mut sending = self.send_side();
        sending.endpoint = source;
        sending.confirmed = false;
        sending.trains = true;
        self.earned.store(0, Ordering::Relaxed);
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

impl ReceiveSide {
    /// Whether a control packet is to be reported: only so many are.
    pub fn takes_control(&mut self, now: f64) -> bool {
        self.control.take(1.0, CONTROL_RATE, CONTROL_BURST, now)
    }
}

/// The later of two times.
fn latest(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        _ => one.or(other),
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
