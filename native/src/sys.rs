//! The system calls that no safe crate offers, each behind a safe function. All `unsafe` of this crate is here.

use std::io;
use std::mem;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

/// Messages that one call sends or receives at most.
pub const MAX_MESSAGES: usize = 16;
/// The longest UDP payload over IPv4: 65535 less 20 and 8 (RFC 791, RFC 768).
pub const MAX_UDP_PAYLOAD: usize = 65507;
/// Datagrams in one UDP_SEGMENT message (UDP_MAX_SEGMENTS of older kernels, udp(7)).
pub const MAX_SEGMENTS: usize = 64;

// linux/udp.h, linux/if_tun.h
const UDP_SEGMENT: libc::c_int = 103;
const UDP_GRO: libc::c_int = 104;
pub const TUN_F_CSUM: u32 = 0x01;
pub const TUN_F_TSO4: u32 = 0x02;
pub const TUN_F_TSO6: u32 = 0x04;
pub const TUN_F_TSO_ECN: u32 = 0x08;
pub const TUN_F_USO4: u32 = 0x20;
pub const TUN_F_USO6: u32 = 0x40;

/// Bytes of the length that begins a control message: 8, or 4 where pointers have 32 bits.
const WORD: usize = mem::size_of::<usize>();
/// CMSG_SPACE(sizeof(int)), as cmsg(3) lays it out: length, level, type, data, each message a multiple of `WORD`.
const CONTROL: usize = 2 * WORD + 8;

/// Room for one control message with an int or a u16, aligned as cmsg(3) asks for.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
struct Control([u8; CONTROL]);

/// What is to be sent: one datagram, or several of `segment` bytes each (the last may be shorter).
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    pub data: &'a [u8],
    pub to: SocketAddr,
    /// 0: one datagram.
    pub segment: u16,
}

/// One message that was received: `len` bytes at the start of its slot, cut in datagrams of `segment` bytes.
#[derive(Clone, Copy)]
pub struct Incoming {
    pub len: usize,
    pub source: SocketAddr,
    /// 0: one datagram.
    pub segment: usize,
}

impl Incoming {
    pub const NONE: Incoming = Incoming {
        len: 0,
        source: SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
        segment: 0,
    };
}

/// A socket's address as the kernel has it. Both begin with the family.
#[repr(C)]
#[derive(Clone, Copy)]
union Name {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl Name {
    /// Writes an address; returns its length. A socket of AF_INET6 that is not for IPv6 alone takes both kinds.
    fn put(&mut self, address: SocketAddr) -> libc::socklen_t {
        let sin_port = address.port().to_be();
        let length = match address.ip() {
            IpAddr::V4(ip) => {
                self.v4 = libc::sockaddr_in {
                    sin_family: libc::AF_INET as libc::sa_family_t,
                    sin_port,
                    sin_addr: libc::in_addr {
                        s_addr: u32::from_ne_bytes(ip.octets()),
                    },
                    sin_zero: [0; 8],
                };
                mem::size_of::<libc::sockaddr_in>()
            }
            IpAddr::V6(ip) => {
                self.v6 = libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as libc::sa_family_t,
                    sin6_port: sin_port,
                    sin6_flowinfo: 0,
                    sin6_addr: libc::in6_addr { s6_addr: ip.octets() },
                    sin6_scope_id: 0,
                };
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        length as libc::socklen_t
    }

    /// The address; an IPv4 one that an IPv6 socket has mapped (RFC 4291 section 2.5.5.2) is an IPv4 address again.
    fn get(&self) -> SocketAddr {
        // SAFETY: every bit pattern is valid for both structures, and neither is longer than the union.
        let (v4, v6) = unsafe { (self.v4, self.v6) };
        if i32::from(v4.sin_family) == libc::AF_INET6 {
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            SocketAddr::new(IpAddr::V6(ip).to_canonical(), u16::from_be(v6.sin6_port))
        } else {
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            SocketAddr::new(IpAddr::V4(ip), u16::from_be(v4.sin_port))
        }
    }
}

/// Takes over a descriptor that the caller owns and gives up.
pub fn own_fd(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl reads no memory of ours; it says whether the number is an open descriptor.
    if fd < 0 || unsafe { libc::fcntl(fd, libc::F_GETFD) } < 0 {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: the descriptor is open, and by this function's contract nobody else closes it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends up to `MAX_MESSAGES` messages with sendmmsg(2); returns how many were taken. Never blocks.
///
/// Segmentation is asked for in each message (UDP_SEGMENT, udp(7)), never set on the socket.
pub fn send_messages(socket: BorrowedFd, messages: &[Outgoing]) -> io::Result<usize> {
    let count = messages.len().min(MAX_MESSAGES);
    // SAFETY: all-zero bytes are valid for these C structures.
    let (mut headers, mut slices, mut names): (
        [libc::mmsghdr; MAX_MESSAGES],
        [libc::iovec; MAX_MESSAGES],
        [Name; MAX_MESSAGES],
    ) = unsafe { mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); MAX_MESSAGES];
    for (i, message) in messages.iter().take(count).enumerate() {
        slices[i] = libc::iovec {
            iov_base: message.data.as_ptr() as *mut libc::c_void,
            iov_len: message.data.len(),
        };
        let header = &mut headers[i].msg_hdr;
        header.msg_namelen = names[i].put(message.to);
        header.msg_name = ptr::from_mut(&mut names[i]).cast();
        header.msg_iov = &mut slices[i];
        header.msg_iovlen = 1;
        if message.segment != 0 {
            header.msg_control = ptr::from_mut(&mut controls[i]).cast();
            header.msg_controllen = CONTROL;
            put_control(&mut controls[i], UDP_SEGMENT, &message.segment.to_ne_bytes());
        }
    }
    // SAFETY: every pointer in the first `count` headers is to an element of an array above or to the caller's data,
    // all alive until the call returns; the kernel only reads what they point to, and writes msg_len.
    let sent = unsafe {
        libc::sendmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(sent as usize)
}

/// Receives into `arena`, cut in slots of `slot` bytes, one message each, with recvmmsg(2). Never blocks.
///
/// Returns how many messages there are; the error is WouldBlock where there is none.
pub fn receive_messages(
    socket: BorrowedFd,
    arena: &mut [u8],
    slot: usize,
    received: &mut [Incoming],
) -> io::Result<usize> {
    let count = received.len().min(MAX_MESSAGES).min(arena.len() / slot);
    // SAFETY: all-zero bytes are valid for these C structures.
    let (mut headers, mut slices, mut names): (
        [libc::mmsghdr; MAX_MESSAGES],
        [libc::iovec; MAX_MESSAGES],
        [Name; MAX_MESSAGES],
    ) = unsafe { mem::zeroed() };
    let mut controls = [Control([0; CONTROL]); MAX_MESSAGES];
    for (i, piece) in arena.chunks_exact_mut(slot).take(count).enumerate() {
        slices[i] = libc::iovec {
            iov_base: piece.as_mut_ptr().cast(),
            iov_len: slot,
        };
        let header = &mut headers[i].msg_hdr;
        header.msg_name = ptr::from_mut(&mut names[i]).cast();
        header.msg_namelen = mem::size_of::<Name>() as libc::socklen_t;
        header.msg_iov = &mut slices[i];
        header.msg_iovlen = 1;
        header.msg_control = ptr::from_mut(&mut controls[i]).cast();
        header.msg_controllen = CONTROL;
    }
    // SAFETY: every pointer in the first `count` headers is to an element of an array above or into the caller's
    // arena, disjoint and alive until the call returns, with their lengths beside them.
    let got = unsafe {
        libc::recvmmsg(
            socket.as_raw_fd(),
            headers.as_mut_ptr(),
            count as libc::c_uint,
            libc::MSG_DONTWAIT,
            ptr::null_mut(),
        )
    };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    for i in 0..got as usize {
        received[i] = Incoming {
            len: headers[i].msg_len as usize,
            source: names[i].get(),
            segment: segment_of(&controls[i], headers[i].msg_hdr.msg_controllen),
        };
    }
    Ok(got as usize)
}

/// Writes one SOL_UDP control message.
fn put_control(control: &mut Control, kind: libc::c_int, data: &[u8]) {
    control.0[..WORD].copy_from_slice(&(WORD + 8 + data.len()).to_ne_bytes());
    control.0[WORD..WORD + 4].copy_from_slice(&libc::SOL_UDP.to_ne_bytes());
    control.0[WORD + 4..WORD + 8].copy_from_slice(&kind.to_ne_bytes());
    control.0[WORD + 8..WORD + 8 + data.len()].copy_from_slice(data);
}

fn segment_of(control: &Control, length: usize) -> usize {
    let word = |at: usize| i32::from_ne_bytes([control.0[at], control.0[at + 1], control.0[at + 2], control.0[at + 3]]);
    if length >= WORD + 12 && word(WORD) == libc::SOL_UDP && word(WORD + 4) == UDP_GRO {
        usize::try_from(word(WORD + 8)).unwrap_or(0)
    } else {
        0
    }
}

/// Asks the kernel to hand over runs of datagrams of one flow in one message (UDP_GRO, udp(7)).
pub fn set_udp_gro(socket: BorrowedFd) -> io::Result<()> {
    set_option(socket, UDP_GRO, 1)
}

/// Whether this kernel takes UDP_SEGMENT. It is set to 0, which changes nothing.
pub fn has_udp_segment(socket: BorrowedFd) -> bool {
    set_option(socket, UDP_SEGMENT, 0).is_ok()
}

fn set_option(socket: BorrowedFd, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
    // SAFETY: the kernel reads the int that the pointer and the length describe.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            name,
            ptr::from_ref(&value).cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Tells a TUN device which offloads its reader understands (TUNSETOFFLOAD, Documentation/networking/tuntap.rst).
pub fn set_tun_offload(tun: BorrowedFd, flags: u32) -> io::Result<()> {
    // SAFETY: this request takes its argument by value.
    if unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(flags)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Keeps every signal from the calling thread: handlers run elsewhere, and no signal frame copies its registers.
pub fn block_signals() {
    // SAFETY: the set is filled before it is read, and pthread_sigmask changes the calling thread's mask only.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, ptr::null_mut());
    }
}

/// struct sched_attr of linux/sched/types.h, as far as it was first published.
#[repr(C)]
#[derive(Default)]
struct SchedAttr {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// Asks the scheduler for turns of so many nanoseconds for the calling thread (sched_setattr(2)): it gets as much time as
/// before, in smaller pieces, and so waits less for the next one when it wakes up. Linux 6.12; older ones take no notice.
pub fn take_short_turns(nanoseconds: u64) -> io::Result<()> {
    let size = mem::size_of::<SchedAttr>() as u32;
    let mut attributes = SchedAttr::default();
    // SAFETY: the kernel writes at most `size` bytes to the structure, which has as many.
    if unsafe { libc::syscall(libc::SYS_sched_getattr, 0, ptr::from_mut(&mut attributes), size, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    attributes.size = size;
    attributes.runtime = nanoseconds;
    // SAFETY: the kernel reads the structure, whose first field is its size.
    if unsafe { libc::syscall(libc::SYS_sched_setattr, 0, ptr::from_ref(&attributes), 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
#[path = "sys_tests.rs"]
mod tests;
