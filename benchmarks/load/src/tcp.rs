//! Many TCP connections at once, each sending all that it can, and the bytes that arrive.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::net::{self, check, Namespace};

const CHUNK: usize = 128 << 10;
const EVENTS: usize = 256;
const WAIT_MS: i32 = 20;
const LONGEST_CONNECT: Duration = Duration::from_secs(30);

pub fn run(
    from: &Namespace,
    to: &Namespace,
    addresses: &[libc::sockaddr_in],
    streams: usize,
    seconds: f64,
) -> Result<String> {
    if addresses.is_empty() || streams == 0 {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            "no address, or no stream",
        ));
    }
    let listener = to.within(|| {
        let listener = net::socket(libc::SOCK_STREAM, libc::SOCK_NONBLOCK)?;
        net::option(&listener, libc::SOL_SOCKET, libc::SO_REUSEADDR, 1)?;
        net::bind(
            &listener,
            &net::address([0, 0, 0, 0].into(), net::port(&addresses[0])),
        )?;
        // SAFETY: listen takes no pointer.
        check(unsafe { libc::listen(listener.as_raw_fd(), 4096) })?;
        Ok(listener)
    })?;
    let (received, accepted, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let (bytes, took) = std::thread::scope(|scope| {
        let sink = scope.spawn(|| sink(&listener, &received, &accepted, &stop));
        let result = source(from, addresses, streams, seconds, &received, &accepted);
        stop.store(true, Relaxed);
        sink.join().expect("the sink does not panic")?;
        result
    })?;
    Ok(format!(
        "{{\"bytes\": {bytes}, \"streams\": {streams}, \"seconds\": {took:.6}}}"
    ))
}

/// Bytes that arrived, and in how many seconds, after all connections were there.
fn source(
    from: &Namespace,
    addresses: &[libc::sockaddr_in],
    streams: usize,
    seconds: f64,
    received: &AtomicU64,
    accepted: &AtomicU64,
) -> Result<(u64, f64)> {
    let sockets = from.within(|| {
        (0..streams)
            .map(|i| {
                let socket = net::socket(libc::SOCK_STREAM, libc::SOCK_NONBLOCK)?;
                match net::connect(&socket, &addresses[i % addresses.len()]) {
                    Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
                    _ => Ok(socket),
                }
            })
            .collect::<Result<Vec<OwnedFd>>>()
    })?;
    let begin = Instant::now();
    while accepted.load(Relaxed) < streams as u64 {
        if begin.elapsed() > LONGEST_CONNECT {
            let text = format!(
                "{} of {streams} connections came about",
                accepted.load(Relaxed)
            );
            return Err(Error::new(ErrorKind::TimedOut, text));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let poll = Poll::new()?;
    for socket in &sockets {
        poll.add(socket.as_raw_fd(), libc::EPOLLOUT)?;
    }
    let chunk = vec![0_u8; CHUNK];
    // The first fifth is for TCP to find its speed.
    let (lead, begin) = (seconds / 5.0, Instant::now());
    let mut start = None;
    loop {
        let elapsed = begin.elapsed().as_secs_f64();
        if start.is_none() && elapsed >= lead {
            start = Some((Instant::now(), received.load(Relaxed)));
        }
        if let (Some((since, before)), true) = (start, elapsed >= lead + seconds) {
            return Ok((
                received.load(Relaxed) - before,
                since.elapsed().as_secs_f64(),
            ));
        }
        for fd in poll.wait()? {
            // SAFETY: the kernel reads from `chunk`.
            let wrote = unsafe { libc::send(fd, chunk.as_ptr().cast(), CHUNK, libc::MSG_NOSIGNAL) };
            if wrote < 0 {
                let error = Error::last_os_error();
                if error.kind() != ErrorKind::WouldBlock {
                    return Err(error);
                }
            }
        }
    }
}

fn sink(
    listener: &OwnedFd,
    received: &AtomicU64,
    accepted: &AtomicU64,
    stop: &AtomicBool,
) -> Result<()> {
    let poll = Poll::new()?;
    poll.add(listener.as_raw_fd(), libc::EPOLLIN)?;
    let mut taken: Vec<OwnedFd> = Vec::new();
    let mut chunk = vec![0_u8; CHUNK];
    while !stop.load(Relaxed) {
        for fd in poll.wait()? {
            if fd == listener.as_raw_fd() {
                while let Some(socket) = accept(listener)? {
                    poll.add(socket.as_raw_fd(), libc::EPOLLIN)?;
                    taken.push(socket);
                    accepted.fetch_add(1, Relaxed);
                }
                continue;
            }
            // SAFETY: the kernel writes into `chunk`.
            let got = unsafe { libc::recv(fd, chunk.as_mut_ptr().cast(), CHUNK, 0) };
            if got > 0 {
                received.fetch_add(got as u64, Relaxed);
            }
        }
    }
    Ok(())
}

fn accept(listener: &OwnedFd) -> Result<Option<OwnedFd>> {
    // SAFETY: accept4 is asked for no address; the descriptor is ours alone.
    unsafe {
        let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        match check(libc::accept4(
            listener.as_raw_fd(),
            std::ptr::null_mut(),
            std::ptr::null_mut(),
            flags,
        )) {
            Ok(fd) => Ok(Some(OwnedFd::from_raw_fd(fd))),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

struct Poll(OwnedFd);

impl Poll {
    fn new() -> Result<Self> {
        // SAFETY: epoll_create1 takes no pointer; the descriptor is ours alone.
        unsafe {
            Ok(Self(OwnedFd::from_raw_fd(check(libc::epoll_create1(
                libc::EPOLL_CLOEXEC,
            ))?)))
        }
    }

    fn add(&self, fd: RawFd, events: i32) -> Result<()> {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: fd as u64,
        };
        // SAFETY: the kernel reads `event`.
        check(unsafe { libc::epoll_ctl(self.0.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) })?;
        Ok(())
    }

    /// The descriptors that are ready, none after 20 ms.
    fn wait(&self) -> Result<impl Iterator<Item = RawFd>> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the kernel writes at most EVENTS of them.
        let got = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS as i32,
                WAIT_MS,
            )
        };
        let got = match check(got) {
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            other => other? as usize,
        };
        Ok(events.into_iter().take(got).map(|event| event.u64 as RawFd))
    }
}
