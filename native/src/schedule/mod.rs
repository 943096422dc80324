//! The key schedule of one direction: a chain of epochs, each a chain of packet keys (doc/protocol.md section 6).
//!
//! The same as pqtun/protocol/schedule.py, and held to it by tests. The receiving side follows one rule: what a packet
//! asks for is derived on a copy, and the copy is kept only once the packet has authenticated.

mod receive;
mod send;
#[cfg(test)]
mod tests;

pub use receive::ReceiveSchedule;
pub use send::SendSchedule;

pub use crate::crypto::KEY;
use crate::secret::{Pool, Secret};

pub const KEYS_PER_BLOCK: usize = 18;
pub const BLOCK: usize = KEYS_PER_BLOCK * KEY;
pub const EPOCH_SECONDS: f64 = 30.0;
pub const EPOCH_LIFETIME: f64 = 120.0;
pub const MAX_EPOCHS: usize = 5;
pub const LAST_EPOCH: u16 = u16::MAX;

/// What a call expects of the caller's own memory: room for one chain key and one block of packet keys.
pub type Work = Secret<{ KEY + BLOCK }>;

static WORK: Pool<{ KEY + BLOCK }> = Pool::new();

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
