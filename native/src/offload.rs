//! What the kernel can take off our hands: each offload is probed, can be switched off, and falls back when it fails.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use rustix::system::uname;

use crate::sys;

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(u8)]
pub enum State {
    /// By the settings.
    Off,
    On,
    /// The kernel refused when it was asked.
    Unsupported,
    /// The kernel refused when it was used.
    Failed,
}

/// The state of one offload; workers look at it for each batch.
pub struct Switch(AtomicU8);

impl Switch {
    fn new(wanted: bool) -> Self {
        Switch(AtomicU8::new(if wanted { State::On } else { State::Off } as u8))
    }

    pub fn on(&self) -> bool {
        self.state() == State::On
    }

    pub fn state(&self) -> State {
        match self.0.load(Ordering::Relaxed) {
            0 => State::Off,
            1 => State::On,
            2 => State::Unsupported,
            _ => State::Failed,
        }
    }

    pub fn fail(&self) {
        self.0.store(State::Failed as u8, Ordering::Relaxed);
    }

    fn settle(&self, supported: bool) {
        if self.on() && !supported {
            self.0.store(State::Unsupported as u8, Ordering::Relaxed);
        }
    }
}

/// What the settings allow.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub tun_tso: bool,
    pub tun_uso: bool,
    pub tun_gro: bool,
    pub udp_gso: bool,
    pub udp_gro: bool,
}

pub struct Offload {
    /// Reads from the TUN device bring TCP packets of up to 64 KB.
    pub tun_tso: Switch,
    /// The same for UDP (Linux 6.2).
    pub tun_uso: Switch,
    /// Runs of packets of one flow are written to the TUN device as one.
    pub tun_gro: Switch,
    /// Trains of datagrams are sent as one message.
    pub udp_gso: Switch,
    /// Runs of datagrams are received as one message.
    pub udp_gro: Switch,
    /// Whether the TUN device takes UDP runs when it is written.
    uso_writes: AtomicBool,
}

impl Offload {
    pub fn new(wanted: Wanted) -> Self {
        Offload {
            tun_tso: Switch::new(wanted.tun_tso),
            tun_uso: Switch::new(wanted.tun_uso),
            tun_gro: Switch::new(wanted.tun_gro),
            udp_gso: Switch::new(wanted.udp_gso),
            udp_gro: Switch::new(wanted.udp_gro),
            uso_writes: AtomicBool::new(false),
        }
    }

    pub fn writes_uso(&self) -> bool {
        self.uso_writes.load(Ordering::Relaxed)
    }

    /// Asks the kernel for each offload that is wanted. `virtio`: the TUN device speaks virtio_net_hdr.
    pub fn probe(&self, tuns: &[File], sockets: &[UdpSocket], virtio: bool) {
        let tun_takes = |flags| virtio && tuns.iter().all(|tun| sys::set_tun_offload(tun.as_fd(), flags).is_ok());
        const TSO: u32 = sys::TUN_F_CSUM | sys::TUN_F_TSO4 | sys::TUN_F_TSO6 | sys::TUN_F_TSO_ECN;
        const USO: u32 = sys::TUN_F_CSUM | sys::TUN_F_USO4 | sys::TUN_F_USO6;
        // Whether the device takes USO also says whether it can be written; so it is asked even if not wanted for reads.
        let writes_uso = tun_takes(TSO | USO);
        self.uso_writes.store(writes_uso, Ordering::Relaxed);
        self.tun_uso.settle(writes_uso);
        self.tun_tso.settle(tun_takes(TSO));
        self.tun_gro.settle(virtio);
        let mut flags = 0;
        if self.tun_tso.on() {
            flags |= TSO;
        }
        if self.tun_uso.on() {
            flags |= USO;
        }
        tun_takes(flags);
        self.udp_gso
            .settle(sockets.iter().all(|socket| sys::has_udp_segment(socket.as_fd())));
        if self.udp_gro.on() {
            let supported = kernel_is_at_least(5, 12) && sockets.iter().all(|s| sys::set_udp_gro(s.as_fd()).is_ok());
            self.udp_gro.settle(supported);
        }
    }
}

/// Older kernels take UDP_GRO and then hand over datagrams whose checksum nobody has verified.
fn kernel_is_at_least(major: u32, minor: u32) -> bool {
    let name = uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|word| word.parse::<u32>().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}
