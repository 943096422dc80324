//! ChaCha20-Poly1305 with a fresh key for every packet: what each library takes.
//!
//! `aead-benchmark [FILE.json]` prints a table of nanoseconds a packet, for sealing and for opening, and writes it. Every
//! figure is the least of many short runs, so that other work on the machine does not count. It needs pkg-config and
//! libssl-dev, or `--features vendored` and perl: then OpenSSL is built from source, in minutes.

mod candidates;

use candidates::{Aead, Key, Tag};
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes of a packet, packets in a batch.
const CASES: [(usize, usize); 5] = [(0, 1), (64, 1), (1200, 1), (1400, 1), (1200, 16)];
const RUNS: usize = 400;
const RUN: Duration = Duration::from_micros(500);
/// More keys than one batch takes, so that no run meets the key of the run before.
const KEYS: usize = 1024;

struct Packet {
    key: Key,
    ad: [u8; 40],
    text: Vec<u8>,
    tag: Tag,
}

fn packets(length: usize) -> Vec<Packet> {
    (0..KEYS)
        .map(|i| {
            let mut key = [0x5a; 32];
            key[..8].copy_from_slice(&(i as u64).to_le_bytes());
            Packet {
                key,
                ad: [i as u8; 40],
                text: vec![i as u8; length],
                tag: [0; 16],
            }
        })
        .collect()
}

/// Nanoseconds a packet, the least of many runs. `work` does one batch.
fn least(batch: usize, packets: &mut [Packet], mut work: impl FnMut(&mut [Packet])) -> f64 {
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let (start, mut done) = (Instant::now(), 0);
        let mut batches = packets.chunks_exact_mut(batch);
        while start.elapsed() < RUN {
            let Some(packets) = batches.next() else { break };
            work(packets);
            done += batch;
        }
        best = best.min(start.elapsed().as_nanos() as f64 / done as f64);
    }
    best
}

fn measure(aead: &mut dyn Aead, length: usize, batch: usize) -> (f64, f64) {
    let mut all = packets(length);
    let sealing = least(batch, &mut all, |packets| {
        for packet in packets {
            aead.seal(&packet.key, &packet.ad, &mut packet.text, &mut packet.tag);
        }
    });
    // Opening in place takes a copy of what was sealed every time; what the copy takes is measured, and subtracted.
    let mut sealed = packets(length);
    for packet in &mut sealed {
        aead.seal(&packet.key, &packet.ad, &mut packet.text, &mut packet.tag);
    }
    let copying = {
        let mut scratch = vec![0; length];
        least(batch, &mut sealed, |packets| {
            for packet in packets {
                scratch.copy_from_slice(&packet.text);
                black_box(&mut scratch);
            }
        })
    };
    let mut scratch = vec![0; length];
    let opening = least(batch, &mut sealed, |packets| {
        for packet in packets {
            scratch.copy_from_slice(&packet.text);
            assert!(aead.open(&packet.key, &packet.ad, &mut scratch, &packet.tag));
        }
    });
    (sealing, opening - copying)
}

fn main() {
    let mut table: Vec<(String, Box<dyn Aead>)> = vec![
        ("ring 0.17.14".into(), Box::new(candidates::Ring)),
        ("aws-lc-rs 1.19.0".into(), Box::new(candidates::AwsLc)),
        (openssl_version(), Box::new(candidates::OpenSsl::new())),
        (
            "OpenSSL ChaCha20 + RustCrypto Poly1305".into(),
            Box::new(candidates::Mixed::new()),
        ),
        (
            "RustCrypto chacha20poly1305 0.11.0".into(),
            Box::new(candidates::RustCrypto),
        ),
        ("graviola 0.4.2".into(), Box::new(candidates::Graviola)),
        (candidates::Sodium::version(), Box::new(candidates::Sodium::new())),
    ];
    // All must say the same before any is measured.
    let mut reference = packets(1201);
    candidates::Ring.seal(
        &reference[7].key.clone(),
        &[1; 40],
        &mut reference[7].text,
        &mut [0; 16],
    );
    for (name, aead) in &mut table {
        let mut packet = packets(1201).swap_remove(7);
        aead.seal(&packet.key, &[1; 40], &mut packet.text, &mut packet.tag);
        assert!(packet.text == reference[7].text, "{name} seals another text");
        assert!(
            candidates::Ring.open(&packet.key, &[1; 40], &mut packet.text.clone(), &packet.tag),
            "{name}"
        );
        packet.tag[3] ^= 1;
        assert!(
            !aead.open(&packet.key, &[1; 40], &mut packet.text, &packet.tag),
            "{name} opens a forged packet"
        );
    }

    let mut rows = Vec::new();
    for (length, batch) in CASES {
        println!(
            "\n{:40} {:>8} {:>8} {:>10} {:>10}",
            format!("{batch} x {length} bytes"),
            "seal ns",
            "open ns",
            "seal GB/s",
            "open GB/s"
        );
        for (name, aead) in &mut table {
            let (seal, open) = measure(aead.as_mut(), length, batch);
            let (fast, slow) = (length as f64 / seal, length as f64 / open);
            println!("{name:40} {seal:8.0} {open:8.0} {fast:10.2} {slow:10.2}");
            rows.push(format!(
                "{{\"library\": \"{name}\", \"bytes\": {length}, \"batch\": {batch}, \"seal_ns\": {seal:.0}, \"open_ns\": {open:.0}}}"
            ));
        }
    }
    if let Some(file) = std::env::args().nth(1) {
        let text = format!(
            "{{\n \"processor\": \"{}\",\n \"rows\": [\n  {}\n ]\n}}\n",
            processor(),
            rows.join(",\n  ")
        );
        std::fs::write(file, text).unwrap();
    }
}

/// "OpenSSL 3.0.19", without its date.
fn openssl_version() -> String {
    openssl::version::version()
        .split(' ')
        .take(2)
        .collect::<Vec<_>>()
        .join(" ")
}

fn processor() -> String {
    let information = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = information
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    model.map_or_else(String::new, |(_, name)| name.into())
}
