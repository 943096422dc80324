//! ChaCha20-Poly1305 and the ChaCha20 key derivation (doc/protocol.md section 1), each call with a key of its own.
//!
//! Why these libraries: doc/performance.md, "Which ChaCha20-Poly1305". Neither puts key material anywhere but on the stack
//! and in registers, so `wipe` and `scrub_stack` together are all that erasure takes; tests/erasure.rs holds them to it.
//! What takes a key is never inlined: its stack would else be part of the caller's, above what `scrub_stack` can reach.

use std::hint::black_box;

use chacha20::cipher::{KeyIvInit, StreamCipher};
use chacha20::ChaCha20;
pub use ring::aead::NONCE_LEN;
use ring::aead::{Aad, LessSafeKey, Nonce, Tag, UnboundKey, CHACHA20_POLY1305};

pub const KEY: usize = 32;
pub const TAG: usize = 16;

/// Keys are used once, so the nonce need not change.
const NONCE: [u8; NONCE_LEN] = [0; NONCE_LEN];
/// Bytes of stack that `scrub_stack` overwrites. The libraries go 1 KB deep, 3 KB without optimisation.
const SCRUBBED: usize = 16384;
/// Expanding to so many bytes takes all the ways through the library: with all its vectors, then as for a block of keys.
const EVERY_REGISTER: usize = 1024 + 19 * KEY;

/// Seals and opens packets, each with a key that is used for nothing else. One for each thread.
#[derive(Default)]
pub struct Cipher {
    used: bool,
}

impl Cipher {
    pub fn new() -> Self {
        Self::default()
    }

    /// Encrypts `text` in place and makes its tag, over `ad` too (RFC 8439, a nonce of zeros).
    #[inline(never)]
    pub fn seal(&mut self, key: &[u8; KEY], ad: &[u8], text: &mut [u8], tag: &mut [u8; TAG]) {
        if cfg!(feature = "null-cipher") {
            tag.fill(0);
            return;
        }
        self.used = true;
        let made = keyed(key).seal_in_place_separate_tag(Nonce::assume_unique_for_key(NONCE), Aad::from(ad), text);
        // The only refusal is of a text beyond 256 GB.
        tag.copy_from_slice(made.expect("a text of packet size").as_ref());
    }

    /// The same with a nonce, for a key that is used more than once.
    #[inline(never)]
    pub fn seal_as(
        &mut self,
        key: &[u8; KEY],
        nonce: &[u8; NONCE_LEN],
        ad: &[u8],
        text: &mut [u8],
        tag: &mut [u8; TAG],
    ) {
        self.used = true;
        let made = keyed(key).seal_in_place_separate_tag(Nonce::assume_unique_for_key(*nonce), Aad::from(ad), text);
        tag.copy_from_slice(made.expect("a text of packet size").as_ref());
    }

    /// Decrypts `text` in place. False: not sealed with this key, `ad` and `tag`; `text` then holds nothing of use.
    #[inline(never)]
    #[must_use]
    pub fn open(&mut self, key: &[u8; KEY], ad: &[u8], text: &mut [u8], tag: &[u8; TAG]) -> bool {
        if cfg!(feature = "null-cipher") {
            return true;
        }
        self.used = true;
        let nonce = Nonce::assume_unique_for_key(NONCE);
        keyed(key)
            .open_in_place_separate_tag(nonce, Aad::from(ad), Tag::from(*tag), text, 0..)
            .is_ok()
    }

    /// Takes the last packet's key out of the vector registers, by sealing with a key of zeros; costs about 0.2 µs.
    ///
    /// What is left on the stack is for `scrub_stack`.
    pub fn wipe(&mut self) {
        if self.used {
            self.seal(&[0; KEY], &[], &mut [0; TAG], &mut [0; TAG]);
            self.used = false;
        }
    }
}

fn keyed(key: &[u8; KEY]) -> LessSafeKey {
    LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).expect("a key of 32 bytes"))
}

/// Fills `out` with the ChaCha20 keystream of `key`, nonce 0, from counter 0: `KDF(n, key, "")`, for any n.
#[inline(never)]
pub fn expand(key: &[u8; KEY], out: &mut [u8]) {
    out.fill(0);
    ChaCha20::new(key.into(), &NONCE.into()).apply_keystream(out);
}

/// Overwrites 16 KB of the stack below the caller, where functions that have returned may have left keys, after the vector
/// registers. What stays in those is on a stack sooner or later: the dynamic linker alone saves them all there.
#[inline(never)]
pub fn scrub_stack() {
    expand(&[0; KEY], &mut [0; EVERY_REGISTER]);
    overwrite_stack();
}

#[inline(never)]
fn overwrite_stack() {
    let mut below = black_box([0u8; SCRUBBED]);
    // Keys are copied through registers that the cipher does not use (zmm16 and up, in the C library's memcpy), and through
    // which of them depends on the length.
    for length in black_box([16, 32, 64, 128, 256, 512, 1024, 4096]) {
        below.copy_within(..length, SCRUBBED / 2);
    }
    black_box(&mut below);
}

#[cfg(all(test, not(feature = "null-cipher")))]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn vectors(name: &str) -> Value {
        let path = format!("{}/../tests/vectors/{name}", env!("CARGO_MANIFEST_DIR"));
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn bytes(hex: &Value) -> Vec<u8> {
        let hex = hex.as_str().unwrap();
        (0..hex.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
            .collect()
    }

    fn key(hex: &Value) -> [u8; KEY] {
        bytes(hex).try_into().unwrap()
    }

    #[test]
    fn aead_known_answers() {
        let mut cipher = Cipher::new();
        let cases = vectors("aead.json");
        for case in cases.as_array().unwrap() {
            let (key, ad, plain) = (key(&case["key"]), bytes(&case["ad"]), bytes(&case["plaintext"]));
            let mut text = plain.clone();
            let mut tag = [0; TAG];
            cipher.seal(&key, &ad, &mut text, &mut tag);
            assert_eq!(text, bytes(&case["ciphertext"]));
            assert_eq!(tag[..], bytes(&case["tag"]));
            assert!(cipher.open(&key, &ad, &mut text, &tag));
            assert_eq!(text, plain);
            cipher.wipe();
        }
        assert_eq!(cases.as_array().unwrap().len(), 8);
    }

    #[test]
    fn kdf_known_answers() {
        let mut tried = 0;
        for case in vectors("kdf.json")["kdf"].as_array().unwrap() {
            if case["input"] != "" {
                continue;
            }
            let expected: Vec<u8> = case["out"].as_array().unwrap().iter().flat_map(bytes).collect();
            let mut out = vec![0xff; expected.len()];
            expand(&key(&case["key"]), &mut out);
            assert_eq!(out, expected);
            tried += 1;
        }
        assert_eq!(tried, 4);
    }

    /// RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce of zeros, counters 0 and 1.
    #[test]
    fn rfc_8439_keystream() {
        let mut out = [0; 128];
        expand(&[0; KEY], &mut out);
        let expected = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7da41597c5157488d7724e03fb8d84a37\
                        6a43b8f41518a11cc387b669b2ee65869f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed\
                        29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f";
        assert_eq!(out[..], bytes(&Value::from(expected)));
    }

    /// RFC 8439 gives no AEAD vector with our nonce: section 2.8 put together from our keystream and Poly1305 in plain
    /// arithmetic modulo 2^130 - 5.
    #[test]
    fn rfc_8439_construction() {
        let key: [u8; KEY] = std::array::from_fn(|i| 0x80 + i as u8);
        for length in [0, 1, 15, 16, 17, 63, 64, 65, 191, 192, 193, 320, 321, 512, 1200, 1439] {
            let mut stream = vec![0; 64 + length];
            expand(&key, &mut stream);
            let ad: Vec<u8> = (0..40).collect();
            let sealed: Vec<u8> = stream[64..]
                .iter()
                .enumerate()
                .map(|(i, byte)| byte ^ (i % 251) as u8)
                .collect();
            let mut input = ad.clone();
            input.resize(48, 0);
            input.extend(&sealed);
            input.resize(input.len().next_multiple_of(16), 0);
            input.extend(40u64.to_le_bytes());
            input.extend((length as u64).to_le_bytes());

            let mut text: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let mut tag = [0; TAG];
            Cipher::new().seal(&key, &ad, &mut text, &mut tag);
            assert_eq!(text, sealed);
            assert_eq!(tag, poly1305(stream[..32].try_into().unwrap(), &input), "{length}");
        }
    }

    /// Numbers are 17 bytes, least first, one in each u32.
    fn poly1305(key: &[u8; 32], input: &[u8]) -> [u8; 16] {
        let mut r: [u32; 17] = std::array::from_fn(|i| if i < 16 { key[i].into() } else { 0 });
        [3, 7, 11, 15].iter().for_each(|i| r[*i] &= 15);
        [4, 8, 12].iter().for_each(|i| r[*i] &= 252);
        let mut sum = [0u32; 17];
        for block in input.chunks(16) {
            for (i, byte) in block.iter().chain(&[1]).enumerate() {
                sum[i] += u32::from(*byte);
            }
            // 2^136 is 64 * 5 modulo 2^130 - 5.
            let mut product = [0u32; 17];
            for (i, a) in sum.iter().enumerate() {
                for (j, b) in r.iter().enumerate() {
                    product[(i + j) % 17] += a * b * if i + j < 17 { 1 } else { 320 };
                }
            }
            sum = carried(carried(product));
        }
        // Less than 2^130 now; adding 5 reaches bit 130 if it is not less than the modulus.
        let mut more = sum;
        more[0] += 5;
        for i in 0..16 {
            more[i + 1] += more[i] >> 8;
            more[i] &= 255;
        }
        if more[16] >= 4 {
            sum = more;
        }
        let mut carry = 0;
        std::array::from_fn(|i| {
            carry += sum[i] + u32::from(key[16 + i]);
            let byte = carry as u8;
            carry >>= 8;
            byte
        })
    }

    fn carried(mut number: [u32; 17]) -> [u32; 17] {
        for i in 0..16 {
            number[i + 1] += number[i] >> 8;
            number[i] &= 255;
        }
        let high = number[16] >> 2;
        number[16] &= 3;
        number[0] += 5 * high;
        for i in 0..16 {
            number[i + 1] += number[i] >> 8;
            number[i] &= 255;
        }
        number
    }

    #[test]
    fn every_flipped_bit_is_refused() {
        let mut cipher = Cipher::new();
        for length in [0, 1, 64, 200] {
            let (key, ad) = ([7; KEY], [8; 40]);
            let mut sealed = vec![9; length];
            let mut tag = [0; TAG];
            cipher.seal(&key, &ad, &mut sealed, &mut tag);
            let whole = [&key[..], &ad, &sealed, &tag].concat();
            for bit in 0..whole.len() * 8 {
                let mut forged = whole.clone();
                forged[bit / 8] ^= 1 << (bit % 8);
                let (key, rest) = forged.split_first_chunk().unwrap();
                let (rest, tag) = rest.split_last_chunk().unwrap();
                let (ad, text) = rest.split_at(40);
                assert!(
                    !cipher.open(key, ad, &mut text.to_vec(), tag),
                    "{length} bytes, bit {bit}"
                );
            }
            assert!(cipher.open(&key, &ad, &mut sealed, &tag));
        }
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_and_nothing_else_does(
            key: [u8; KEY],
            ad in proptest::collection::vec(any::<u8>(), 0..64),
            plain in proptest::collection::vec(any::<u8>(), 0..2100),
            at: proptest::sample::Index,
            bit in 0..8u32,
        ) {
            let mut cipher = Cipher::new();
            let (mut text, mut tag) = (plain.clone(), [0; TAG]);
            cipher.seal(&key, &ad, &mut text, &mut tag);
            cipher.wipe();
            let mut whole = [&ad[..], &text, &tag].concat();
            prop_assert!(cipher.open(&key, &ad, &mut text, &tag));
            prop_assert_eq!(&text, &plain);

            let at = at.index(whole.len());
            whole[at] ^= 1u8 << bit;
            let (rest, tag) = whole.split_last_chunk().unwrap();
            let (ad, text) = rest.split_at(ad.len());
            prop_assert!(!cipher.open(&key, ad, &mut text.to_vec(), tag));
        }

        #[test]
        fn a_shorter_expansion_begins_the_longer_one(key: [u8; KEY], length in 0usize..700) {
            let (mut short, mut long) = (vec![1; length], [2; 700]);
            expand(&key, &mut short);
            expand(&key, &mut long);
            prop_assert_eq!(&short[..], &long[..length]);
        }
    }
}
