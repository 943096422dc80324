//! Paced UDP packets with sequence numbers, and what of them arrives.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::net::{self, Batch, Namespace, BATCH};

const HEADERS: usize = 28; // IPv4 and UDP
const TICK: Duration = Duration::from_micros(200);
const STALLED: Duration = Duration::from_millis(20);
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

/// What to send: packets of `size` bytes, `segments` of them with one call to one address (UDP_SEGMENT).
pub struct Load {
    pub size: usize,
    pub segments: usize,
    /// Packets a second, 0 for no limit.
    pub rate: f64,
    /// How many packets may be on their way, 0 for no limit.
    pub window: u64,
    pub seconds: f64,
}

pub fn run(
    from: &Namespace,
    to: &Namespace,
    addresses: &[libc::sockaddr_in],
    load: &Load,
) -> Result<String> {
    let longest = HEADERS + load.segments * load.size.saturating_sub(HEADERS);
    let fits = load.size >= HEADERS + net::HEAD && load.segments > 0 && longest <= 65535;
    if addresses.is_empty() || !fits {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "no address, or packets too small or too large",
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
    let source = from.within(|| {
        let source = net::socket(libc::SOCK_DGRAM, 0)?;
        if load.segments > 1 {
            net::option(
                &source,
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (load.size - HEADERS) as i32,
            )?;
        }
        Ok(source)
    })?;
    let count = Count::default();
    let (sent, took) = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| receive(&sink, &count));
        let result = send(&source, addresses, load, &count);
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
    load: &Load,
    count: &Count,
) -> Result<(u64, f64)> {
    net::precise_timers();
    let segments = load.segments as u64;
    let mut batch = Batch::new(load.segments * (load.size - HEADERS));
    let mut window = Window {
        size: load.window,
        lost: 0,
        seen: 0,
        since: Instant::now(),
    };
    let (mut sent, mut tick) = (0_u64, 0);
    let begin = Instant::now();
    loop {
        let elapsed = begin.elapsed().as_secs_f64();
        if elapsed >= load.seconds {
            return Ok((sent, elapsed));
        }
        let due = if load.rate > 0.0 {
            (elapsed * load.rate) as u64
        } else {
            u64::MAX
        };
        let room = window.room(sent, count.received.load(Relaxed));
        let now = (due.saturating_sub(sent).min(room) / segments).min(BATCH as u64) as usize;
        if now == 0 {
            tick += 1;
            let next = begin + TICK * tick;
            if let Some(left) = next.checked_duration_since(Instant::now()) {
                std::thread::sleep(left);
            } else {
                tick = (begin.elapsed().as_nanos() / TICK.as_nanos()) as u32;
            }
            continue;
        }
        for i in 0..now {
            let number = sent + i as u64 * segments;
            let address = (number / segments) % addresses.len() as u64;
            batch.prepare(i, number, &addresses[address as usize]);
        }
        // SAFETY: `addresses` is borrowed for the whole of this function.
        match unsafe { batch.send(source.as_raw_fd(), now) } {
            Ok(went) => sent += went as u64 * segments,
            // The device's queue is full: these packets are lost.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => sent += segments,
            Err(error) => return Err(error),
        }
    }
}

/// Counts what is on its way; what has not arrived while nothing else did either is taken for lost.
struct Window {
    size: u64,
    lost: u64,
    seen: u64,
    since: Instant,
}

impl Window {
    fn room(&mut self, sent: u64, received: u64) -> u64 {
        if self.size == 0 {
            return u64::MAX;
        }
        let on_its_way = sent.saturating_sub(received + self.lost);
        if received != self.seen || on_its_way < self.size {
            (self.seen, self.since) = (received, Instant::now());
        } else if self.since.elapsed() >= STALLED {
            self.lost += on_its_way;
            self.since = Instant::now();
            return self.size;
        }
        self.size.saturating_sub(on_its_way)
    }
}

fn receive(sink: &OwnedFd, count: &Count) -> Result<()> {
    let mut batch = Batch::new(2048);
    let mut next = 0;
    while !count.stop.load(Relaxed) {
        match batch.receive(sink.as_raw_fd()) {
            Ok(got) => {
                for i in 0..got {
                    // Further segments of a message have no number, that is 0.
                    let number = batch.head(i);
                    if number >= next {
                        next = number + 1;
                    } else if number > 0 {
                        count.reordered.fetch_add(1, Relaxed);
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
