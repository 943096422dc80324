//! What all threads of an engine share.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::admission::{Admission, Limits};
use crate::clock::Clock;
use crate::drops::Drops;
use crate::events::{Event, Events};
use crate::offload::Offload;
use crate::packet::{Inbound, Outbound};
use crate::prefixes::Unconfirmed;
use crate::table::Table;
use crate::waiting::{Early, Held};

/// Packets that have no tunnel yet. Who holds this lock decides whether a packet waits or goes through.
#[derive(Default)]
pub struct Waiting {
    pub held: Held,
    pub early: Early,
}

/// Where this host stands.
pub struct Place {
    pub own: [u8; 4],
    /// The private IPv6 address beside it; without it there is no IPv6 in tunnels.
    pub own6: Option<[u8; 16]>,
    pub network: u32,
    pub mask: u32,
    pub deliver_to: Option<[u8; 4]>,
}

pub struct Shared {
    pub table: Table,
    waiting: Mutex<Waiting>,
    pub events: Events,
    drops: Mutex<Drops>,
    pub admission: Admission,
    pub unconfirmed: Unconfirmed,
    pub outbound: Outbound,
    /// Where packets from tunnels go.
    host: [u8; 4],
    own6: Option<[u8; 16]>,
    pub clock: Clock,
    /// Whether the TUN device speaks virtio_net_hdr.
    pub virtio: bool,
    pub offload: Offload,
}

impl Shared {
    pub fn new(
        events: Events,
        place: &Place,
        handshakes: Option<Limits>,
        clock: Clock,
        virtio: bool,
        offload: Offload,
    ) -> Self {
        let &Place {
            own,
            own6,
            network,
            mask,
            deliver_to,
        } = place;
        Shared {
            admission: Admission::new(handshakes, clock.now()),
            unconfirmed: Unconfirmed::new(clock.now()),
            outbound: Outbound::new(own, network, mask, deliver_to).with_ipv6(own6),
            host: deliver_to.unwrap_or(own),
            own6,
            table: Table::default(),
            waiting: Mutex::default(),
            events,
            drops: Mutex::default(),
            clock,
            virtio,
            offload,
        }
    }

    /// What readdresses the packets of a tunnel that stands for `inner`.
    pub fn inbound(&self, inner: [u8; 4]) -> Inbound {
        Inbound::new(inner, self.host).with_ipv6(self.own6)
    }

    pub fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn drops(&self) -> MutexGuard<'_, Drops> {
        self.drops.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds the counters of a worker; false if another thread is at them, and the worker does not `wait`.
    pub fn merge_drops(&self, drops: &Drops, wait: bool) -> bool {
        match self.drops.try_lock() {
            Ok(mut all) => all.merge(drops),
            Err(_) if !wait => return false,
            Err(_) => self.drops().merge(drops),
        }
        true
    }

    pub fn report(&self, event: Event, drops: &mut Drops) {
        if !self.events.put(event) {
            drops.count("events_full");
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::offload::Wanted;

    /// For a host on 10.43.0.1/16 whose device speaks virtio_net_hdr, with all offloads that need no asking.
    pub fn shared() -> Shared {
        let wanted = Wanted {
            tun_tso: false,
            tun_uso: false,
            tun_gro: true,
            udp_gso: true,
            udp_gro: false,
        };
        let place = Place {
            own: [10, 43, 0, 1],
            own6: None,
            network: 0x0a2b_0000,
            mask: 0xffff_0000,
            deliver_to: None,
        };
        Shared::new(
            Events::new().unwrap(),
            &place,
            None,
            Clock::Boottime(1.0),
            true,
            Offload::new(wanted),
        )
    }
}
