//! Counters of what was dropped, by reason.

use std::io;

/// A reason in one word; where a system call failed also its error number (errno(3)), else 0.
pub type Reason = (&'static str, i32);

/// A handful of counters. It allocates only when a reason is seen for the first time.
#[derive(Default)]
pub struct Drops(Vec<(Reason, u64)>);

impl Drops {
    pub const fn new() -> Self {
        Drops(Vec::new())
    }

    pub fn count(&mut self, reason: &'static str) {
        self.add((reason, 0), 1);
    }

    pub fn count_error(&mut self, reason: &'static str, error: &io::Error) {
        self.add((reason, error.raw_os_error().unwrap_or(0)), 1);
    }

    pub fn add(&mut self, reason: Reason, count: u64) {
        match self.0.iter_mut().find(|(known, _)| *known == reason) {
            Some((_, total)) => *total += count,
            None => self.0.push((reason, count)),
        }
    }

    pub fn merge(&mut self, other: &Drops) {
        for (reason, count) in &other.0 {
            self.add(*reason, *count);
        }
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn clear(&mut self) {
        self.0.clear();
    }

    pub fn iter(&self) -> impl Iterator<Item = &(Reason, u64)> {
        self.0.iter()
    }
}
