//! Both queues against models that say the same in the plainest way, and their bounds.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn source(n: u16) -> SocketAddr {
    SocketAddr::new(Ipv4Addr::LOCALHOST.into(), n)
}

#[derive(Clone, Debug)]
enum Action {
    /// To or from this one, of this length, so often.
    Add(u8, usize, usize),
    Hold(u16),
    Take(u8),
    Pass(f64),
}

fn action() -> impl Strategy<Value = Action> {
    let length = prop_oneof![20..1500usize, Just(65535)];
    let count = prop_oneof![4 => 1..4usize, 1 => 60..300usize];
    let seconds = prop_oneof![Just(0.4), Just(1.0), Just(29.0), Just(30.0)];
    prop_oneof![
        6 => (0..6u8, length, count).prop_map(|(to, length, count)| Action::Add(to, length, count)),
        2 => (0..1100u16).prop_map(Action::Hold),
        1 => (0..6u8).prop_map(Action::Take),
        1 => seconds.prop_map(Action::Pass),
    ]
}

fn address(n: u16) -> [u8; 4] {
    let [a, b] = n.to_be_bytes();
    [10, 43, a, b]
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn held_packets_are_those_of_the_model(
        actions in prop::collection::vec(action(), 0..60),
        many in prop::bool::weighted(0.1),
    ) {
        let mut held = Held::default();
        let mut model: Vec<([u8; 4], f64, Vec<u8>)> = Vec::new();
        let mut holding: Vec<[u8; 4]> = Vec::new();
        let (mut now, mut number) = (0.0, 0u64);
        let first = (0..if many { HELD_ADDRESSES as u16 } else { 0 }).map(|n| Action::Hold(n + 100));
        for action in first.chain(actions) {
            match action {
                Action::Hold(n) => {
                    let inner = address(n);
                    let there = holding.contains(&inner);
                    let taken = there || holding.len() < HELD_ADDRESSES;
                    prop_assert_eq!(held.hold(inner, n % 3 == 0), taken);
                    if taken && !there {
                        holding.push(inner);
                    }
                    prop_assert_eq!([held.take_report(inner), held.take_report(inner)], [taken && n % 3 == 0, false]);
                }
                Action::Add(to, length, count) => for _ in 0..count {
                    let inner = address(to.into());
                    number += 1;
                    let mut packet = vec![to; length];
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    let bytes: usize = model.iter().map(|(_, _, packet)| packet.len()).sum();
                    let fits = holding.contains(&inner)
                        && model.iter().filter(|(other, _, _)| *other == inner).count() < HELD_PACKETS_PER_PEER
                        && model.len() < HELD_PACKETS
                        && bytes + length <= HELD_BYTES;
                    prop_assert_eq!(held.add(inner, &packet, now), fits);
                    if fits {
                        model.push((inner, now, packet));
                    }
                },
                Action::Take(to) => {
                    let inner = address(to.into());
                    let (taken, rest): (Vec<_>, Vec<_>) = model.into_iter().partition(|(other, _, _)| *other == inner);
                    model = rest;
                    holding.retain(|other| *other != inner);
                    let taken: Vec<_> = taken.into_iter().map(|(_, _, packet)| packet).collect();
                    prop_assert_eq!(held.take(inner), taken);
                    prop_assert!(!held.holds(inner));
                }
                Action::Pass(seconds) => {
                    now += seconds;
                    let before = model.len();
                    model.retain(|(_, since, _)| since + HELD_SECONDS > now);
                    prop_assert_eq!(held.expire(now), (before - model.len()) as u64);
                }
            }
            prop_assert_eq!(held.addresses(), holding.len());
            prop_assert_eq!(held.packets, model.len());
            prop_assert_eq!(held.bytes, model.iter().map(|(_, _, packet)| packet.len()).sum::<usize>());
            let oldest = model.iter().map(|(_, since, _)| *since).fold(f64::INFINITY, f64::min);
            prop_assert_eq!(held.next_deadline(), oldest + HELD_SECONDS);
        }
        held.clear();
        prop_assert_eq!((held.addresses(), held.packets, held.bytes), (0, 0, 0));
    }

    #[test]
    fn early_packets_are_those_of_the_model(actions in prop::collection::vec(action(), 0..60)) {
        let mut early = Early::default();
        let mut model: Vec<(f64, Tid, Vec<u8>, SocketAddr)> = Vec::new();
        let (mut now, mut number) = (0.0, 0u64);
        for action in actions {
            match action {
                Action::Add(from, length, count) => for _ in 0..count {
                    number += 1;
                    let mut packet = vec![from; length];
                    packet[..8].copy_from_slice(&number.to_be_bytes());
                    let tid = [from; 32];
                    let mut dropped = 0;
                    if model.iter().filter(|(_, other, _, _)| *other == tid).count() >= EARLY_PACKETS_PER_TUNNEL {
                        dropped = 1;
                    } else {
                        model.push((now, tid, packet.clone(), source(from.into())));
                        while model.len() > EARLY_PACKETS
                            || model.iter().map(|(_, _, packet, _)| packet.len()).sum::<usize>() > EARLY_BYTES
                        {
                            model.remove(0);
                            dropped += 1;
                        }
                    }
                    prop_assert_eq!(early.add(&tid, &packet, source(from.into()), now), dropped);
                },
                Action::Take(from) => {
                    let tid = [from; 32];
                    let (taken, rest): (Vec<_>, Vec<_>) = model.into_iter().partition(|(_, other, _, _)| *other == tid);
                    model = rest;
                    let taken: Vec<_> = taken.into_iter().map(|(_, _, packet, source)| (packet, source)).collect();
                    prop_assert_eq!(early.take(&tid), taken);
                }
                Action::Pass(seconds) => {
                    now += seconds;
                    let before = model.len();
                    model.retain(|(arrived, _, _, _)| arrived + EARLY_SECONDS > now);
                    prop_assert_eq!(early.expire(now), (before - model.len()) as u64);
                }
                Action::Hold(_) => {}
            }
            prop_assert_eq!(early.packets(), model.len());
            prop_assert_eq!(early.bytes, model.iter().map(|(_, _, packet, _)| packet.len()).sum::<usize>());
            let counted: usize = early.counts.values().sum();
            prop_assert_eq!(counted, model.len());
            let oldest = model.first().map_or(f64::INFINITY, |(arrived, _, _, _)| arrived + EARLY_SECONDS);
            prop_assert_eq!(early.next_deadline(), oldest);
        }
        early.clear();
        prop_assert_eq!((early.packets(), early.bytes), (0, 0));
    }
}

#[test]
fn a_datagram_longer_than_all_there_is_room_for() {
    let mut early = Early::default();
    assert_eq!(early.add(&[1; 32], &[0; 100], source(1), 0.0), 0);
    assert_eq!(early.add(&[2; 32], &vec![0; EARLY_BYTES + 1], source(1), 0.0), 1);
    assert_eq!(early.packets(), 1);
    assert_eq!(early.add(&[2; 32], &vec![0; EARLY_BYTES], source(1), 0.0), 1);
    assert_eq!((early.packets(), early.bytes), (1, EARLY_BYTES));
}
