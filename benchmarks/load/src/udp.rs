//! Paced UDP packets with sequence numbers, and what of them arrives.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::net::{self, Batch, Namespace, BATCH};

const HEADERS: usize = 28; // IPv4 and UDP
const TICK: Duration = Duration::from_micros(200);
const QUIET: Duration = Duration::from_millis(100);
const LONGEST_DRAIN: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Count {
    received: AtomicU64,
    reordered: AtomicU64,
    /// Received while the sender still sent.
    in_time: AtomicU64,
    stop: AtomicBool,
}

pub fn run(
    from: &Namespace,
    to: &Namespace,
    addresses: &[libc::sockaddr_in],
    size: usize,
    rate: f64,
    seconds: f64,
) -> Result<String> {
    if addresses.is_empty() || size < HEADERS + net::HEAD {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "no address, or too small a packet",
        ));
    }
    let sink = to.within(|| {
        let sink = net::socket(libc::SOCK_DGRAM, 0)?;
        net::option(&sink, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        net::receive_timeout(&sink, Duration::from_millis(20))?;
        net::bind(
            &sink,
            &net::address([0, 0, 0, 0].into(), net::port(&addresses[0])),
        )?;
        Ok(sink)
    })?;
    let source = from.within(|| net::socket(libc::SOCK_DGRAM, 0))?;
    let count = Count::default();
    let (sent, took) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&sink, &count));
        let result = send(&source, addresses, size - HEADERS, rate, seconds);
        count.in_time.store(count.received.load(Relaxed), Relaxed);
        if let Ok((sent, _)) = result {
            drain(&count, sent);
        }
        count.stop.store(true, Relaxed);
        receiver.join().expect("the receiver does not panic")?;
        result
    })?;
    Ok(format!(
        "{{\"sent\": {sent}, \"received\": {}, \"in_time\": {}, \"reordered\": {}, \"seconds\": {took:.6}}}",
        count.received.load(Relaxed),
        count.in_time.load(Relaxed),
        count.reordered.load(Relaxed)
    ))
}

fn send(
    source: &OwnedFd,
    addresses: &[libc::sockaddr_in],
    payload: usize,
    rate: f64,
    seconds: f64,
) -> Result<(u64, f64)> {
    net::precise_timers();
    let mut batch = Batch::new(payload);
    let (mut sent, mut tick) = (0_u64, 0);
    let begin = Instant::now();
    loop {
        let elapsed = begin.elapsed().as_secs_f64();
        if elapsed >= seconds {
            return Ok((sent, elapsed));
        }
        let due = if rate > 0.0 {
            (elapsed * rate) as u64
        } else {
            u64::MAX
        };
        if due <= sent {
            tick += 1;
            let next = begin + TICK * tick;
            if let Some(left) = next.checked_duration_since(Instant::now()) {
                std::thread::sleep(left);
            } else {
                tick = (begin.elapsed().as_nanos() / TICK.as_nanos()) as u32;
            }
            continue;
        }
        let now = (due - sent).min(BATCH as u64) as usize;
        for i in 0..now {
            let number = sent + i as u64;
            batch.prepare(
                i,
                number,
                &addresses[(number % addresses.len() as u64) as usize],
            );
        }
        // SAFETY: `addresses` is borrowed for the whole of this function.
        match unsafe { batch.send(source.as_raw_fd(), now) } {
            Ok(count) => sent += count as u64,
            // The device's queue is full: the packet is lost.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += 1,
            Err(error) => return Err(error),
        }
    }
}

fn receive(sink: &OwnedFd, count: &Count) -> Result<()> {
    let mut batch = Batch::new(2048);
    let mut next = 0;
    while !count.stop.load(Relaxed) {
        match batch.receive(sink.as_raw_fd()) {
            Ok(got) => {
                for i in 0..got {
                    if batch.head(i) < next {
                        count.reordered.fetch_add(1, Relaxed);
                    } else {
                        next = batch.head(i) + 1;
                    }
                }
                count.received.fetch_add(got as u64, Relaxed);
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Wait until all has arrived, or nothing any more.
fn drain(count: &Count, sent: u64) {
    let begin = Instant::now();
    let (mut seen, mut since) = (count.received.load(Relaxed), begin);
    while seen < sent && since.elapsed() < QUIET && begin.elapsed() < LONGEST_DRAIN {
        std::thread::sleep(Duration::from_millis(5));
        let now = count.received.load(Relaxed);
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
}
