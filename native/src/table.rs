//! All tunnels, by id and by the private address that they stand for.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::tunnel::{Tid, Tunnel};

#[derive(Default)]
struct Maps {
    tunnels: HashMap<Tid, Arc<Tunnel>>,
    /// By private address; the last one is sent through.
    routes: HashMap<[u8; 4], Vec<Arc<Tunnel>>>,
}

/// Workers read it once for each run of packets; only the control plane writes.
#[derive(Default)]
pub struct Table(RwLock<Maps>);

impl Table {
    pub fn tunnel(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        self.read().tunnels.get(tid).cloned()
    }

    pub fn route(&self, inner: [u8; 4]) -> Option<Arc<Tunnel>> {
        self.read().routes.get(&inner)?.last().cloned()
    }

    pub fn contains(&self, tid: &Tid) -> bool {
        self.read().tunnels.contains_key(tid)
    }

    /// From now on packets of this tunnel are opened.
    pub fn insert(&self, tunnel: &Arc<Tunnel>) {
        self.write().tunnels.insert(tunnel.tid, Arc::clone(tunnel));
    }

    /// From now on packets to its private address go through this tunnel.
    pub fn set_route(&self, tunnel: &Arc<Tunnel>) {
        self.write()
            .routes
            .entry(tunnel.inner)
            .or_insert_with(|| Vec::with_capacity(1))
            .push(Arc::clone(tunnel));
    }

    pub fn remove(&self, tid: &Tid) -> Option<Arc<Tunnel>> {
        let mut maps = self.write();
        let tunnel = maps.tunnels.remove(tid)?;
        if let Some(route) = maps.routes.get_mut(&tunnel.inner) {
            route.retain(|other| other.tid != *tid);
            if route.is_empty() {
                maps.routes.remove(&tunnel.inner);
            }
        }
        Some(tunnel)
    }

    pub fn all(&self) -> Vec<Arc<Tunnel>> {
        self.read().tunnels.values().cloned().collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
