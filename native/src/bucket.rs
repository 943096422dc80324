//! Token buckets.

/// Fills with time, up to a bound that the caller gives with the rate.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    left: f64,
    since: f64,
}

impl Bucket {
    pub fn new(left: f64, now: f64) -> Self {
        Bucket { left, since: now }
    }

    /// Takes so much, if it is there. `rate` is a second's, `most` what the bucket holds.
    pub fn take(&mut self, amount: f64, rate: f64, most: f64, now: f64) -> bool {
        let enough = self.holds(amount, rate, most, now);
        if enough {
            self.left -= amount;
        }
        enough
    }

    /// Whether so much is there.
    pub fn holds(&mut self, amount: f64, rate: f64, most: f64, now: f64) -> bool {
        self.left = most.min(self.left + (now - self.since).max(0.0) * rate);
        self.since = self.since.max(now);
        self.left >= amount
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_fills_with_time_up_to_its_bound() {
        let mut bucket = Bucket::new(2.0, 10.0);
        let mut take = |now| bucket.take(1.0, 4.0, 2.0, now);
        assert_eq!([take(10.0), take(10.0), take(10.0)], [true, true, false]);
        assert_eq!([take(10.125), take(10.25), take(10.25)], [false, true, false]);
        assert!(!take(9.0), "a clock that is behind gives nothing");
        assert!(!take(10.25));
        assert_eq!([take(99.0), take(99.0), take(99.0)], [true, true, false]);
    }
}
