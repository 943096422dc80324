//! Prefixes of outer addresses, which share the slots of tables of fixed size; and what may be sent to unconfirmed
//! endpoints of each, as pqtun/pump/budget.py.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::bucket::Bucket;
use crate::limits::{
    IPV4_PREFIX_BYTES, IPV6_PREFIX_BYTES, UNCONFIRMED_PREFIX_BYTES, UNCONFIRMED_PREFIX_RATE, UNCONFIRMED_PREFIX_SLOTS,
};

/// Says which slot a prefix has.
pub struct Slots {
    /// So that nobody can aim at another's slot.
    key: RandomState,
    count: usize,
}

impl Slots {
    pub fn new(count: usize) -> Self {
        Slots {
            key: RandomState::new(),
            count,
        }
    }

    pub fn of(&self, host: IpAddr) -> usize {
        let hash = match host {
            IpAddr::V4(ip) => self.key.hash_one(&ip.octets()[..IPV4_PREFIX_BYTES]),
            IpAddr::V6(ip) => self.key.hash_one(&ip.octets()[..IPV6_PREFIX_BYTES]),
        };
        hash as usize % self.count
    }
}

/// Bytes that all tunnels together may send to unconfirmed endpoints of a prefix, whatever comes from there.
pub struct Unconfirmed {
    slots: Slots,
    buckets: Mutex<Box<[Bucket]>>,
}

impl Unconfirmed {
    pub fn new(now: f64) -> Self {
        let bucket = Bucket::new(UNCONFIRMED_PREFIX_BYTES, now);
        Unconfirmed {
            slots: Slots::new(UNCONFIRMED_PREFIX_SLOTS),
            buckets: Mutex::new(vec![bucket; UNCONFIRMED_PREFIX_SLOTS].into_boxed_slice()),
        }
    }

    /// Takes so much, if it is there.
    pub fn take(&self, host: IpAddr, bytes: f64, now: f64) -> bool {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        buckets[self.slots.of(host)].take(bytes, UNCONFIRMED_PREFIX_RATE, UNCONFIRMED_PREFIX_BYTES, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(prefixes: &Unconfirmed, host: &str, now: f64) -> f64 {
        let host = host.parse().unwrap();
        (0..).take_while(|_| prefixes.take(host, 1024.0, now)).count() as f64 * 1024.0
    }

    #[test]
    fn hosts_of_a_prefix_share_what_it_has() {
        // Two prefixes rarely share a slot of one table, and hardly ever of several.
        let other = |near, far| {
            let prefixes = Unconfirmed::new(0.0);
            assert_eq!(taken(&prefixes, near, 0.0), UNCONFIRMED_PREFIX_BYTES);
            taken(&prefixes, far, 0.0)
        };
        let most = |near, far| (0..4).map(|_| other(near, far)).fold(0.0, f64::max);
        assert_eq!(most("192.0.2.1", "192.0.2.255"), 0.0);
        assert_eq!(most("192.0.2.1", "192.0.3.1"), UNCONFIRMED_PREFIX_BYTES);
        assert_eq!(most("2001:db8:0:ff::1", "2001:db8:0:1:2:3:4:5"), 0.0);
        assert_eq!(most("2001:db8:0:ff::1", "2001:db8:0:100::1"), UNCONFIRMED_PREFIX_BYTES);
    }

    #[test]
    fn a_prefix_gets_more_with_time() {
        let prefixes = Unconfirmed::new(0.0);
        taken(&prefixes, "192.0.2.1", 0.0);
        let second = taken(&prefixes, "192.0.2.1", 1.0);
        assert!(UNCONFIRMED_PREFIX_RATE - 1024.0 < second && second <= UNCONFIRMED_PREFIX_RATE);
        assert_eq!(taken(&prefixes, "192.0.2.1", 1e6), UNCONFIRMED_PREFIX_BYTES);
    }
}
