//! System calls: sockets made in a namespace, and messages by the batch.

use std::fs::File;
use std::io::{Error, Result};
use std::mem::{size_of, zeroed};
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

/// Sockets are made by a thread of their own in it; they stay there, the other threads do not move.
pub struct Namespace(File);

impl Namespace {
    pub fn open(name: &str) -> Result<Self> {
        Ok(Self(File::open(format!("/run/netns/{name}"))?))
    }

    /// Run `make` inside.
    pub fn within<T: Send>(&self, make: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let fd = self.0.as_raw_fd();
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    // SAFETY: setns takes no pointer.
                    check(unsafe { libc::setns(fd, libc::CLONE_NEWNET) })?;
                    make()
                })
                .join()
                .expect("no panic inside a namespace")
        })
    }
}

pub fn check(result: i32) -> Result<i32> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

pub fn address(ip: Ipv4Addr, port: u16) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as u16,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from(ip).to_be(),
        },
        sin_zero: [0; 8],
    }
}

pub fn port(address: &libc::sockaddr_in) -> u16 {
    u16::from_be(address.sin_port)
}

/// A socket of this kind, close-on-exec; `flags` may say non-blocking.
pub fn socket(kind: i32, flags: i32) -> Result<OwnedFd> {
    // SAFETY: socket takes no pointer; the descriptor is ours alone.
    unsafe {
        let fd = check(libc::socket(
            libc::AF_INET,
            kind | flags | libc::SOCK_CLOEXEC,
            0,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

pub fn bind(socket: &OwnedFd, to: &libc::sockaddr_in) -> Result<()> {
    // SAFETY: the pointer and the length are those of `to`.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (to as *const libc::sockaddr_in).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        )
    })?;
    Ok(())
}

pub fn connect(socket: &OwnedFd, to: &libc::sockaddr_in) -> Result<()> {
    // SAFETY: as in bind.
    check(unsafe {
        libc::connect(
            socket.as_raw_fd(),
            (to as *const libc::sockaddr_in).cast(),
            size_of::<libc::sockaddr_in>() as u32,
        )
    })?;
    Ok(())
}

pub fn option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> Result<()> {
    // SAFETY: the kernel reads the four bytes of `value`.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&value as *const i32).cast(),
            size_of::<i32>() as u32,
        )
    })?;
    Ok(())
}

pub fn receive_timeout(socket: &OwnedFd, timeout: Duration) -> Result<()> {
    let value = libc::timeval {
        tv_sec: timeout.as_secs() as i64,
        tv_usec: timeout.subsec_micros().into(),
    };
    // SAFETY: the kernel reads a timeval.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVTIMEO,
            (&value as *const libc::timeval).cast(),
            size_of::<libc::timeval>() as u32,
        )
    })?;
    Ok(())
}

/// Sleeping for 100 us must not become 150 us.
pub fn precise_timers() {
    // SAFETY: PR_SET_TIMERSLACK takes a number.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1000) };
}

pub fn raise_file_limit() {
    let limit = libc::rlimit {
        rlim_cur: 65536,
        rlim_max: 65536,
    };
    // SAFETY: the kernel reads `limit`; where it refuses, fewer streams can be opened.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
}

pub const BATCH: usize = 64;

/// Messages of one size, each with its own head of `HEAD` bytes and a common rest.
pub struct Batch {
    heads: Box<[[u8; HEAD]; BATCH]>,
    rest: Box<[u8]>,
    vectors: Box<[[libc::iovec; 2]; BATCH]>,
    messages: Box<[libc::mmsghdr; BATCH]>,
}

pub const HEAD: usize = 8;

// SAFETY: the pointers lead to what the Batch itself owns.
unsafe impl Send for Batch {}

impl Batch {
    pub fn new(size: usize) -> Self {
        // SAFETY: these are plain C structures, for which all zeroes is a value.
        let (vectors, messages) = unsafe { (Box::new(zeroed()), Box::new(zeroed())) };
        let mut batch = Self {
            heads: Box::new([[0; HEAD]; BATCH]),
            rest: vec![0; size - HEAD].into(),
            vectors,
            messages,
        };
        for i in 0..BATCH {
            batch.vectors[i] = [
                libc::iovec {
                    iov_base: batch.heads[i].as_mut_ptr().cast(),
                    iov_len: HEAD,
                },
                libc::iovec {
                    iov_base: batch.rest.as_mut_ptr().cast(),
                    iov_len: size - HEAD,
                },
            ];
            batch.messages[i].msg_hdr.msg_iov = batch.vectors[i].as_mut_ptr();
            batch.messages[i].msg_hdr.msg_iovlen = 2;
        }
        batch
    }

    /// Write the head of message `i` and where it goes.
    pub fn prepare(&mut self, i: usize, head: u64, to: &libc::sockaddr_in) {
        self.heads[i] = head.to_le_bytes();
        let message = &mut self.messages[i].msg_hdr;
        message.msg_name = (to as *const libc::sockaddr_in).cast_mut().cast();
        message.msg_namelen = size_of::<libc::sockaddr_in>() as u32;
    }

    /// Send the first `count`, whose addresses must still be where `prepare` saw them; how many went.
    ///
    /// # Safety
    /// The addresses given to `prepare` are alive.
    pub unsafe fn send(&mut self, fd: RawFd, count: usize) -> Result<usize> {
        let sent = libc::sendmmsg(fd, self.messages.as_mut_ptr(), count as u32, 0);
        Ok(check(sent)? as usize)
    }

    /// Receive up to BATCH messages, waiting for the first; how many came.
    pub fn receive(&mut self, fd: RawFd) -> Result<usize> {
        // SAFETY: all pointers lead into `self`.
        let got = unsafe {
            libc::recvmmsg(
                fd,
                self.messages.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        Ok(check(got)? as usize)
    }

    pub fn head(&self, i: usize) -> u64 {
        u64::from_le_bytes(self.heads[i])
    }
}
