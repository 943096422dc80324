//! The Python module `pqtun.pump._native`; pqtun/pump/native.py is what others use.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList};

use crate::admission::Limits;
use crate::clock::Clock;
use crate::cookie::Sealing;
use crate::crypto::NONCE_LEN;
use crate::drops::Drops;
use crate::engine::{Engine, Refused};
use crate::events::Event;
use crate::limits;
use crate::offload::{State, Wanted};
use crate::schedule::{work, Key, Work, KEY};
use crate::secret;
use crate::shared::Place;
use crate::sys;
use crate::tunnel::{Beginning, TunnelStats};

type Endpoint = (IpAddr, u16);
/// A reason, an error number or 0, how often.
type Dropped = Vec<(&'static str, i32, u64)>;

/// A clock that stands still until it is set (seconds), for tests.
#[pyclass(frozen, module = "pqtun.pump._native")]
struct ManualClock(Arc<AtomicU64>);

#[pymethods]
impl ManualClock {
    #[new]
    fn new(now: f64) -> Self {
        ManualClock(Arc::new(AtomicU64::new(now.to_bits())))
    }

    fn set(&self, now: f64) {
        self.0.store(now.to_bits(), Ordering::Release);
    }
}

/// The engine. All calls on one thread.
#[pyclass(module = "pqtun.pump._native")]
struct Core {
    engine: Engine,
}

#[pymethods]
impl Core {
    /// Takes over the descriptors. `offload`: the names that may be used. Raises OSError, ValueError.
    #[new]
    #[pyo3(signature = (tuns, sockets, *, own, own6, network, mask, deliver_to, virtio, offload, handshakes, clock=None, clock_scale=1.0))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn new(
        tuns: Vec<RawFd>,
        sockets: Vec<RawFd>,
        own: [u8; 4],
        own6: Option<[u8; 16]>,
        network: u32,
        mask: u32,
        deliver_to: Option<[u8; 4]>,
        virtio: bool,
        offload: Vec<String>,
        handshakes: Option<(f64, f64)>,
        clock: Option<&Bound<'_, ManualClock>>,
        clock_scale: f64,
    ) -> PyResult<Self> {
        let own_all = |fds: Vec<RawFd>| fds.into_iter().map(sys::own_fd).collect::<Result<Vec<_>, _>>();
        let wants = |name: &str| offload.iter().any(|wanted| wanted == name);
        let engine = Engine::new(
            own_all(tuns)?,
            own_all(sockets)?,
            &Place {
                own,
                own6,
                network,
                mask,
                deliver_to,
            },
            handshakes.map(|(per_second, per_prefix)| Limits { per_second, per_prefix }),
            virtio,
            Wanted {
                tun_tso: wants("tun-tso"),
                tun_uso: wants("tun-uso"),
                tun_gro: wants("tun-gro"),
                udp_gso: wants("udp-gso"),
                udp_gro: wants("udp-gro"),
            },
            clock.map_or(Clock::Boottime(clock_scale), |clock| {
                Clock::Manual(Arc::clone(&clock.get().0))
            }),
        )?;
        Ok(Core { engine })
    }

    /// Begins to move packets. Raises OSError.
    fn start(&mut self) -> PyResult<()> {
        Ok(self.engine.start()?)
    }

    /// A descriptor that is readable while there are events.
    fn fileno(&self) -> RawFd {
        self.engine.ready().as_raw_fd()
    }

    /// Takes all events: tuples that begin with the name of the event.
    fn events<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let list = PyList::empty(py);
        for event in self.engine.events() {
            let bytes = |data: &[u8]| PyBytes::new(py, data);
            match event {
                Event::Datagram(data, source, expected) => {
                    list.append(("Datagram", bytes(&data), endpoint(source), expected))?;
                }
                Event::Wanted(inner) => list.append(("Wanted", bytes(&inner)))?,
                Event::Alive(tid) => list.append(("Alive", bytes(&tid)))?,
                Event::Roamed(tid, source) => list.append(("Roamed", bytes(&tid), endpoint(source)))?,
                Event::Dead(tid) => list.append(("Dead", bytes(&tid)))?,
                Event::Control(tid, packet) => list.append(("Control", bytes(&tid), bytes(&packet)))?,
                Event::Cookie(tid, cookie) => list.append(("Cookie", bytes(&tid), bytes(&cookie)))?,
                Event::Failed(reason) => list.append(("Failed", reason))?,
            }
        }
        Ok(list)
    }

    /// Raises ValueError (tid in use, not a peer's address, closed) and OSError.
    #[pyo3(signature = (tid, send_root, receive_root, inner, endpoint, *, first, epoch, confirmed, standby))]
    #[allow(clippy::too_many_arguments)] // keywords in Python
    fn add_tunnel(
        &mut self,
        tid: Key,
        send_root: &Bound<'_, PyAny>,
        receive_root: &Bound<'_, PyAny>,
        inner: [u8; 4],
        endpoint: Endpoint,
        first: Option<&[u8]>,
        epoch: u16,
        confirmed: bool,
        standby: bool,
    ) -> PyResult<()> {
        let (mut send, mut receive) = (work()?, work()?);
        let beginning = Beginning {
            tid,
            send_root: copied(send_root, &mut send)?,
            receive_root: copied(receive_root, &mut receive)?,
            epoch,
            inner,
            endpoint: address(endpoint),
            confirmed,
        };
        let added = self.engine.add_tunnel(&beginning, first, standby);
        added.map_err(|refused| refusal(refused, inner))
    }

    /// Raises ValueError (no such tunnel, not a peer's address).
    fn move_tunnel(&mut self, tid: Key, inner: [u8; 4]) -> PyResult<()> {
        let moved = self.engine.move_tunnel(&tid, inner);
        moved.map_err(|refused| refusal(refused, inner))
    }

    fn confirm(&mut self, tid: Key, endpoint: Endpoint) {
        self.engine.confirm(&tid, address(endpoint));
    }

    /// Sends the peer its tunnel as a cookie, and forgets it.
    fn put_aside(&mut self, tid: Key, key: &Bound<'_, PyAny>, nonce: [u8; NONCE_LEN], timestamp: u64) -> PyResult<()> {
        let mut place = work()?;
        let sealing = Sealing {
            key: copied(key, &mut place)?,
            nonce: &nonce,
            timestamp,
        };
        self.engine.put_aside(&tid, &sealing);
        Ok(())
    }

    fn next_epoch(&mut self, tid: Key) {
        self.engine.next_epoch(&tid);
    }

    fn expect(&mut self, host: IpAddr) {
        self.engine.expect(host.to_canonical());
    }

    fn set_mtu(&mut self, tid: Key, mtu: u32) {
        self.engine.set_mtu(&tid, mtu);
    }

    fn remove_tunnel(&mut self, tid: Key) {
        self.engine.remove_tunnel(&tid);
    }

    fn hold(&mut self, inner: [u8; 4], report: bool) {
        self.engine.hold(inner, report);
    }

    fn drop_held(&mut self, inner: [u8; 4], unreachable: bool) {
        self.engine.drop_held(inner, unreachable);
    }

    fn send_datagram(&mut self, data: &[u8], endpoint: Endpoint) {
        self.engine.send_datagram(data, address(endpoint));
    }

    #[pyo3(signature = (tid, packet, only=None))]
    fn send_inner(&mut self, tid: Key, packet: &[u8], only: Option<Endpoint>) {
        self.engine.send_inner(&tid, packet, only.map(address));
    }

    /// Does what is due; returns in how many seconds there is something to do next, or infinite.
    fn expire(&mut self) -> f64 {
        self.engine.expire()
    }

    /// What belongs to no tunnel: drops, held addresses, packets, bytes, early packets.
    fn stats(&self) -> (Dropped, usize, usize, usize, usize) {
        let stats = self.engine.stats();
        (
            dropped(&stats.drops),
            stats.held_addresses,
            stats.held_packets,
            stats.held_bytes,
            stats.early_packets,
        )
    }

    /// One dictionary for each tunnel, or for so many: those used last (or made since), or where `idle` is true those
    /// that nothing was heard in, oldest first, then those used the longest ago.
    #[pyo3(signature = (count = None, idle = false))]
    fn tunnels<'py>(&self, py: Python<'py>, count: Option<usize>, idle: bool) -> PyResult<Bound<'py, PyList>> {
        let mut tunnels = self.engine.tunnels();
        if let Some(count) = count {
            if idle {
                let heard = |tunnel: &TunnelStats| tunnel.last_received.is_some();
                tunnels.sort_unstable_by(|a, b| heard(a).cmp(&heard(b)).then(a.used().total_cmp(&b.used())));
            } else {
                tunnels.sort_unstable_by(|a, b| b.used().total_cmp(&a.used()));
            }
            tunnels.truncate(count);
        }
        let list = PyList::empty(py);
        for tunnel in tunnels {
            let item = PyDict::new(py);
            item.set_item("tid", PyBytes::new(py, &tunnel.tid))?;
            item.set_item("inner", PyBytes::new(py, &tunnel.inner))?;
            item.set_item("endpoint", endpoint(tunnel.endpoint))?;
            item.set_item("send_epoch", tunnel.send_epoch)?;
            item.set_item("recv_epoch", tunnel.recv_epoch)?;
            item.set_item("created", tunnel.created)?;
            item.set_item("last_sent", tunnel.last_sent)?;
            item.set_item("last_received", tunnel.last_received)?;
            item.set_item("last_used", tunnel.last_used)?;
            item.set_item("confirmed", tunnel.confirmed)?;
            item.set_item("mtu", tunnel.mtu)?;
            item.set_item("packets_sent", tunnel.packets_sent)?;
            item.set_item("packets_received", tunnel.packets_received)?;
            item.set_item("bytes_sent", tunnel.bytes_sent)?;
            item.set_item("bytes_received", tunnel.bytes_received)?;
            item.set_item("drops", dropped(&tunnel.drops))?;
            list.append(item)?;
        }
        Ok(list)
    }

    /// The state of each offload: on, off (by the settings), unsupported or failed.
    fn offload(&self) -> Vec<(&'static str, &'static str)> {
        let text = |state| match state {
            State::Off => "off",
            State::On => "on",
            State::Unsupported => "unsupported",
            State::Failed => "failed",
        };
        self.engine
            .offload()
            .into_iter()
            .map(|(name, state)| (name, text(state)))
            .collect()
    }

    /// Stops the threads, erases all keys and closes all descriptors.
    fn close(&mut self, py: Python<'_>) {
        py.detach(|| self.engine.close());
    }
}

/// Copies a root or key (bytes-like) to memory that is erased after use, and nowhere else.
fn copied<'a>(given: &Bound<'_, PyAny>, place: &'a mut Work) -> PyResult<&'a Key> {
    let bytes = PyBuffer::<u8>::get(given)?;
    if bytes.item_count() != KEY {
        return Err(PyValueError::new_err("a root or a cookie key has 32 bytes"));
    }
    bytes.copy_to_slice(given.py(), &mut place[..KEY])?;
    Ok(place.first_chunk().expect("there is room for more than one key"))
}

fn refusal(refused: Refused, inner: [u8; 4]) -> PyErr {
    match refused {
        Refused::NotAPeer => PyValueError::new_err(format!("{} cannot stand for a peer", Ipv4Addr::from(inner))),
        Refused::Exists => PyValueError::new_err("this tunnel exists already"),
        Refused::Unknown => PyValueError::new_err("there is no such tunnel"),
        Refused::Closed => PyValueError::new_err("the engine is closed"),
        Refused::System(error) => PyErr::from(error),
    }
}

fn address((ip, port): Endpoint) -> SocketAddr {
    SocketAddr::new(ip.to_canonical(), port)
}

fn endpoint(address: SocketAddr) -> (String, u16) {
    (address.ip().to_string(), address.port())
}

fn dropped(drops: &Drops) -> Dropped {
    drops
        .iter()
        .map(|((reason, errno), count)| (*reason, *errno, *count))
        .collect()
}

/// Key memory in bytes: locked, and not locked because the limit of this process does not allow it.
#[pyfunction]
fn key_memory() -> (usize, usize) {
    secret::memory()
}

/// The bounds that this engine has in common with the other one, by name.
#[pyfunction]
fn bounds() -> Vec<(&'static str, f64)> {
    vec![
        ("RECEIVE_WINDOW", limits::RECEIVE_WINDOW as f64),
        ("SKIPPED_BLOCKS", limits::SKIPPED_BLOCKS as f64),
        ("ALL_BLOCKS", limits::ALL_BLOCKS as f64),
        ("SKIPPED_WHEN_SHORT", limits::SKIPPED_WHEN_SHORT as f64),
        ("EPOCHS_AHEAD", limits::EPOCHS_AHEAD as f64),
        ("BLOCKS_AHEAD", limits::BLOCKS_AHEAD as f64),
        ("FORGED_PRICE", limits::FORGED_PRICE),
        ("AHEAD_BUDGET", limits::AHEAD_BUDGET),
        ("UNCONFIRMED_BYTES", limits::UNCONFIRMED_BYTES),
        ("UNCONFIRMED_RATE", limits::UNCONFIRMED_RATE),
        ("UNCONFIRMED_FACTOR", limits::UNCONFIRMED_FACTOR as f64),
        ("UNCONFIRMED_PREFIX_BYTES", limits::UNCONFIRMED_PREFIX_BYTES),
        ("UNCONFIRMED_PREFIX_RATE", limits::UNCONFIRMED_PREFIX_RATE),
        ("UNCONFIRMED_PREFIX_SLOTS", limits::UNCONFIRMED_PREFIX_SLOTS as f64),
        ("CONTROL_RATE", limits::CONTROL_RATE),
        ("CONTROL_BURST", limits::CONTROL_BURST),
        ("HELD_PACKETS_PER_PEER", limits::HELD_PACKETS_PER_PEER as f64),
        ("HELD_SECONDS", limits::HELD_SECONDS),
        ("HELD_ADDRESSES", limits::HELD_ADDRESSES as f64),
        ("HELD_PACKETS", limits::HELD_PACKETS as f64),
        ("HELD_BYTES", limits::HELD_BYTES as f64),
        ("EARLY_PACKETS", limits::EARLY_PACKETS as f64),
        ("EARLY_PACKETS_PER_TUNNEL", limits::EARLY_PACKETS_PER_TUNNEL as f64),
        ("EARLY_BYTES", limits::EARLY_BYTES as f64),
        ("EARLY_SECONDS", limits::EARLY_SECONDS),
        ("QUEUED_DATAGRAMS", limits::QUEUED_DATAGRAMS as f64),
        ("QUEUED_PEER_EVENTS", limits::QUEUED_PEER_EVENTS as f64),
        ("QUEUED_EVENTS_PER_TUNNEL", limits::QUEUED_EVENTS_PER_TUNNEL as f64),
        ("PREFIX_BURST_SECONDS", limits::PREFIX_BURST_SECONDS),
        ("ALL_BURST_SECONDS", limits::ALL_BURST_SECONDS),
        ("UNEXPECTED_SHARE", limits::UNEXPECTED_SHARE),
        ("IPV4_PREFIX_BYTES", limits::IPV4_PREFIX_BYTES as f64),
        ("IPV6_PREFIX_BYTES", limits::IPV6_PREFIX_BYTES as f64),
        ("PREFIX_SLOTS", limits::PREFIX_SLOTS as f64),
        ("EXPECTED_SECONDS", limits::EXPECTED_SECONDS),
        ("HINTS_PER_SECOND", limits::HINTS_PER_SECOND),
        ("LEAST_MTU", f64::from(limits::LEAST_MTU)),
    ]
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Core>()?;
    module.add_class::<ManualClock>()?;
    module.add_function(wrap_pyfunction!(key_memory, module)?)?;
    module.add_function(wrap_pyfunction!(bounds, module)?)?;
    module.add("NULL_CIPHER", cfg!(feature = "null-cipher"))?;
    Ok(())
}
