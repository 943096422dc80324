//! Seconds on a clock that counts sleep and never goes back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use rustix::time::{clock_gettime, ClockId};

#[derive(Clone)]
pub enum Clock {
    /// CLOCK_BOOTTIME (clock_gettime(2)), so many times as fast: 1, but in tests of what takes minutes.
    Boottime(f64),
    /// For tests: the bits of what somebody has set.
    Manual(Arc<AtomicU64>),
}

impl Clock {
    pub fn now(&self) -> f64 {
        match self {
            Clock::Boottime(scale) => {
                let time = clock_gettime(ClockId::Boottime);
                (time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9) * scale
            }
            Clock::Manual(bits) => f64::from_bits(bits.load(Ordering::Acquire)),
        }
    }
}
