//! Memory for keys: locked where the limits allow, left out of core dumps, overwritten when it is given back.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, TryLockError};

use memmap2::{Advice, MmapMut};
use zeroize::Zeroize;

/// Bytes that are asked of the kernel at a time.
const CHUNK_BYTES: usize = 256 << 10;

static LOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);
static UNLOCKED_BYTES: AtomicUsize = AtomicUsize::new(0);

/// How much key memory there is: locked, and not locked because RLIMIT_MEMLOCK does not allow it (getrlimit(2)). Bytes.
pub fn memory() -> (usize, usize) {
    (
        LOCKED_BYTES.load(Ordering::Relaxed),
        UNLOCKED_BYTES.load(Ordering::Relaxed),
    )
}

type Slots<const N: usize> = Vec<&'static mut [u8; N]>;

/// Parts of a pool: more than there are threads at it at once.
const PARTS: usize = 8;

/// How often all parts are looked through before the pool grows: a thread that runs has given its part back by then.
const LOOKS: usize = 64;

/// A pool of slots of `N` bytes. It grows by whole chunks, up to about the most that was ever used at once, and never shrinks.
///
/// Nobody waits here: a part that another thread has, which may not be running, is passed over.
pub struct Pool<const N: usize> {
    parts: [Mutex<Slots<N>>; PARTS],
    in_use: AtomicUsize,
}

impl<const N: usize> Pool<N> {
    #[allow(clippy::new_without_default)] // a Default is not const
    pub const fn new() -> Self {
        Pool {
            parts: [const { Mutex::new(Vec::new()) }; PARTS],
            in_use: AtomicUsize::new(0),
        }
    }

    /// Takes a slot, all zeros. The error is the kernel's: no memory.
    pub fn take(&'static self) -> io::Result<Secret<N>> {
        let mut found = None;
        for _ in 0..LOOKS {
            found = self.free_parts().find_map(|mut part| part.pop());
            if found.is_some() {
                break;
            }
            std::hint::spin_loop();
        }
        let bytes = match found {
            Some(bytes) => bytes,
            None => self.grow()?,
        };
        self.in_use.fetch_add(1, Ordering::Relaxed);
        Ok(Secret {
            pool: self,
            bytes: Some(bytes),
        })
    }

    /// How many slots are in use.
    pub fn in_use(&self) -> usize {
        self.in_use.load(Ordering::Relaxed)
    }

    fn free_parts(&self) -> impl Iterator<Item = MutexGuard<'_, Slots<N>>> {
        self.parts.iter().filter_map(|part| match part.try_lock() {
            Ok(slots) => Some(slots),
            Err(TryLockError::Poisoned(error)) => Some(error.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        })
    }

    /// Calls `put` with a part that no other thread has at the moment.
    fn with_part<T>(&self, put: impl FnOnce(&mut Slots<N>) -> T) -> T {
        loop {
            if let Some(mut part) = self.free_parts().next() {
                return put(&mut part);
            }
            std::hint::spin_loop();
        }
    }

    fn grow(&self) -> io::Result<&'static mut [u8; N]> {
        let map = MmapMut::map_anon(CHUNK_BYTES)?;
        // Both are best effort: an old kernel or a low limit must not stop the service. What is not locked is counted.
        let _ = map.advise(Advice::DontDump);
        let counter = if map.lock().is_ok() {
            &LOCKED_BYTES
        } else {
            &UNLOCKED_BYTES
        };
        counter.fetch_add(CHUNK_BYTES, Ordering::Relaxed);
        let memory: &'static mut MmapMut = Box::leak(Box::new(map));
        let mut slots = memory
            .chunks_exact_mut(N)
            .filter_map(|slot| <&mut [u8; N]>::try_from(slot).ok());
        let first = slots.next().ok_or(io::ErrorKind::OutOfMemory)?;
        self.with_part(|part| part.extend(slots));
        Ok(first)
    }
}

/// A slot in use. Dropping it overwrites it and gives it back.
pub struct Secret<const N: usize> {
    pool: &'static Pool<N>,
    bytes: Option<&'static mut [u8; N]>,
}

impl<const N: usize> Deref for Secret<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        self.bytes.as_ref().expect("a slot is there until it is dropped")
    }
}

impl<const N: usize> DerefMut for Secret<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        self.bytes.as_mut().expect("a slot is there until it is dropped")
    }
}

impl<const N: usize> Drop for Secret<N> {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            bytes.zeroize();
            self.pool.with_part(|part| part.push(bytes));
            self.pool.in_use.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static POOL: Pool<96> = Pool::new();

    fn free() -> usize {
        POOL.free_parts().map(|part| part.len()).sum()
    }

    #[test]
    fn slots_come_back_as_zeros() {
        let mut slots: Vec<_> = (0..2 * CHUNK_BYTES / 96).map(|_| POOL.take().unwrap()).collect();
        for slot in &mut slots {
            assert_eq!(**slot, [0; 96]);
            slot.fill(7);
        }
        let there = free();
        let count = slots.len();
        drop(slots);
        assert_eq!(free(), there + count);
        assert_eq!(*POOL.take().unwrap(), [0; 96]);
        let (locked, unlocked) = memory();
        assert!(locked + unlocked >= 2 * CHUNK_BYTES);
    }

    static BUSY: Pool<64> = Pool::new();

    #[test]
    fn nobody_waits_for_a_thread_that_stands_still() {
        let first = BUSY.take().unwrap();
        let held = BUSY.parts[0].try_lock().unwrap();
        drop(first);
        drop((BUSY.take().unwrap(), BUSY.take().unwrap()));
        drop(held);
        assert_eq!(BUSY.free_parts().count(), PARTS);
    }
}
