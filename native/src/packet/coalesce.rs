//! Joins packets of one flow, so that many reach the kernel with one write (as its own GRO does, net/ipv4/tcp_offload.c).
//!
//! Only what the kernel could cut again into the same packets is joined. Runs come out in the order of their first
//! packets, and packets of one flow keep their order: what cannot join the run of its flow ends it.

use super::checksum::{complement, fold, minus, sum};
use super::flow::{flow_of, Candidate, Flow, Place, ENDS_RUN, TCP_FLAGS_AT};
use super::inner::{Delivery, Kind};
use super::segment::{VnetHeader, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM, VNET_HEADER_BYTES};
use super::{
    long, put, word, DONT_FRAGMENT, IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, TCP, TCP_CHECKSUM_AT, TCP_HEADER_BYTES, UDP,
    UDP_CHECKSUM_AT,
};

/// Runs and packets that are held at most before the caller writes them and clears.
pub const MOST_RUNS: usize = 256;
pub const MOST_PACKETS: usize = 1024;
/// Packets in one run at most: a writev of as many pieces, and as many segments as the kernel accepts of UDP.
pub const MOST_PIECES: usize = 64;
const MOST_BYTES: usize = 65535;
const MOST_HEADER_BYTES: usize = IPV6_HEADER_BYTES + 60;
const HEAD_BYTES: usize = VNET_HEADER_BYTES + MOST_HEADER_BYTES;
/// A power of two. Two flows that meet in one slot only join less.
const SLOTS: usize = 512;
const NONE: u16 = u16::MAX;

/// There is no room for the packet: write what is held, clear, and add it again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

#[derive(Clone, Copy, Debug)]
struct Packet {
    start: usize,
    delivery: Delivery,
    /// The next one of the same run.
    next: u16,
}

#[derive(Clone, Copy, Debug)]
struct State {
    flow: Flow,
    first: u16,
    last: u16,
    count: u16,
    /// Bytes of both headers.
    headers: usize,
    /// Bytes of payload in the first packet.
    size: usize,
    /// Bytes of both headers and of all payload.
    total: usize,
    sequence: u32,
    identification: u16,
    /// Sums of what does not change when packets join: the IPv4 header without its length and checksum, and the
    /// pseudo-header without its length.
    ip_sum: u64,
    pseudo_sum: u64,
    /// The virtio header, and where packets have joined the headers of the whole.
    head: [u8; HEAD_BYTES],
}

/// Packets of a batch, joined to runs.
///
/// All packets lie in one arena that stays as it is until `clear`. They are as `Inbound::deliver` made them with partial
/// checksums.
pub struct Coalescer {
    tso: bool,
    uso: bool,
    packets: Vec<Packet>,
    runs: Vec<State>,
    /// The run that the next packet of a flow can join; NONE where there is none.
    slots: [u16; SLOTS],
}

impl Coalescer {
    /// `tso` and `uso` say whether the kernel takes large packets of TCP and of UDP.
    pub fn new(tso: bool, uso: bool) -> Self {
        Self {
            tso,
            uso,
            packets: Vec::with_capacity(MOST_PACKETS),
            runs: Vec::with_capacity(MOST_RUNS),
            slots: [NONE; SLOTS],
        }
    }

    /// Adds the packet that begins at `start` in the arena. One that does not lie within the arena is ignored.
    ///
    /// Returns `Full`, with nothing changed, when there is no room.
    #[inline]
    pub fn add(&mut self, arena: &[u8], start: usize, delivery: &Delivery) -> Result<(), Full> {
        let Some(packet) = arena.get(start..).and_then(|rest| rest.get(..delivery.len)) else {
            return Ok(());
        };
        if self.packets.len() >= MOST_PACKETS || self.runs.len() >= MOST_RUNS {
            return Err(Full);
        }
        let entry = Packet {
            start,
            delivery: *delivery,
            next: NONE,
        };
        let flow = match flow_of(packet) {
            Place::Flow(flow) => flow,
            Place::Fragment => {
                self.slots.fill(NONE);
                self.begin(entry, Flow::default(), None);
                return Ok(());
            }
            Place::Elsewhere => {
                self.begin(entry, Flow::default(), None);
                return Ok(());
            }
        };
        let candidate = Candidate::of(packet, delivery.kind, &flow, self.tso, self.uso);
        let Some(slot) = self.slots.get_mut(flow.slot(SLOTS)) else {
            return Ok(());
        };
        let state = self.runs.get_mut(usize::from(*slot)).filter(|state| state.flow == flow);
        let same_flow = state.is_some();
        if let (Some(state), Some(candidate)) = (state, candidate) {
            if state.accepts(packet, &candidate) {
                let index = self.packets.len() as u16;
                if let Some(last) = self.packets.get_mut(usize::from(state.last)) {
                    last.next = index;
                }
                self.packets.push(entry);
                state.join(packet, &candidate, index);
                if candidate.ends_run || candidate.payload < state.size || usize::from(state.count) >= MOST_PIECES {
                    *slot = NONE;
                }
                return Ok(());
            }
        }
        if candidate.is_some_and(|candidate| !candidate.ends_run) {
            *slot = self.runs.len() as u16;
        } else if same_flow {
            *slot = NONE;
        }
        self.begin(entry, flow, candidate.map(|candidate| (packet, candidate)));
        Ok(())
    }

    /// The runs, in the order of their first packets.
    pub fn runs(&self) -> impl Iterator<Item = Run<'_>> {
        self.runs.iter().map(|state| Run {
            state,
            packets: &self.packets,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Forgets all runs; after this the arena may change.
    pub fn clear(&mut self) {
        self.packets.clear();
        self.runs.clear();
        self.slots.fill(NONE);
    }

    /// Begins a run with a packet; others can join it if it is a candidate.
    #[inline]
    fn begin(&mut self, entry: Packet, flow: Flow, candidate: Option<(&[u8], Candidate)>) {
        let index = self.packets.len() as u16;
        let mut state = State {
            flow,
            first: index,
            last: index,
            count: 1,
            headers: 0,
            size: 0,
            total: 0,
            sequence: 0,
            identification: 0,
            ip_sum: 0,
            pseudo_sum: 0,
            head: [0; HEAD_BYTES],
        };
        put(&mut state.head, 0, VnetHeader::single(entry.delivery.kind).to_bytes());
        if let Some((packet, candidate)) = candidate {
            state.prepare(packet, &candidate);
        }
        self.packets.push(entry);
        self.runs.push(state);
    }
}

impl VnetHeader {
    /// The header of a packet that `Inbound::deliver` made with partial checksums, written by itself.
    #[inline]
    pub fn single(kind: Kind) -> Self {
        let (csum_start, csum_offset) = match kind {
            Kind::Tcp { transport } => (transport, TCP_CHECKSUM_AT as u16),
            Kind::Udp { transport } => (transport, UDP_CHECKSUM_AT as u16),
            Kind::Other => return Self::default(),
        };
        Self {
            flags: NEEDS_CSUM,
            csum_start,
            csum_offset,
            ..Self::default()
        }
    }
}

impl State {
    /// Keeps what packets have to agree with in order to join this one.
    #[inline]
    fn prepare(&mut self, packet: &[u8], candidate: &Candidate) {
        let place = self
            .head
            .get_mut(VNET_HEADER_BYTES..VNET_HEADER_BYTES + candidate.headers);
        let (Some(place), Some(headers)) = (place, packet.get(..candidate.headers)) else {
            return;
        };
        place.copy_from_slice(headers);
        self.headers = candidate.headers;
        self.size = candidate.payload;
        self.total = candidate.headers + candidate.payload;
        self.sequence = long(packet, usize::from(self.flow.ip) + 4).wrapping_add(candidate.payload as u32);
        self.identification = word(packet, 4);
    }

    #[inline]
    fn own(&self) -> &[u8] {
        self.head
            .get(VNET_HEADER_BYTES..VNET_HEADER_BYTES + self.headers)
            .unwrap_or(&[])
    }

    /// Whether a packet of the same flow can be the next of this run.
    #[inline]
    fn accepts(&self, packet: &[u8], candidate: &Candidate) -> bool {
        if candidate.headers != self.headers
            || candidate.payload > self.size
            || self.total + candidate.payload > MOST_BYTES
        {
            return false;
        }
        let at = usize::from(self.flow.ip);
        let (Some((ip, transport)), Some((own_ip, own_transport))) =
            (packet.split_at_checked(at), self.own().split_at_checked(at))
        else {
            return false;
        };
        if !self.continues(ip, own_ip) {
            return false;
        }
        if self.flow.protocol == UDP {
            return true;
        }
        let (Some((fixed, options)), Some((own_fixed, own_options))) = (
            transport.split_first_chunk::<TCP_HEADER_BYTES>(),
            own_transport.split_first_chunk::<TCP_HEADER_BYTES>(),
        ) else {
            return false;
        };
        long(fixed, 4) == self.sequence
            && fixed[8..13] == own_fixed[8..13] // acknowledgement, header length
            && (fixed[TCP_FLAGS_AT] ^ own_fixed[TCP_FLAGS_AT]) & !ENDS_RUN == 0
            && fixed[14..16] == own_fixed[14..16] // window
            && fixed[18..20] == own_fixed[18..20]
            && options.get(..own_options.len()) == Some(own_options)
    }

    /// Whether an IP header can follow those of this run. Protocol and IPv4 addresses are those of the flow.
    #[inline]
    fn continues(&self, ip: &[u8], own: &[u8]) -> bool {
        if let (Some(ip), Some(own)) = (
            ip.first_chunk::<IPV6_HEADER_BYTES>(),
            own.first_chunk::<IPV6_HEADER_BYTES>(),
        ) {
            return ip[..4] == own[..4] && ip[7..] == own[7..]; // traffic class, flow label; hop limit, addresses
        }
        let (Some(ip), Some(own)) = (
            ip.first_chunk::<IPV4_HEADER_BYTES>(),
            own.first_chunk::<IPV4_HEADER_BYTES>(),
        ) else {
            return false;
        };
        // type of service, flags, time to live
        ip[1] == own[1]
            && ip[6..9] == own[6..9]
            && (word(ip, 6) & DONT_FRAGMENT != 0 || word(ip, 4) == self.identification.wrapping_add(self.count))
    }

    /// Appends a packet that was accepted, and makes the headers those of the whole.
    #[inline]
    fn join(&mut self, packet: &[u8], candidate: &Candidate, index: u16) {
        let Some((vnet, headers)) = self.head.split_first_chunk_mut::<VNET_HEADER_BYTES>() else {
            return;
        };
        let tcp = self.flow.protocol == TCP;
        let at = usize::from(self.flow.ip);
        let ipv4 = at == IPV4_HEADER_BYTES;
        let (gso_type, checksum_at) = match (tcp, ipv4) {
            (true, true) => (GSO_TCPV4, TCP_CHECKSUM_AT),
            (true, false) => (GSO_TCPV6, TCP_CHECKSUM_AT),
            (false, _) => (GSO_UDP_L4, UDP_CHECKSUM_AT),
        };
        if self.count == 1 {
            *vnet = VnetHeader {
                flags: NEEDS_CSUM,
                gso_type,
                hdr_len: self.headers as u16,
                gso_size: self.size as u16,
                csum_start: at as u16,
                csum_offset: checksum_at as u16,
            }
            .to_bytes();
            let ip = headers.get(..at).unwrap_or(&[]);
            let addresses = ip.get(if ipv4 { 12 } else { 8 }..).unwrap_or(&[]);
            self.ip_sum = sum(ip) + minus(word(ip, 2)) + minus(word(ip, 10));
            self.pseudo_sum = sum(addresses) + u64::from(self.flow.protocol);
        }
        self.last = index;
        self.count += 1;
        self.total += candidate.payload;
        self.sequence = self.sequence.wrapping_add(candidate.payload as u32);
        let length = self.total - at;
        if ipv4 {
            put(headers, 2, (self.total as u16).to_be_bytes());
            put(headers, 10, complement(self.ip_sum + self.total as u64).to_be_bytes());
        } else {
            put(headers, 4, (length as u16).to_be_bytes());
        }
        let partial = fold(self.pseudo_sum + length as u64);
        put(headers, at + checksum_at, partial.to_be_bytes());
        if !tcp {
            put(headers, at + 4, (length as u16).to_be_bytes());
        } else if let (Some(own), Some(flags)) = (headers.get_mut(at + TCP_FLAGS_AT), packet.get(at + TCP_FLAGS_AT)) {
            *own |= flags & ENDS_RUN;
        }
    }
}

/// What is written at once: the head, then all pieces.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    state: &'a State,
    packets: &'a [Packet],
}

impl<'a> Run<'a> {
    /// The virtio header (10 bytes), followed by the headers of the whole where packets were joined.
    pub fn head(&self) -> &'a [u8] {
        let headers = if self.state.count > 1 { self.state.headers } else { 0 };
        self.state.head.get(..VNET_HEADER_BYTES + headers).unwrap_or(&[])
    }

    /// How many packets there are, and pieces: 1 to 64.
    pub fn count(&self) -> usize {
        usize::from(self.state.count)
    }

    /// What follows the head, as start in the arena and bytes: the payload of each packet, or a single packet whole.
    pub fn pieces(&self) -> impl Iterator<Item = (usize, usize)> + 'a {
        let headers = if self.state.count > 1 { self.state.headers } else { 0 };
        self.packets()
            .map(move |(start, delivery)| (start + headers, delivery.len - headers))
    }

    /// The packets by themselves, for when the kernel does not take the run: each goes behind
    /// `VnetHeader::single(delivery.kind)`.
    pub fn packets(&self) -> impl Iterator<Item = (usize, Delivery)> + 'a {
        let packets = self.packets;
        let mut next = self.state.first;
        std::iter::from_fn(move || {
            let packet = packets.get(usize::from(next))?;
            next = packet.next;
            Some((packet.start, packet.delivery))
        })
    }
}
