//! All tunnels, by id and by the private address that they stand for.

use std::sync::Arc;

use papaya::HashMap;

use crate::tunnel::{Tid, Tunnel};

/// Workers look things up once for each run of packets and never wait for it; only the control plane writes, on one thread.
#[derive(Default)]
pub struct Table {
    tunnels: HashMap<Tid, Arc<Tunnel>>,
    /// By private address; the last one is sent through.
    routes: HashMap<[u8; 4], Vec<Arc<Tunnel>>>,
}

impl Table {
    pub fn tunnel(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        self.tunnels.pin().get(tid).cloned()
    }

    pub fn route(&self, inner: [u8; 4]) -> Option<Arc<Tunnel>> {
        self.routes.pin().get(&inner)?.last().cloned()
    }

    pub fn contains(&self, tid: &Tid) -> bool {
        self.tunnels.pin().contains_key(tid)
    }

    /// From now on packets of this tunnel are opened.
    pub fn insert(&self, tunnel: &Arc<Tunnel>) {
        self.tunnels.pin().insert(tunnel.tid, Arc::clone(tunnel));
    }

    /// From now on packets to its private address go through this tunnel.
    pub fn set_route(&self, tunnel: &Arc<Tunnel>) {
        let routes = self.routes.pin();
        let others = routes.get(&tunnel.inner).map_or(&[][..], Vec::as_slice);
        let mut route = Vec::with_capacity(others.len() + 1);
        route.extend_from_slice(others);
        route.push(Arc::clone(tunnel));
        routes.insert(tunnel.inner, route);
    }

    pub fn remove(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        let tunnel = self.tunnels.pin().remove(tid).cloned()?;
        let routes = self.routes.pin();
        let others = routes.get(&tunnel.inner).map_or(&[][..], Vec::as_slice);
        let route: Vec<_> = others.iter().filter(|other| other.tid != *tid).cloned().collect();
        if route.is_empty() {
            routes.remove(&tunnel.inner);
        } else {
            routes.insert(tunnel.inner, route);
        }
        Some(tunnel)
    }

    pub fn all(&self) -> Vec<Arc<Tunnel>> {
        self.tunnels.pin().values().cloned().collect()
    }
}
