//! The sending half of the schedule.

use zeroize::Zeroize;

use super::{key_at, Key, Refused, BLOCK, EPOCH_SECONDS, KEY, KEYS_PER_BLOCK, LAST_EPOCH};
use crate::crypto::expand;
use crate::secret::{Pool, Secret};

/// Packets in one epoch: their counters have 32 bits.
const COUNTERS: u64 = 1 << 32;

static SEND: Pool<{ 2 * KEY + BLOCK }> = Pool::new();

/// Hands out each packet key once. Epochs follow the clock: 30 s each, starting when the one before ended.
pub struct SendSchedule {
    /// next root | chain key | what is left of the block of packet keys
    pub(super) secrets: Secret<{ 2 * KEY + BLOCK }>,
    pub epoch: u16,
    pub(super) counter: u64,
    expires: f64,
    pub(super) used: usize,
    erased: bool,
}

impl SendSchedule {
    /// `root` is that of `epoch`, which begins `now`.
    pub fn new(root: &Key, epoch: u16, now: f64) -> std::io::Result<Self> {
        let mut secrets = SEND.take()?;
        expand(root, &mut secrets[..2 * KEY]);
        Ok(SendSchedule {
            secrets,
            epoch,
            counter: 0,
            expires: now + EPOCH_SECONDS,
            used: KEYS_PER_BLOCK,
            erased: false,
        })
    }

    /// Moves to the epoch of `now`, or to the next one where this one has no more counters.
    pub fn advance(&mut self, now: f64) -> Result<(), Refused> {
        if self.erased {
            return Err("dead");
        }
        while now >= self.expires {
            self.step(self.expires)?;
        }
        if self.counter == COUNTERS {
            self.step(now)?;
        }
        Ok(())
    }

    /// Begins the next epoch, unless its time has come anyway or this is the last one.
    pub fn begin_next(&mut self, now: f64) {
        if !self.erased && now < self.expires && self.counter < COUNTERS {
            let _ = self.step(now); // refused in the last epoch only
        }
    }

    /// Follows the peer, whose clock may be ahead of ours.
    pub fn step_up_to(&mut self, epoch: u16, now: f64) -> Result<(), Refused> {
        while !self.erased && self.epoch < epoch {
            self.step(now.min(self.expires))?;
        }
        Ok(())
    }

    /// Moves up to `count` packet keys into `keys`; returns the counter of the first, and how many there are.
    ///
    /// Call `advance` first: then there is one at least.
    pub fn take_keys(&mut self, count: usize, keys: &mut [u8]) -> (u32, usize) {
        let first = self.counter as u32;
        let left = COUNTERS - self.counter;
        let count = count.min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut taken = 0;
        while taken < count {
            if self.used == KEYS_PER_BLOCK {
                let mut chain = *key_at(&*self.secrets, 1);
                expand(&chain, &mut self.secrets[KEY..]);
                chain.zeroize();
                self.used = 0;
            }
            let now = (count - taken).min(KEYS_PER_BLOCK - self.used);
            let from = 2 * KEY + self.used * KEY;
            let block = &mut self.secrets[from..from + now * KEY];
            keys[taken * KEY..(taken + now) * KEY].copy_from_slice(block);
            block.zeroize();
            self.used += now;
            taken += now;
        }
        self.counter += count as u64;
        (first, count)
    }

    /// The root of the epoch after this one.
    pub fn next_root(&self) -> &Key {
        key_at(&*self.secrets, 0)
    }

    pub fn erase(&mut self) {
        self.secrets.zeroize();
        self.erased = true;
    }

    fn step(&mut self, start: f64) -> Result<(), Refused> {
        if self.epoch == LAST_EPOCH {
            return Err("epoch_end");
        }
        let mut root = *key_at(&*self.secrets, 0);
        self.secrets.zeroize();
        expand(&root, &mut self.secrets[..2 * KEY]);
        root.zeroize();
        self.used = KEYS_PER_BLOCK;
        self.epoch += 1;
        self.counter = 0;
        self.expires = start + EPOCH_SECONDS;
        Ok(())
    }
}
