//! Memory for keys: locked where the limits allow, left out of core dumps, overwritten when it is given back.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// A pool of slots of `N` bytes. It grows by whole chunks, up to the most that was ever used at once, and never shrinks.
pub struct Pool<const N: usize> {
    free: Mutex<Vec<&'static mut [u8; N]>>,
}

impl<const N: usize> Pool<N> {
    #[allow(clippy::new_without_default)] // a Default is not const
    pub const fn new() -> Self {
        Pool {
            free: Mutex::new(Vec::new()),
        }
    }

    /// Takes a slot, all zeros. The error is the kernel's: no memory.
    pub fn take(&'static self) -> io::Result<Secret<N>> {
        let mut free = self.lock();
        if free.is_empty() {
            grow(&mut free)?;
        }
        let bytes = free.pop().ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Secret {
            pool: self,
            bytes: Some(bytes),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Vec<&'static mut [u8; N]>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn grow<const N: usize>(free: &mut Vec<&'static mut [u8; N]>) -> io::Result<()> {
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
    free.reserve(CHUNK_BYTES / N);
    free.extend(
        memory
            .chunks_exact_mut(N)
            .filter_map(|slot| <&mut [u8; N]>::try_from(slot).ok()),
    );
    Ok(())
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
            self.pool.lock().push(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static POOL: Pool<96> = Pool::new();

    #[test]
    fn slots_come_back_as_zeros() {
        let mut slots: Vec<_> = (0..2 * CHUNK_BYTES / 96).map(|_| POOL.take().unwrap()).collect();
        for slot in &mut slots {
            assert_eq!(**slot, [0; 96]);
            slot.fill(7);
        }
        let there = POOL.lock().len();
        let count = slots.len();
        drop(slots);
        assert_eq!(POOL.lock().len(), there + count);
        assert_eq!(*POOL.take().unwrap(), [0; 96]);
        let (locked, unlocked) = memory();
        assert!(locked + unlocked >= 2 * CHUNK_BYTES);
    }
}
