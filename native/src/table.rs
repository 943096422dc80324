//! All tunnels, by id and by the private address that they stand for.

use std::collections::HashMap as Map;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use papaya::HashMap;

use crate::packet::inner::Inbound;
use crate::tunnel::{Tid, Tunnel};

/// A tunnel of a private address.
struct Standing {
    tunnel: Arc<Tunnel>,
    /// Not sent through until somebody says so.
    standby: bool,
}

/// Workers look things up once for each run of packets and never wait for it; only the control plane writes, on one thread.
#[derive(Default)]
pub struct Table {
    tunnels: HashMap<Tid, Arc<Tunnel>>,
    /// By private address, what is sent through. Where packets are held there is nothing, whatever tunnels there are.
    routes: HashMap<[u8; 4], Arc<Tunnel>>,
    /// By private address, all its tunnels; the last one that is no standby is to be sent through.
    standing: Mutex<Map<[u8; 4], Vec<Standing>>>,
}

impl Table {
    pub fn tunnel(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        self.tunnels.pin().get(tid).cloned()
    }

    pub fn route(&self, inner: [u8; 4]) -> Option<Arc<Tunnel>> {
        self.routes.pin().get(&inner).cloned()
    }

    pub fn contains(&self, tid: &Tid) -> bool {
        self.tunnels.pin().contains_key(tid)
    }

    /// The tunnel that an address was given last, sent through or not.
    pub fn latest(&self, inner: [u8; 4]) -> Option<Arc<Tunnel>> {
        let standing = self.standing();
        standing.get(&inner)?.last().map(|last| Arc::clone(&last.tunnel))
    }

    /// From now on packets of this tunnel are opened. It is not sent through before `open_route`.
    pub fn insert(&self, tunnel: &Arc<Tunnel>, standby: bool) {
        self.tunnels.pin().insert(tunnel.tid, Arc::clone(tunnel));
        self.stand(tunnel, standby);
    }

    /// Gives a tunnel another private address, or makes it the latest of the one that it has; no longer a standby.
    /// Both addresses then need `open_route`.
    pub fn transfer(&self, tunnel: &Arc<Tunnel>, inner: [u8; 4], inbound: Inbound) {
        self.unstand(tunnel);
        tunnel.stand_for(inner, inbound);
        self.stand(tunnel, false);
    }

    /// Its address then needs `open_route`.
    pub fn remove(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        let tunnel = self.tunnels.pin().remove(tid).cloned()?;
        self.unstand(&tunnel);
        Some(tunnel)
    }

    /// From now on packets to this address go through its latest tunnel that is no standby.
    pub fn open_route(&self, inner: [u8; 4]) {
        let standing = self.standing();
        let others = standing.get(&inner).map_or(&[][..], Vec::as_slice);
        let routes = self.routes.pin();
        match others.iter().rev().find(|other| !other.standby) {
            Some(latest) => routes.insert(inner, Arc::clone(&latest.tunnel)),
            None => routes.remove(&inner),
        };
    }

    /// From now on packets to this address find no tunnel.
    pub fn close_route(&self, inner: [u8; 4]) {
        self.routes.pin().remove(&inner);
    }

    pub fn all(&self) -> Vec<Arc<Tunnel>> {
        self.tunnels.pin().values().cloned().collect()
    }

    fn standing(&self) -> MutexGuard<'_, Map<[u8; 4], Vec<Standing>>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stand(&self, tunnel: &Arc<Tunnel>, standby: bool) {
        let tunnel = Arc::clone(tunnel);
        let mut standing = self.standing();
        let others = standing.entry(tunnel.inner()).or_default();
        others.push(Standing { tunnel, standby });
    }

    fn unstand(&self, tunnel: &Arc<Tunnel>) {
        let mut standing = self.standing();
        if let Some(others) = standing.get_mut(&tunnel.inner()) {
            others.retain(|other| other.tunnel.tid != tunnel.tid);
            if others.is_empty() {
                standing.remove(&tunnel.inner());
            }
        }
    }
}
