//! One's-complement sums (RFC 1071), as 16-bit words and as remainders modulo 65535.
//!
//! A sum here is a `u64` that is congruent, modulo 65535, to the sum of the 16-bit big-endian words. To subtract a word,
//! its complement is added. A remainder 0 stands for the sum 0xffff, because no header is all zeros.

/// Returns the sum of the 16-bit big-endian words of `data`, at most 0xffff; an odd last byte is padded with 0.
///
/// The words are added as they lie in memory, 32 bits at a time in lanes of 64, and turned round at the end: the sum
/// does not depend on the byte order (RFC 1071 section 2), and lanes do not overflow below 16 GB.
#[inline]
pub fn sum(data: &[u8]) -> u64 {
    let mut lanes = [0u64; 16];
    let mut blocks = data.chunks_exact(64);
    for block in &mut blocks {
        for (lane, bytes) in lanes.iter_mut().zip(block.chunks_exact(4)) {
            *lane += u64::from(native(bytes));
        }
    }
    let mut total: u64 = lanes.iter().sum();
    let mut words = blocks.remainder().chunks_exact(4);
    for bytes in &mut words {
        total += u64::from(native(bytes));
    }
    let mut last = [0u8; 4];
    for (place, byte) in last.iter_mut().zip(words.remainder()) {
        *place = *byte;
    }
    total += u64::from(u32::from_ne_bytes(last));
    u64::from(u16::from_be(fold(total)))
}

#[inline(always)]
fn native(bytes: &[u8]) -> u32 {
    match *bytes {
        [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// Folds a sum to 16 bits: 0 only for 0, otherwise 1 to 0xffff.
#[inline]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF_FFFF) + (sum >> 32);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    let sum = (sum & 0xFFFF) + (sum >> 16);
    ((sum & 0xFFFF) + (sum >> 16)) as u16
}

/// Returns the checksum for what has this sum, its field counted as 0: never 0xffff.
#[inline]
pub fn complement(sum: u64) -> u16 {
    remainder(u64::from(!fold(sum)))
}

/// Returns the sum modulo 65535: never 0xffff.
#[inline]
pub fn remainder(sum: u64) -> u16 {
    match fold(sum) {
        0xFFFF => 0,
        folded => folded,
    }
}

/// What to add in order to subtract a word from a sum.
#[inline]
pub fn minus(word: u16) -> u64 {
    u64::from(!word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn slow(data: &[u8]) -> u64 {
        data.chunks(2)
            .map(|pair| u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0)))
            .sum()
    }

    proptest! {
        #[test]
        fn sum_is_the_sum_of_words(data in prop::collection::vec(any::<u8>(), 0..700), skip in 0usize..9) {
            let data = &data[skip.min(data.len())..];
            prop_assert_eq!(sum(data) % 65535, slow(data) % 65535);
            prop_assert_eq!(sum(data) == 0, data.iter().all(|&byte| byte == 0));
        }

        #[test]
        fn arithmetic_is_modulo_65535(value: u64, word: u16) {
            prop_assert_eq!(u64::from(remainder(value)), value % 65535);
            prop_assert_eq!((u64::from(complement(value)) + value % 65535) % 65535, 0);
            prop_assert_ne!(complement(value), 0xFFFF);
            prop_assert_eq!(fold(value) == 0, value == 0);
            prop_assert_eq!((minus(word) + u64::from(word)) % 65535, 0);
        }
    }

    #[test]
    fn corners() {
        for value in [0, 1, 0xFFFE, 0xFFFF, 0x10000, 0xFFFF_FFFF, u64::MAX, u64::MAX - 1] {
            assert_eq!(u64::from(remainder(value)), value % 65535);
        }
        assert_eq!(complement(0), 0);
        assert_eq!(complement(0xFFFF), 0);
        for size in 0..200 {
            assert_eq!(sum(&vec![0xFF; size]) % 65535, slow(&vec![0xFF; size]) % 65535);
        }
    }
}
