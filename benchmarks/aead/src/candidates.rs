//! ChaCha20-Poly1305 of several libraries behind one seam: nonce of twelve zero bytes, in place, a key for every call.

use std::ptr;

pub type Key = [u8; 32];
pub type Tag = [u8; 16];

pub trait Aead {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag);
    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool;
}

const NONCE: [u8; 12] = [0; 12];

pub struct Ring;

impl Ring {
    fn key(key: &Key) -> ring::aead::LessSafeKey {
        ring::aead::LessSafeKey::new(ring::aead::UnboundKey::new(&ring::aead::CHACHA20_POLY1305, key).unwrap())
    }
}

impl Aead for Ring {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        let nonce = ring::aead::Nonce::assume_unique_for_key(NONCE);
        let made = Self::key(key)
            .seal_in_place_separate_tag(nonce, ring::aead::Aad::from(ad), text)
            .unwrap();
        tag.copy_from_slice(made.as_ref());
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        let nonce = ring::aead::Nonce::assume_unique_for_key(NONCE);
        Self::key(key)
            .open_in_place_separate_tag(nonce, ring::aead::Aad::from(ad), ring::aead::Tag::from(*tag), text, 0..)
            .is_ok()
    }
}

pub struct AwsLc;

impl AwsLc {
    fn key(key: &Key) -> aws_lc_rs::aead::LessSafeKey {
        aws_lc_rs::aead::LessSafeKey::new(
            aws_lc_rs::aead::UnboundKey::new(&aws_lc_rs::aead::CHACHA20_POLY1305, key).unwrap(),
        )
    }
}

impl Aead for AwsLc {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(NONCE);
        let made = Self::key(key)
            .seal_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(ad), text)
            .unwrap();
        tag.copy_from_slice(made.as_ref());
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        let nonce = aws_lc_rs::aead::Nonce::assume_unique_for_key(NONCE);
        Self::key(key)
            .open_in_place_separate_tag(nonce, aws_lc_rs::aead::Aad::from(ad), tag, text)
            .is_ok()
    }
}

/// The EVP interface, one context for each direction, reused; the cipher is fetched once.
pub struct OpenSsl {
    seal: openssl::cipher_ctx::CipherCtx,
    open: openssl::cipher_ctx::CipherCtx,
}

impl OpenSsl {
    pub fn new() -> Self {
        let cipher = openssl::cipher::Cipher::fetch(None, "ChaCha20-Poly1305", None).unwrap();
        let mut seal = openssl::cipher_ctx::CipherCtx::new().unwrap();
        let mut open = openssl::cipher_ctx::CipherCtx::new().unwrap();
        seal.encrypt_init(Some(&cipher), None, None).unwrap();
        open.decrypt_init(Some(&cipher), None, None).unwrap();
        Self { seal, open }
    }
}

impl Aead for OpenSsl {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        self.seal.encrypt_init(None, Some(key), Some(&NONCE)).unwrap();
        self.seal.cipher_update(ad, None).unwrap();
        self.seal.cipher_update_inplace(text, text.len()).unwrap();
        self.seal.cipher_final(&mut []).unwrap();
        self.seal.tag(tag).unwrap();
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        self.open.decrypt_init(None, Some(key), Some(&NONCE)).unwrap();
        self.open.set_tag(tag).unwrap();
        self.open.cipher_update(ad, None).unwrap();
        self.open.cipher_update_inplace(text, text.len()).unwrap();
        self.open.cipher_final(&mut []).is_ok()
    }
}

/// RustCrypto's own composition.
pub struct RustCrypto;

impl Aead for RustCrypto {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        use chacha20poly1305::{AeadInOut, KeyInit};
        let made = chacha20poly1305::ChaCha20Poly1305::new(key.into())
            .encrypt_inout_detached(&NONCE.into(), ad, text.into())
            .unwrap();
        *tag = made.into();
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        use chacha20poly1305::{AeadInOut, KeyInit};
        chacha20poly1305::ChaCha20Poly1305::new(key.into())
            .decrypt_inout_detached(&NONCE.into(), ad, text.into(), tag.into())
            .is_ok()
    }
}

/// Poly1305 of RustCrypto over a ChaCha20 of another library: `first` is block 0, of which half is the one-time key.
fn authenticate(first: &[u8; 64], ad: &[u8], text: &[u8]) -> Tag {
    use poly1305::universal_hash::{KeyInit, UniversalHash};
    let mut mac = poly1305::Poly1305::new(first[..32].try_into().unwrap());
    mac.update_padded(ad);
    mac.update_padded(text);
    let mut lengths = [0u8; 16];
    lengths[..8].copy_from_slice(&(ad.len() as u64).to_le_bytes());
    lengths[8..].copy_from_slice(&(text.len() as u64).to_le_bytes());
    mac.update(&[lengths.into()]);
    mac.finalize().into()
}

/// EVP_chacha20 (64 zero bytes first, for the one-time key) and RustCrypto's Poly1305.
pub struct Mixed {
    stream: openssl::cipher_ctx::CipherCtx,
}

impl Mixed {
    pub fn new() -> Self {
        let cipher = openssl::cipher::Cipher::fetch(None, "ChaCha20", None).unwrap();
        let mut stream = openssl::cipher_ctx::CipherCtx::new().unwrap();
        stream.encrypt_init(Some(&cipher), None, None).unwrap();
        Self { stream }
    }

    fn first(&mut self, key: &Key) -> [u8; 64] {
        let mut first = [0u8; 64];
        self.stream.encrypt_init(None, Some(key), Some(&[0; 16])).unwrap();
        self.stream.cipher_update_inplace(&mut first, 64).unwrap();
        first
    }
}

impl Aead for Mixed {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        let first = self.first(key);
        self.stream.cipher_update_inplace(text, text.len()).unwrap();
        *tag = authenticate(&first, ad, text);
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        let first = self.first(key);
        let good = openssl::memcmp::eq(&authenticate(&first, ad, text), tag);
        if good {
            self.stream.cipher_update_inplace(text, text.len()).unwrap();
        }
        good
    }
}

pub struct Graviola;

impl Aead for Graviola {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        graviola::aead::ChaCha20Poly1305::new(*key).encrypt(&NONCE, ad, text, tag);
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        graviola::aead::ChaCha20Poly1305::new(*key)
            .decrypt(&NONCE, ad, text, tag)
            .is_ok()
    }
}

pub struct Sodium;

impl Sodium {
    pub fn new() -> Self {
        // SAFETY: takes nothing, may be called at any time.
        assert!(unsafe { libsodium_sys::sodium_init() } >= 0);
        Self
    }

    pub fn version() -> String {
        // SAFETY: gives a string of static life that ends in zero.
        let version = unsafe { std::ffi::CStr::from_ptr(libsodium_sys::sodium_version_string()) };
        format!("libsodium {}", version.to_string_lossy())
    }
}

impl Aead for Sodium {
    fn seal(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &mut Tag) {
        let at = text.as_mut_ptr();
        // SAFETY: the pointers and lengths are those of live slices; in place is allowed.
        unsafe {
            libsodium_sys::crypto_aead_chacha20poly1305_ietf_encrypt_detached(
                at,
                tag.as_mut_ptr(),
                ptr::null_mut(),
                at,
                text.len() as u64,
                ad.as_ptr(),
                ad.len() as u64,
                ptr::null(),
                NONCE.as_ptr(),
                key.as_ptr(),
            );
        }
    }

    fn open(&mut self, key: &Key, ad: &[u8], text: &mut [u8], tag: &Tag) -> bool {
        let at = text.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            libsodium_sys::crypto_aead_chacha20poly1305_ietf_decrypt_detached(
                at,
                ptr::null_mut(),
                at,
                text.len() as u64,
                tag.as_ptr(),
                ad.as_ptr(),
                ad.len() as u64,
                NONCE.as_ptr(),
                key.as_ptr(),
            ) == 0
        }
    }
}
