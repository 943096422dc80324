//! The native packet engine of pqtun: moves packets between TUN queues and UDP sockets, on threads of its own.

pub mod admission;
pub mod bucket;
pub mod clock;
pub mod cookie;
pub mod crypto;
pub mod drops;
pub mod engine;
pub mod events;
pub mod lane;
pub mod limits;
pub mod offload;
pub mod packet;
pub mod prefixes;
pub mod receiver;
pub mod schedule;
pub mod secret;
pub mod sender;
pub mod shared;
pub mod sys;
pub mod table;
pub mod tunnel;
pub mod waiting;
pub mod worker;

#[cfg(feature = "python")]
mod python;
