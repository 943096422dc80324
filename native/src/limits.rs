//! Bounds of our own choosing; the reasons are in pqtun/protocol/limits.py and pqtun/pump/limits.py, and a test holds
//! both lists together.

pub const RECEIVE_WINDOW: u64 = 1 << 16;
pub const SKIPPED_BLOCKS: usize = 4096 / 18 + 2;
/// Blocks of packet keys of all tunnels together, 75 MB. When there are more, a tunnel that derives new ones keeps only
/// so many: one for each epoch, as if no packet were ever late. What hostile peers hoard so costs the others no memory.
pub const ALL_BLOCKS: usize = 1 << 17;
pub const SKIPPED_WHEN_SHORT: usize = 5;
pub const EPOCHS_AHEAD: usize = 4;
pub const BLOCKS_AHEAD: u32 = 16;
pub const AHEAD_BUDGET: f64 = 200_000.0;
pub const FORGED_PRICE: f64 = 10.0;

/// Bytes to an address at which the peer was not shown to be reached, and a second's.
pub const UNCONFIRMED_BYTES: f64 = 262_144.0;
pub const UNCONFIRMED_RATE: f64 = 25_600.0;
/// What comes from there allows so many times as much.
pub const UNCONFIRMED_FACTOR: u64 = 3;
/// Control packets of a tunnel that are reported, a second's and at once.
pub const CONTROL_RATE: f64 = 100.0;
pub const CONTROL_BURST: f64 = 200.0;

pub const HELD_PACKETS_PER_PEER: usize = 256;
pub const HELD_SECONDS: f64 = 30.0;
pub const HELD_ADDRESSES: usize = 1024;
pub const HELD_PACKETS: usize = 4096;
pub const HELD_BYTES: usize = 8 << 20;

pub const EARLY_PACKETS: usize = 256;
pub const EARLY_PACKETS_PER_TUNNEL: usize = 64;
pub const EARLY_BYTES: usize = 256 << 10;
pub const EARLY_SECONDS: f64 = 1.0;

pub const QUEUED_DATAGRAMS: usize = 256;
pub const QUEUED_PEER_EVENTS: usize = 1024;
pub const DATAGRAM_BYTES: usize = 2048;
