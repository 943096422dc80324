//! The receiving half of the schedule.

use std::collections::VecDeque;

use zeroize::Zeroize;

use super::{key_at, Key, Refused, Work, BLOCK, EPOCH_LIFETIME, KEY, KEYS_PER_BLOCK, LAST_EPOCH, MAX_EPOCHS, WORK};
use crate::crypto::expand;
use crate::limits::{
    AHEAD_BUDGET, ALL_BLOCKS, BLOCKS_AHEAD, EPOCHS_AHEAD, FORGED_PRICE, RECEIVE_WINDOW, SKIPPED_BLOCKS,
    SKIPPED_WHEN_SHORT,
};
use crate::secret::{Pool, Secret};

const ALL_UNUSED: u32 = (1 << KEYS_PER_BLOCK) - 1;

static RECEIVE: Pool<{ (1 + MAX_EPOCHS) * KEY }> = Pool::new();
static BLOCKS: Pool<BLOCK> = Pool::new();
static AHEAD: Pool<{ (1 + EPOCHS_AHEAD) * KEY }> = Pool::new();

/// 18 packet keys of one epoch; a used one is erased.
pub(super) struct Block {
    pub(super) number: u32,
    pub(super) unused: u32,
    pub(super) keys: Secret<BLOCK>,
}

/// One epoch of the receiving side. Its chain key is in slot `place` of the schedule's secrets.
pub(super) struct Epoch {
    pub(super) number: u16,
    pub(super) place: u8,
    pub(super) came_up: f64,
    /// One past the highest counter that authenticated.
    pub(super) expected: u64,
    /// Number of blocks derived so far.
    pub(super) derived: u32,
    /// Blocks that hold unused keys, oldest first.
    pub(super) blocks: VecDeque<Block>,
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
    pub(super) secrets: Secret<{ (1 + MAX_EPOCHS) * KEY }>,
    /// Oldest first.
    pub(super) epochs: Vec<Epoch>,
    pub newest: u16,
    /// When the oldest epoch is to be erased; infinite when dead.
    pub deadline: f64,
    /// How many blocks may be derived for packets that are far ahead, at the time beside it.
    budget: (f64, f64),
}

impl ReceiveSchedule {
    /// `root` is that of `epoch`, which comes up `now`.
    pub fn new(root: &Key, epoch: u16, now: f64) -> std::io::Result<Self> {
        let mut secrets = RECEIVE.take()?;
        expand(root, &mut secrets[..2 * KEY]);
        let epochs = vec![Epoch::new(epoch, 0, now)];
        Ok(ReceiveSchedule {
            secrets,
            epochs,
            newest: epoch,
            deadline: now + EPOCH_LIFETIME,
            budget: (AHEAD_BUDGET, now),
        })
    }

    /// Whether all epochs are gone, so that nothing can be received any more.
    pub fn dead(&self) -> bool {
        self.epochs.is_empty()
    }

    /// Blocks of packet keys that are kept for packets that have not come.
    pub fn blocks(&self) -> usize {
        self.epochs.iter().map(|epoch| epoch.blocks.len()).sum()
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
        let result = self.try_key(found, counter, now, work, open);
        if result == Err("authentication") && ahead > BLOCKS_AHEAD {
            self.budget.0 -= f64::from(ahead) * (FORGED_PRICE - 1.0);
        }
        result
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

    /// Writes the root of an epoch after the newest.
    pub fn root_of(&self, number: u16, root: &mut [u8]) {
        let mut both = [0; 2 * KEY];
        root.copy_from_slice(key_at(&*self.secrets, 0));
        for _ in self.newest + 1..number {
            expand(key_at(root, 0), &mut both);
            root.copy_from_slice(&both[..KEY]);
        }
        both.zeroize();
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
            if number <= self.newest {
                return Err("old_epoch");
            }
            let epochs = usize::from(number - self.newest);
            if epochs > EPOCHS_AHEAD {
                return Err("epoch_ahead");
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
        let kept = self.blocks();
        let bound = if BLOCKS.in_use() > ALL_BLOCKS {
            SKIPPED_WHEN_SHORT
        } else {
            SKIPPED_BLOCKS
        };
        let mut excess = kept.saturating_sub(bound);
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
