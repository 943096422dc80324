use chacha20::cipher::{KeyIvInit, StreamCipher};
use ring::aead::{Aad, LessSafeKey, Nonce, Tag, UnboundKey, CHACHA20_POLY1305};
pub struct Cipher;
impl Default for Cipher {
    fn default() -> Self {
        Self::new()
    }
}
impl Cipher {
    pub fn new() -> Self {
        Cipher
    }
    pub fn seal(&mut self, key: &[u8; 32], ad: &[u8], text: &mut [u8], tag: &mut [u8; 16]) {
        let k = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
        let t = k
            .seal_in_place_separate_tag(Nonce::assume_unique_for_key([0; 12]), Aad::from(ad), text)
            .unwrap();
        tag.copy_from_slice(t.as_ref());
    }
    pub fn open(&mut self, key: &[u8; 32], ad: &[u8], text: &mut [u8], tag: &[u8; 16]) -> bool {
        let k = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).unwrap());
        k.open_in_place_separate_tag(
            Nonce::assume_unique_for_key([0; 12]),
            Aad::from(ad),
            Tag::from(*tag),
            text,
            0..,
        )
        .is_ok()
    }
    pub fn wipe(&mut self) {}
}
pub fn expand(key: &[u8; 32], out: &mut [u8]) {
    out.fill(0);
    chacha20::ChaCha20::new(key.into(), &[0u8; 12].into()).apply_keystream(out);
}
pub fn scrub_stack() {
    use zeroize::Zeroize;
    let mut a = [0u8; 16384];
    a.zeroize();
    std::hint::black_box(&a);
}
