//! Cookies: a tunnel's state that the server hands to the client, sealed (doc/protocol.md section 7).

use crate::crypto::{Cipher, NONCE_LEN};
use crate::schedule::{Key, ReceiveSchedule, Refused, SendSchedule, KEY, LAST_EPOCH};
use crate::tunnel::{Tid, COOKIE, COOKIE_PREFIX, TAG, TID};

const STAMP: usize = 8;
const NONCE_AT: usize = COOKIE_PREFIX.len() + STAMP;
const STATE_AT: usize = NONCE_AT + NONCE_LEN;
/// tid, epoch (4 bytes), both roots
const STATE: usize = TID + 4 + 2 * KEY;
const _: () = assert!(STATE_AT + STATE + TAG == COOKIE);

/// What a cookie is sealed with. Key and nonce together are used once.
pub struct Sealing<'a> {
    pub key: &'a Key,
    pub nonce: &'a [u8; NONCE_LEN],
    /// Seconds.
    pub timestamp: u64,
}

impl Sealing<'_> {
    /// Writes the cookie of a tunnel whose sending side is in the epoch of now, and not behind the receiving one. The
    /// roots in it are those of the epoch after that.
    ///
    /// Refused: "dead", "epoch_end".
    pub fn write(
        &self,
        tid: &Tid,
        send: &SendSchedule,
        receive: &ReceiveSchedule,
        cipher: &mut Cipher,
        out: &mut [u8; COOKIE],
    ) -> Result<(), Refused> {
        if receive.dead() {
            return Err("dead");
        }
        if send.epoch == LAST_EPOCH {
            return Err("epoch_end");
        }
        out[..COOKIE_PREFIX.len()].copy_from_slice(COOKIE_PREFIX);
        let stamp = self.timestamp.to_be_bytes();
        out[COOKIE_PREFIX.len()..NONCE_AT].copy_from_slice(&stamp);
        out[NONCE_AT..STATE_AT].copy_from_slice(self.nonce);
        let (state, tag) = out[STATE_AT..].split_at_mut(STATE);
        let (name, roots) = state.split_at_mut(TID + 4);
        name[..TID].copy_from_slice(tid);
        name[TID..].copy_from_slice(&u32::from(send.epoch).to_be_bytes());
        let (send_root, receive_root) = roots.split_at_mut(KEY);
        send_root.copy_from_slice(send.next_root());
        receive.root_of(send.epoch + 1, receive_root);
        // In place: nothing else ever holds the roots.
        let tag = tag.try_into().expect("what is left has the length of a tag");
        cipher.seal_as(self.key, self.nonce, &stamp, state, tag);
        Ok(())
    }
}
