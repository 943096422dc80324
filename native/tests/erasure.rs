//! After `wipe` and `scrub_stack` no key of a sealed or opened packet is left in the memory of the process.
//!
//! A file of its own, with one test, so that nothing else runs in the process that is searched.
#![cfg(not(feature = "null-cipher"))]

use std::collections::HashMap;
use std::fs::{read_to_string, File};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::channel;

use _native::crypto::{expand, scrub_stack, Cipher};
use zeroize::Zeroize;

/// What is looked for is kept only in this disguise, so that a search does not find itself.
const DISGUISE: u64 = 0x9e37_79b9_7f4a_7c15;
const PACKETS: usize = 18;
const LENGTHS: [usize; 8] = [0, 1, 64, 192, 193, 600, 1200, 1439];
const CHUNK: usize = 1 << 16;

type Key = [u8; 32];

/// Eight bytes of a secret, disguised, and which secret.
struct Wanted {
    names: HashMap<u64, String>,
    /// Whether any of them begins like that.
    beginnings: Vec<bool>,
}

fn disguise(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap()) ^ DISGUISE
}

fn random(bytes: &mut [u8]) {
    File::open("/dev/urandom").unwrap().read_exact_at(bytes, 0).unwrap();
}

impl Wanted {
    fn new() -> Self {
        Wanted {
            names: HashMap::new(),
            beginnings: vec![false; 1 << 16],
        }
    }

    fn add(&mut self, disguised: u64, name: String) {
        self.beginnings[usize::from(disguised as u16)] = true;
        self.names.insert(disguised, name);
    }

    /// A secret: its quarters (halves of a Poly1305 key), and each of its words twice in a row, as vector code holds it.
    fn add_secret(&mut self, name: &str, secret: &[u8]) {
        for piece in secret.chunks(8) {
            self.add(disguise(piece), format!("{name}, eight bytes"));
        }
        for word in secret.chunks(4) {
            let mut twice = [0; 8];
            twice[..4].copy_from_slice(word);
            twice[4..].copy_from_slice(word);
            self.add(disguise(&twice), format!("{name}, a word as vector"));
            twice.zeroize();
        }
    }

    /// A key, and the one-time Poly1305 key that comes of it: as it is, and with r clamped (RFC 8439, section 2.5).
    fn add_key(&mut self, number: usize, key: &Key) {
        self.add_secret(&format!("key {number}"), key);
        let mut once = Key::default();
        expand(key, &mut once);
        self.add_secret(&format!("one-time key {number}"), &once);
        for (at, byte) in once[..16].iter_mut().enumerate() {
            *byte &= match at {
                3 | 7 | 11 | 15 => 15,
                4 | 8 | 12 => 252,
                _ => 255,
            };
        }
        self.add_secret(&format!("clamped one-time key {number}"), &once[..16]);
        once.zeroize();
    }

    /// Searches all memory of this process that can be read, but for the chunk read into; says what was found where.
    fn search(&self) -> Vec<String> {
        let memory = File::open("/proc/self/mem").unwrap();
        let mut chunk = vec![0u8; CHUNK + 7];
        let own = chunk.as_ptr() as u64..chunk.as_ptr() as u64 + chunk.len() as u64;
        let mut found = Vec::new();
        let mut searched = 0;
        for line in read_to_string("/proc/self/maps").unwrap().lines() {
            let mut words = line.split_whitespace();
            let (range, flags) = (words.next().unwrap(), words.next().unwrap());
            let place = words.nth(3).unwrap_or("anonymous");
            if !flags.starts_with('r') {
                continue;
            }
            let (start, end) = range.split_once('-').unwrap();
            let (start, end) = (
                u64::from_str_radix(start, 16).unwrap(),
                u64::from_str_radix(end, 16).unwrap(),
            );
            for at in (start..end).step_by(CHUNK) {
                let length = (CHUNK + 7).min((end - at) as usize);
                // Neither the kernel's own pages nor what lies beyond the end of a file can be read.
                if memory.read_exact_at(&mut chunk[..length], at).is_err() {
                    continue;
                }
                searched += length;
                for (offset, window) in chunk[..length].windows(8).enumerate() {
                    let disguised = disguise(window);
                    if self.beginnings[usize::from(disguised as u16)] && !own.contains(&(at + offset as u64)) {
                        if let Some(name) = self.names.get(&disguised) {
                            found.push(format!("{name} at {:x} in {place}", at + offset as u64));
                        }
                    }
                }
                chunk.fill(0);
            }
        }
        assert!(searched > 1 << 20);
        found
    }
}

/// What the caller has of a tunnel: the chain key, then what it expands to, a chain key again and packet keys.
type Keys = [Key; 2 + PACKETS];

fn derive(keys: &mut Keys) {
    let (chain, block) = keys.split_at_mut(1);
    expand(&chain[0], block.as_flattened_mut());
}

/// Seals with every packet key, in both ways; opens half of them again, one in four of those forged.
fn use_keys(cipher: &mut Cipher, keys: &[Key], text: &mut [u8]) {
    for (number, key) in keys.iter().enumerate() {
        let text = &mut text[..LENGTHS[number % LENGTHS.len()]];
        let mut tag = [0; 16];
        if number % 4 == 0 {
            cipher.seal_as(key, &[0; 12], &[5; 40], text, &mut tag);
        } else {
            cipher.seal(key, &[5; 40], text, &mut tag);
        }
        if number % 2 == 1 {
            let forged = number % 8 == 7;
            tag[0] ^= u8::from(forged);
            assert_eq!(cipher.open(key, &[5; 40], text, &tag), !forged);
        }
    }
}

/// A random chain key, and all that is to be searched for. Never inlined, for its stack is scrubbed by the caller.
#[inline(never)]
fn prepare() -> (Box<Keys>, Wanted) {
    let mut wanted = Wanted::new();
    let mut keys = Box::new(Keys::default());
    random(&mut keys[0]);
    derive(&mut keys);
    for (number, key) in keys.iter().enumerate() {
        wanted.add_key(number, key);
    }
    for key in &mut keys[1..] {
        key.zeroize();
    }
    (keys, wanted)
}

#[test]
fn no_key_is_left_in_memory() {
    let (keys, wanted) = prepare();
    scrub_stack();

    let (to_thread, from_test) = channel::<Box<Keys>>();
    let (to_test, from_thread) = channel();
    let (finish, finished) = channel::<()>();
    let thread = std::thread::spawn(move || {
        let mut keys = from_test.recv().unwrap();
        let mut cipher = Cipher::new();
        let mut text = vec![3; 1500];
        derive(&mut keys);
        use_keys(&mut cipher, &keys[2..], &mut text);
        to_test.send("live").unwrap();
        finished.recv().unwrap();
        keys.as_flattened_mut().zeroize();
        cipher.wipe();
        scrub_stack();
        to_test.send("gone").unwrap();
        finished.recv().unwrap();
    });
    to_thread.send(keys).unwrap();

    assert_eq!(from_thread.recv().unwrap(), "live");
    let live = wanted.search();
    for number in 0..2 + PACKETS {
        assert!(
            live.iter().any(|found| found.starts_with(&format!("key {number},"))),
            "key {number} is not found"
        );
    }
    finish.send(()).unwrap();
    assert_eq!(from_thread.recv().unwrap(), "gone");
    assert_eq!(wanted.search(), Vec::<String>::new());
    finish.send(()).unwrap();
    thread.join().unwrap();
}
