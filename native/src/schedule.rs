//! The key schedule of one direction: a chain of epochs, each a chain of packet keys (doc/protocol.md section 6).
//!
//! The same as pqtun/protocol/schedule.py, and held to it by tests. The receiving side follows one rule: what a packet
//! asks for is derived on a copy, and the copy is kept only once the packet has authenticated.

use std::collections::VecDeque;

use zeroize::Zeroize;

use crate::crypto::expand;
use crate::limits::{AHEAD_BUDGET, BLOCKS_AHEAD, EPOCHS_AHEAD, RECEIVE_WINDOW, SKIPPED_BLOCKS};
use crate::secret::{Pool, Secret};

pub const KEY: usize = 32;
pub const KEYS_PER_BLOCK: usize = 18;
pub const BLOCK: usize = KEYS_PER_BLOCK * KEY;
pub const EPOCH_SECONDS: f64 = 30.0;
pub const EPOCH_LIFETIME: f64 = 120.0;
pub const MAX_EPOCHS: usize = 5;
const LAST_EPOCH: u16 = u16::MAX;
const ALL_UNUSED: u32 = (1 << KEYS_PER_BLOCK) - 1;

/// What a call expects of the caller's own memory: room for one chain key and one block of packet keys.
pub type Work = Secret<{ KEY + BLOCK }>;

static WORK: Pool<{ KEY + BLOCK }> = Pool::new();
static SEND: Pool<{ 2 * KEY + BLOCK }> = Pool::new();
static RECEIVE: Pool<{ (1 + MAX_EPOCHS) * KEY }> = Pool::new();
static BLOCKS: Pool<BLOCK> = Pool::new();
static AHEAD: Pool<{ (1 + EPOCHS_AHEAD) * KEY }> = Pool::new();

pub type Key = [u8; KEY];
pub type Refused = &'static str;

/// A slot for deriving keys, one for each thread.
pub fn work() -> std::io::Result<Work> {
    WORK.take()
}

fn key_at(bytes: &[u8], number: usize) -> &Key {
    bytes[number * KEY..(number + 1) * KEY]
        .try_into()
        .expect("a slice of 32 bytes")
}

/// (next root, chain key) = KDF(2, root), written over `out`; `root` is erased.
fn split_root(mut root: Key, out: &mut [u8]) {
    expand(&root, &mut out[..2 * KEY]);
    root.zeroize();
}

/// Hands out each packet key once. Epochs follow the clock: 30 s each, starting when the one before ended.
pub struct SendSchedule {
    /// next root | chain key | what is left of the block of packet keys
    secrets: Secret<{ 2 * KEY + BLOCK }>,
    pub epoch: u16,
    counter: u64,
    expires: f64,
    used: usize,
    erased: bool,
}

impl SendSchedule {
    pub fn new(root: &Key, now: f64) -> std::io::Result<Self> {
        let mut secrets = SEND.take()?;
        expand(root, &mut secrets[..2 * KEY]);
        Ok(SendSchedule {
            secrets,
            epoch: 0,
            counter: 0,
            expires: now + EPOCH_SECONDS,
            used: KEYS_PER_BLOCK,
            erased: false,
        })
    }

    /// Moves to the epoch of `now`.
    pub fn advance(&mut self, now: f64) -> Result<(), Refused> {
        if self.erased {
            return Err("dead");
        }
        while now >= self.expires {
            self.step(self.expires)?;
        }
        Ok(())
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
    /// Call `advance` first. Refused: "counter_end" after 2^32 packets in one epoch.
    pub fn take_keys(&mut self, count: usize, keys: &mut [u8]) -> Result<(u32, usize), Refused> {
        let first = u32::try_from(self.counter).map_err(|_| "counter_end")?;
        let left = (1 << 32) - self.counter;
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
        Ok((first, count))
    }

    pub fn erase(&mut self) {
        self.secrets.zeroize();
        self.erased = true;
    }

    fn step(&mut self, start: f64) -> Result<(), Refused> {
        if self.epoch == LAST_EPOCH {
            return Err("epoch_end");
        }
        let root = *key_at(&*self.secrets, 0);
        self.secrets.zeroize();
        split_root(root, &mut *self.secrets);
        self.used = KEYS_PER_BLOCK;
        self.epoch += 1;
        self.counter = 0;
        self.expires = start + EPOCH_SECONDS;
        Ok(())
    }
}

/// 18 packet keys of one epoch; a used one is erased.
struct Block {
    number: u32,
    unused: u32,
    keys: Secret<BLOCK>,
}

/// One epoch of the receiving side. Its chain key is in slot `place` of the schedule's secrets.
struct Epoch {
    number: u16,
    place: u8,
    came_up: f64,
    /// One past the highest counter that authenticated.
    expected: u64,
    /// Number of blocks derived so far.
    derived: u32,
    /// Blocks that hold unused keys, oldest first.
    blocks: VecDeque<Block>,
}

/// Where the key of an arriving packet comes from.
#[derive(Clone, Copy)]
enum Found {
    /// This block of this epoch has it.
    Kept { epoch: usize, block: usize },
    /// It is to be derived from the chain of this epoch.
    Ahead { epoch: usize },
    /// Its epoch is to be brought up first: so many after the newest.
    NewEpoch { epochs: usize },
}

/// Finds the key of an arriving packet. Keeps at most 5 epochs, each for 120 s after it came up.
pub struct ReceiveSchedule {
    /// next root | chain key of each place
    secrets: Secret<{ (1 + MAX_EPOCHS) * KEY }>,
    /// Oldest first.
    epochs: Vec<Epoch>,
    pub newest: u16,
    /// When the oldest epoch is to be erased; infinite when dead.
    pub deadline: f64,
    /// How many blocks may be derived for packets that are far ahead, at the time beside it.
    budget: (f64, f64),
}

impl ReceiveSchedule {
    pub fn new(root: &Key, now: f64) -> std::io::Result<Self> {
        let mut secrets = RECEIVE.take()?;
        expand(root, &mut secrets[..2 * KEY]);
        let epochs = vec![Epoch::new(0, 0, now)];
        Ok(ReceiveSchedule {
            secrets,
            epochs,
            newest: 0,
            deadline: now + EPOCH_LIFETIME,
            budget: (AHEAD_BUDGET, now),
        })
    }

    /// Whether all epochs are gone, so that nothing can be received any more.
    pub fn dead(&self) -> bool {
        self.epochs.is_empty()
    }

    /// Finds the key of packet `counter` of epoch `number` and lets `open` try it; keeps what was derived if it succeeds.
    ///
    /// Refused, with the state as it was: "dead", "old_epoch", "epoch_ahead", "epoch_end", "counter_ahead", "replay" (used
    /// already, or so late that its key was evicted), "ahead_budget" (too much was derived for packets that are far ahead),
    /// "authentication", "no_memory".
    pub fn receive(
        &mut self,
        number: u16,
        counter: u32,
        now: f64,
        work: &mut Work,
        open: impl FnOnce(&Key) -> bool,
    ) -> Result<(), Refused> {
        let block = counter / KEYS_PER_BLOCK as u32;
        let found = self.find(number, counter, block)?;
        let ahead = match found {
            Found::Kept { .. } => 0,
            Found::Ahead { epoch } => block - self.epochs[epoch].derived,
            Found::NewEpoch { .. } => block,
        };
        self.spend(ahead, now)?;
        self.try_key(found, counter, now, work, open)
    }

    /// Takes what is about to be derived from the budget, unless it is little.
    fn spend(&mut self, blocks: u32, now: f64) -> Result<(), Refused> {
        if blocks > BLOCKS_AHEAD {
            let (left, since) = self.budget;
            let left = AHEAD_BUDGET.min(left + (now - since).max(0.0) * AHEAD_BUDGET);
            self.budget = (left, since.max(now));
            if left < f64::from(blocks) {
                return Err("ahead_budget");
            }
            self.budget.0 -= f64::from(blocks);
        }
        Ok(())
    }

    fn try_key(
        &mut self,
        found: Found,
        counter: u32,
        now: f64,
        work: &mut Work,
        open: impl FnOnce(&Key) -> bool,
    ) -> Result<(), Refused> {
        let block = counter / KEYS_PER_BLOCK as u32;
        let place = counter as usize % KEYS_PER_BLOCK;
        match found {
            Found::Kept { epoch, block } => {
                let kept = &mut self.epochs[epoch].blocks[block];
                if !open(key_at(&*kept.keys, place)) {
                    return Err("authentication");
                }
                self.used(epoch, block, place, counter);
                Ok(())
            }
            Found::Ahead { epoch } => {
                let ahead = &self.epochs[epoch];
                let (derived, slot) = (ahead.derived, ahead.place as usize);
                work[..KEY].copy_from_slice(key_at(&*self.secrets, 1 + slot));
                let recent = derive_ahead(work, block - derived)?;
                let result = if open(key_at(&work[KEY..], place)) {
                    self.keep(epoch, block, work, recent)
                } else {
                    Err("authentication")
                };
                work.zeroize();
                result?;
                self.accept(epoch, place, counter);
                Ok(())
            }
            Found::NewEpoch { epochs } => {
                let mut ahead = AHEAD.take().map_err(|_| "no_memory")?;
                self.derive_epochs(epochs, &mut ahead);
                work[..KEY].copy_from_slice(key_at(&*ahead, epochs));
                let recent = derive_ahead(work, block)?;
                let result = if open(key_at(&work[KEY..], place)) {
                    let epoch = self.bring_up(epochs, now, &*ahead);
                    self.keep(epoch, block, work, recent).map(|()| epoch)
                } else {
                    Err("authentication")
                };
                work.zeroize();
                let epoch = result?;
                self.accept(epoch, place, counter);
                Ok(())
            }
        }
    }

    /// Brings up one more epoch without a packet, as a cookie asks for (section 7).
    pub fn step(&mut self, now: f64) -> Result<(), Refused> {
        if self.dead() {
            return Err("dead");
        }
        if self.newest == LAST_EPOCH {
            return Err("epoch_end");
        }
        let mut ahead = AHEAD.take().map_err(|_| "no_memory")?;
        self.derive_epochs(1, &mut ahead);
        self.bring_up(1, now, &*ahead);
        Ok(())
    }

    /// Erases epochs that came up 120 s ago or earlier; with the last of them everything.
    pub fn expire(&mut self, now: f64) {
        while let Some(at) = self
            .epochs
            .iter()
            .position(|epoch| epoch.came_up + EPOCH_LIFETIME <= now)
        {
            self.drop_epoch(at);
        }
        if self.dead() {
            self.secrets.zeroize();
        }
    }

    pub fn erase(&mut self) {
        self.epochs.clear();
        self.secrets.zeroize();
        self.deadline = f64::INFINITY;
    }

    fn find(&self, number: u16, counter: u32, block: u32) -> Result<Found, Refused> {
        let Some(epoch) = self.epochs.iter().rposition(|epoch| epoch.number == number) else {
            if self.dead() {
                return Err("dead");
            }
            if number < self.newest {
                return Err("old_epoch");
            }
            let epochs = usize::from(number - self.newest);
            if epochs > EPOCHS_AHEAD {
                return Err("epoch_ahead");
            }
            if epochs == 0 {
                return Err("old_epoch"); // the newest itself is gone, while an older one is still there
            }
            if u64::from(counter) >= RECEIVE_WINDOW {
                return Err("counter_ahead");
            }
            return Ok(Found::NewEpoch { epochs });
        };
        let there = &self.epochs[epoch];
        if u64::from(counter) >= there.expected + RECEIVE_WINDOW {
            return Err("counter_ahead");
        }
        if block >= there.derived {
            return Ok(Found::Ahead { epoch });
        }
        let place = counter % KEYS_PER_BLOCK as u32;
        match there.blocks.binary_search_by_key(&block, |kept| kept.number) {
            Ok(block) if there.blocks[block].unused & 1 << place != 0 => Ok(Found::Kept { epoch, block }),
            _ => Err("replay"),
        }
    }

    /// Derives on a copy the `count` epochs after the newest: next root, then their chain keys.
    fn derive_epochs(&self, count: usize, ahead: &mut [u8; (1 + EPOCHS_AHEAD) * KEY]) {
        let mut both = [0; 2 * KEY];
        ahead[..KEY].copy_from_slice(key_at(&*self.secrets, 0));
        for n in 1..=count {
            expand(key_at(ahead, 0), &mut both);
            ahead[..KEY].copy_from_slice(&both[..KEY]);
            ahead[n * KEY..(n + 1) * KEY].copy_from_slice(&both[KEY..]);
        }
        both.zeroize();
    }

    /// Makes epochs that were derived on a copy this schedule's own; the oldest go when there are more than 5.
    /// Returns where the last of them is.
    fn bring_up(&mut self, count: usize, now: f64, ahead: &[u8]) -> usize {
        self.secrets[..KEY].copy_from_slice(key_at(ahead, 0));
        for n in 1..=count {
            if self.epochs.len() == MAX_EPOCHS {
                self.drop_epoch(0);
            }
            let place = (0..MAX_EPOCHS as u8)
                .find(|place| self.epochs.iter().all(|epoch| epoch.place != *place))
                .expect("there are fewer epochs than places");
            let at = (1 + place as usize) * KEY;
            self.secrets[at..at + KEY].copy_from_slice(key_at(ahead, n));
            self.newest += 1;
            self.epochs.push(Epoch::new(self.newest, place, now));
        }
        self.epochs.len() - 1
    }

    /// Keeps the blocks up to `block`. `work` has the chain key after it, and its keys.
    ///
    /// `recent` has the chain key from which the latest of those that were skipped are derived once more.
    fn keep(&mut self, epoch: usize, block: u32, work: &Work, recent: Option<Work>) -> Result<(), Refused> {
        let there = &mut self.epochs[epoch];
        let at = (1 + there.place as usize) * KEY;
        if let Some(mut stream) = recent {
            there.derived = there.derived.max(block.saturating_sub(SKIPPED_BLOCKS as u32));
            for number in there.derived..block {
                derive(&mut stream);
                there.blocks.push_back(Block::new(number, &stream[KEY..])?);
                there.derived += 1;
                self.secrets[at..at + KEY].copy_from_slice(&stream[..KEY]);
            }
        }
        there.blocks.push_back(Block::new(block, &work[KEY..])?);
        there.derived += 1;
        self.secrets[at..at + KEY].copy_from_slice(&work[..KEY]);
        Ok(())
    }

    /// Takes note of a packet whose block has just been kept as the last of its epoch.
    fn accept(&mut self, epoch: usize, place: usize, counter: u32) {
        let block = self.epochs[epoch].blocks.len() - 1;
        self.used(epoch, block, place, counter);
        self.bound_skipped();
    }

    /// Erases the key of a packet that authenticated, and its block with the last of its keys.
    fn used(&mut self, epoch: usize, block: usize, place: usize, counter: u32) {
        let epoch = &mut self.epochs[epoch];
        epoch.expected = epoch.expected.max(u64::from(counter) + 1);
        let kept = &mut epoch.blocks[block];
        kept.keys[place * KEY..(place + 1) * KEY].zeroize();
        kept.unused &= !(1 << place);
        if kept.unused == 0 {
            epoch.blocks.remove(block);
        }
    }

    /// Erases skipped packet keys beyond the bound, those of the oldest epochs first.
    fn bound_skipped(&mut self) {
        let kept: usize = self.epochs.iter().map(|epoch| epoch.blocks.len()).sum();
        let mut excess = kept.saturating_sub(SKIPPED_BLOCKS);
        for epoch in &mut self.epochs {
            let blocks = excess.min(epoch.blocks.len());
            epoch.blocks.drain(..blocks);
            excess -= blocks;
        }
    }

    fn drop_epoch(&mut self, at: usize) {
        let place = 1 + self.epochs.remove(at).place as usize;
        self.secrets[place * KEY..(place + 1) * KEY].zeroize();
        let oldest = self
            .epochs
            .iter()
            .map(|epoch| epoch.came_up)
            .fold(f64::INFINITY, f64::min);
        self.deadline = oldest + EPOCH_LIFETIME;
    }
}

impl Epoch {
    fn new(number: u16, place: u8, came_up: f64) -> Self {
        Epoch {
            number,
            place,
            came_up,
            expected: 0,
            derived: 0,
            blocks: VecDeque::new(),
        }
    }
}

impl Block {
    fn new(number: u32, keys: &[u8]) -> Result<Self, Refused> {
        let mut slot = BLOCKS.take().map_err(|_| "no_memory")?;
        slot.copy_from_slice(keys);
        Ok(Block {
            number,
            unused: ALL_UNUSED,
            keys: slot,
        })
    }
}

/// `work` holds a chain key; moves it on by one block, whose keys are left behind it.
fn derive(work: &mut Work) {
    let mut chain = *key_at(&**work, 0);
    expand(&chain, &mut **work);
    chain.zeroize();
}

/// The same by `skipped` blocks and one more. Returns the chain key from which the latest of the skipped ones follow.
fn derive_ahead(work: &mut Work, skipped: u32) -> Result<Option<Work>, Refused> {
    let mut recent = None;
    for left in (0..=skipped).rev() {
        if left > 0 && (left == SKIPPED_BLOCKS as u32 || left == skipped && skipped < SKIPPED_BLOCKS as u32) {
            let mut chain = WORK.take().map_err(|_| "no_memory")?;
            chain[..KEY].copy_from_slice(key_at(&**work, 0));
            recent = Some(chain);
        }
        derive(work);
    }
    Ok(recent)
}

#[cfg(test)]
#[path = "schedule_tests.rs"]
mod tests;
