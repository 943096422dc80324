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

pub const UNCONFIRMED_BYTES: f64 = 262_144.0;
pub const UNCONFIRMED_RATE: f64 = 25_600.0;
pub const UNCONFIRMED_FACTOR: u64 = 3;
pub const UNCONFIRMED_PREFIX_BYTES: f64 = 2_097_152.0;
pub const UNCONFIRMED_PREFIX_RATE: f64 = 200_000.0;
pub const UNCONFIRMED_PREFIX_SLOTS: usize = 1 << 12;
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
pub const QUEUED_EVENTS_PER_TUNNEL: usize = 64;

pub const PREFIX_BURST_SECONDS: f64 = 2.0;
pub const ALL_BURST_SECONDS: f64 = 0.25;
pub const UNEXPECTED_SHARE: f64 = 0.25;
pub const IPV4_PREFIX_BYTES: usize = 3;
pub const IPV6_PREFIX_BYTES: usize = 7;
pub const PREFIX_SLOTS: usize = 1 << 16;
pub const EXPECTED_SECONDS: f64 = 120.0;
pub const HINTS_PER_SECOND: f64 = 10.0;

pub const LEAST_MTU: u32 = 576;
