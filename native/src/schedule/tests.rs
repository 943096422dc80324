//! The schedules against known answers, and against a model that derives every key beforehand.

use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::crypto::{expand, Cipher};
use crate::limits::{AHEAD_BUDGET, BLOCKS_AHEAD, EPOCHS_AHEAD, FORGED_PRICE, RECEIVE_WINDOW, SKIPPED_BLOCKS};
use crate::tunnel::{HEADER, TAG};

const ROOT: Key = [9; KEY];
const ALL_UNUSED: u32 = (1 << KEYS_PER_BLOCK) - 1;
const WINDOW: u32 = RECEIVE_WINDOW as u32;

/// Miri interprets every instruction.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases: if cfg!(miri) { 2 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    let text = value.as_str().unwrap().as_bytes();
    let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
    text.chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn key(value: &Value) -> Key {
    bytes(value).try_into().unwrap()
}

fn vectors() -> Vec<Value> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors/tunnel.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// All packet keys of one direction, from the definitions in doc/protocol.md section 6.
#[derive(Default)]
struct Eager {
    chains: Vec<Key>,
    next_root: Option<Key>,
    /// By epoch: its chain key after so many blocks, and their keys.
    keys: Vec<(Key, Vec<Key>)>,
}

impl Eager {
    fn key(&mut self, root: &Key, epoch: usize, counter: usize) -> Key {
        while self.chains.len() <= epoch {
            let from = self.next_root.unwrap_or(*root);
            let mut both = [0; 2 * KEY];
            expand(&from, &mut both);
            self.next_root = Some(*key_at(&both, 0));
            self.chains.push(*key_at(&both, 1));
            self.keys.push((*key_at(&both, 1), Vec::new()));
        }
        let (chain, keys) = &mut self.keys[epoch];
        while keys.len() <= counter {
            let mut stream = [0; KEY + BLOCK];
            expand(chain, &mut stream);
            *chain = *key_at(&stream, 0);
            keys.extend((1..=KEYS_PER_BLOCK).map(|n| *key_at(&stream, n)));
        }
        keys[counter]
    }
}

// -- known answers --------------------------------------------------------------------------------------

#[test]
fn known_packet_keys() {
    for case in vectors() {
        let mut schedule = SendSchedule::new(&key(&case["send_root"]), 0, 0.0).unwrap();
        let mut receiver = ReceiveSchedule::new(&key(&case["send_root"]), 0, 0.0).unwrap();
        let mut work = work().unwrap();
        for (epoch, known) in case["send_schedule"].as_array().unwrap().iter().enumerate() {
            let now = 30.0 * epoch as f64;
            schedule.advance(now).unwrap();
            assert_eq!(usize::from(schedule.epoch), epoch);
            let known: Vec<Key> = known["packet_keys"].as_array().unwrap().iter().map(key).collect();
            let mut keys = vec![0; known.len() * KEY];
            // 7 at a time: neither blocks nor calls end together
            for (n, part) in keys.chunks_mut(7 * KEY).enumerate() {
                let count = part.len() / KEY;
                assert_eq!(schedule.take_keys(count, part), (7 * n as u32, count));
            }
            assert_eq!(keys, known.concat());
            for (counter, known) in known.iter().enumerate().rev() {
                let opened = receiver.receive(epoch as u16, counter as u32, now, &mut work, |key| key == known);
                assert_eq!(opened, Ok(()));
            }
        }
    }
}

#[test]
fn known_datagrams() {
    let mut cipher = Cipher::new();
    let mut work = work().unwrap();
    for case in vectors() {
        let mut receiver = ReceiveSchedule::new(&key(&case["send_root"]), 0, 0.0).unwrap();
        for packet in case["datagrams"].as_array().unwrap() {
            let mut datagram = bytes(&packet["datagram"]);
            let epoch = u16::from_be_bytes([datagram[34], datagram[35]]);
            let counter = u32::from_be_bytes(datagram[36..HEADER].try_into().unwrap());
            let (header, rest) = datagram.split_at_mut(HEADER);
            let (text, tag) = rest.split_at_mut(rest.len() - TAG);
            let tag: &[u8; TAG] = (&*tag).try_into().unwrap();
            let now = 30.0 * f64::from(epoch);
            let opened = receiver.receive(epoch, counter, now, &mut work, |key| {
                cipher.open(key, header, text, tag)
            });
            assert_eq!(opened, Ok(()));
            assert_eq!(text, bytes(&packet["plaintext"]));
        }
    }
}

// -- sending --------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Sending {
    Take(usize),
    Pass(f64),
    Follow(u16),
}

fn sending() -> impl Strategy<Value = Sending> {
    prop_oneof![
        4 => prop_oneof![0..4usize, Just(17), Just(18), Just(19), 0..80usize].prop_map(Sending::Take),
        2 => prop_oneof![Just(0.0), Just(29.0), Just(30.0), 0.0..100.0].prop_map(Sending::Pass),
        1 => (0..4u16).prop_map(Sending::Follow),
    ]
}

proptest! {
    #![proptest_config(config(200))]

    #[test]
    fn each_key_is_handed_out_once(actions in prop::collection::vec(sending(), 0..30)) {
        let mut schedule = SendSchedule::new(&ROOT, 0, 0.0).unwrap();
        let mut eager = Eager::default();
        let (mut now, mut epoch, mut counter, mut expires) = (0.0, 0, 0, 30.0);
        for action in actions {
            match action {
                Sending::Take(count) => {
                    let mut keys = vec![0; count * KEY];
                    prop_assert_eq!(schedule.take_keys(count, &mut keys), (counter as u32, count));
                    for taken in keys.chunks(KEY) {
                        prop_assert_eq!(taken, &eager.key(&ROOT, epoch, counter)[..]);
                        counter += 1;
                    }
                }
                Sending::Pass(seconds) => {
                    now += seconds;
                    schedule.advance(now).unwrap();
                    while now >= expires {
                        (epoch, counter, expires) = (epoch + 1, 0, expires + 30.0);
                    }
                }
                Sending::Follow(ahead) => {
                    schedule.step_up_to(epoch as u16 + ahead, now).unwrap();
                    for _ in 0..ahead {
                        (epoch, counter, expires) = (epoch + 1, 0, f64::min(now, expires) + 30.0);
                    }
                }
            }
            prop_assert_eq!(usize::from(schedule.epoch), epoch);
            // What was handed out is not kept.
            let used = &schedule.secrets[2 * KEY..2 * KEY + schedule.used.min(KEYS_PER_BLOCK) * KEY];
            prop_assert!(used.iter().all(|byte| *byte == 0));
        }
    }
}

#[test]
fn counters_and_epochs_end() {
    let mut schedule = SendSchedule::new(&ROOT, 0, 0.0).unwrap();
    schedule.counter = (1 << 32) - 3;
    let mut keys = [0; 10 * KEY];
    assert_eq!(schedule.take_keys(10, &mut keys), (u32::MAX - 2, 3));
    assert_eq!(keys[3 * KEY..], [0; 7 * KEY]);
    schedule.advance(10.0).unwrap();
    assert_eq!(schedule.take_keys(1, &mut keys), (0, 1));
    assert_eq!(keys[..KEY], Eager::default().key(&ROOT, 1, 0));
    schedule.advance(39.0).unwrap();
    assert_eq!(schedule.epoch, 1);
    schedule.advance(40.0).unwrap();
    assert_eq!(schedule.epoch, 2);
    schedule.epoch = LAST_EPOCH;
    assert_eq!(schedule.advance(69.0), Ok(()));
    assert_eq!(schedule.advance(70.0), Err("epoch_end"));
    schedule.counter = 1 << 32;
    assert_eq!(schedule.advance(69.0), Err("epoch_end"));
    schedule.erase();
    assert_eq!(*schedule.secrets, [0; 2 * KEY + BLOCK]);
    assert_eq!(schedule.advance(0.0), Err("dead"));
}

// -- receiving ------------------------------------------------------------------------------------------

struct ModelEpoch {
    came_up: f64,
    expected: u32,
    /// Blocks derived so far; which of them hold which unused keys.
    derived: u32,
    blocks: BTreeMap<u32, u32>,
}

/// What the receiving side is to do, said once more, without secrets.
struct Model {
    epochs: BTreeMap<u16, ModelEpoch>,
    newest: u16,
    left: f64,
    since: f64,
}

impl Model {
    fn new() -> Self {
        let mut model = Model {
            epochs: BTreeMap::new(),
            newest: 0,
            left: AHEAD_BUDGET,
            since: 0.0,
        };
        model.come_up(0, 0.0);
        model
    }

    fn come_up(&mut self, number: u16, now: f64) {
        let epoch = ModelEpoch {
            came_up: now,
            expected: 0,
            derived: 0,
            blocks: BTreeMap::new(),
        };
        self.epochs.insert(number, epoch);
        self.newest = number;
        while self.epochs.len() > MAX_EPOCHS {
            self.epochs.pop_first();
        }
    }

    fn receive(&mut self, number: u16, counter: u32, now: f64, genuine: bool) -> Result<(), Refused> {
        let block = counter / 18;
        let there = self.epochs.get(&number);
        if there.is_none() {
            if self.epochs.is_empty() {
                return Err("dead");
            }
            if number < self.newest {
                return Err("old_epoch");
            }
            if number > self.newest + EPOCHS_AHEAD as u16 {
                return Err("epoch_ahead");
            }
        }
        if counter >= there.map_or(0, |epoch| epoch.expected) + WINDOW {
            return Err("counter_ahead");
        }
        let derived = there.map_or(0, |epoch| epoch.derived);
        if block < derived {
            let unused = there.and_then(|epoch| epoch.blocks.get(&block)).copied().unwrap_or(0);
            if unused & 1 << (counter % 18) == 0 {
                return Err("replay");
            }
        } else if block - derived > BLOCKS_AHEAD {
            self.left = AHEAD_BUDGET.min(self.left + (now - self.since) * AHEAD_BUDGET);
            self.since = now;
            let blocks = f64::from(block - derived);
            if self.left < blocks {
                return Err("ahead_budget");
            }
            self.left -= if genuine { blocks } else { blocks * FORGED_PRICE };
        }
        if !genuine {
            return Err("authentication");
        }
        while self.newest < number {
            self.come_up(self.newest + 1, now);
        }
        let epoch = self.epochs.get_mut(&number).unwrap();
        while epoch.derived <= block {
            epoch.blocks.insert(epoch.derived, ALL_UNUSED);
            epoch.derived += 1;
        }
        epoch.expected = epoch.expected.max(counter + 1);
        let unused = epoch.blocks.get_mut(&block).unwrap();
        *unused &= !(1 << (counter % 18));
        if *unused == 0 {
            epoch.blocks.remove(&block);
        }
        while self.kept() > SKIPPED_BLOCKS {
            let oldest = self.epochs.values_mut().find(|epoch| !epoch.blocks.is_empty()).unwrap();
            oldest.blocks.pop_first();
        }
        Ok(())
    }

    fn kept(&self) -> usize {
        self.epochs.values().map(|epoch| epoch.blocks.len()).sum()
    }

    fn expire(&mut self, now: f64) {
        self.epochs.retain(|_, epoch| epoch.came_up + 120.0 > now);
    }
}

/// Everything that a refused packet may not change.
fn snapshot(schedule: &ReceiveSchedule) -> Vec<u8> {
    let mut all = schedule.secrets.to_vec();
    all.extend(schedule.newest.to_be_bytes());
    all.extend(schedule.deadline.to_be_bytes());
    for epoch in &schedule.epochs {
        all.extend(epoch.number.to_be_bytes());
        all.push(epoch.place);
        all.extend(epoch.came_up.to_be_bytes());
        all.extend(epoch.expected.to_be_bytes());
        all.extend(epoch.derived.to_be_bytes());
        for block in &epoch.blocks {
            all.extend(block.number.to_be_bytes());
            all.extend(block.unused.to_be_bytes());
            all.extend(&*block.keys);
        }
    }
    all
}

/// Keys are there for what is unused, and for nothing else.
fn check(schedule: &ReceiveSchedule, model: &Model, eager: &mut Eager) {
    assert_eq!(schedule.newest, model.newest);
    assert_eq!(schedule.dead(), model.epochs.is_empty());
    let oldest = model.epochs.values().next().map(|epoch| epoch.came_up);
    assert_eq!(schedule.deadline, oldest.unwrap_or(f64::INFINITY) + 120.0);
    assert_eq!(schedule.epochs.len(), model.epochs.len());
    let mut places = [false; MAX_EPOCHS];
    for (epoch, (number, expected)) in schedule.epochs.iter().zip(&model.epochs) {
        places[usize::from(epoch.place)] = true;
        assert_eq!(epoch.number, *number);
        assert_eq!(epoch.expected, u64::from(expected.expected));
        assert_eq!(epoch.derived, expected.derived);
        let blocks: Vec<_> = epoch.blocks.iter().map(|block| (block.number, block.unused)).collect();
        assert_eq!(blocks, expected.blocks.clone().into_iter().collect::<Vec<_>>());
        for block in &epoch.blocks {
            for n in 0..KEYS_PER_BLOCK {
                let known = if block.unused & 1 << n == 0 {
                    [0; KEY]
                } else {
                    eager.key(&ROOT, usize::from(*number), block.number as usize * KEYS_PER_BLOCK + n)
                };
                assert_eq!(*key_at(&*block.keys, n), known);
            }
        }
    }
    for (place, used) in places.iter().enumerate() {
        assert!(
            *used || *key_at(&*schedule.secrets, 1 + place) == [0; KEY],
            "an old chain key"
        );
    }
    assert!(!schedule.dead() || schedule.secrets.iter().all(|byte| *byte == 0));
}

#[derive(Clone, Debug)]
enum Receiving {
    /// Epoch from the newest, counter from the one that is expected there, whether it is genuine.
    Packet(i32, i64, bool),
    Pass(f64),
    Step,
}

fn receiving() -> impl Strategy<Value = Receiving> {
    let epoch = prop_oneof![6 => Just(0), 2 => Just(1), 2 => -5..0, 1 => 2..=6];
    let window = i64::from(WINDOW);
    let counter = prop_oneof![
        6 => 0..3i64,
        4 => -60..60i64,
        1 => 550..620i64,
        2 => prop_oneof![Just(window - 1), Just(window), Just(window - 2), Just(window - 18)],
        1 => -5000..window,
        1 => Just(i64::from(u32::MAX)),
    ];
    let passed = prop_oneof![Just(0.1), Just(1.0), Just(29.0), Just(31.0), Just(119.0), Just(121.0)];
    prop_oneof![
        20 => (epoch, counter, prop::bool::weighted(0.8)).prop_map(|(e, c, g)| Receiving::Packet(e, c, g)),
        2 => passed.prop_map(Receiving::Pass),
        1 => Just(Receiving::Step),
    ]
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn receiving_does_what_the_model_says(actions in prop::collection::vec(receiving(), 1..40)) {
        let mut schedule = ReceiveSchedule::new(&ROOT, 0, 0.0).unwrap();
        let (mut model, mut eager) = (Model::new(), Eager::default());
        let mut work = work().unwrap();
        let mut now = 0.0;
        for (step, action) in actions.into_iter().enumerate() {
            match action {
                Receiving::Packet(epoch, counter, genuine) => {
                    let number = (i32::from(model.newest) + epoch).max(0) as u16;
                    let expected = model.epochs.get(&number).map_or(0, |epoch| epoch.expected);
                    let counter = (i64::from(expected) + counter).clamp(0, i64::from(u32::MAX)) as u32;
                    let before = snapshot(&schedule);
                    let mut tried = None;
                    let result = schedule.receive(number, counter, now, &mut work, |key| {
                        tried = Some(*key);
                        genuine
                    });
                    prop_assert_eq!(result, model.receive(number, counter, now, genuine));
                    if let Some(tried) = tried {
                        prop_assert_eq!(tried, eager.key(&ROOT, number.into(), counter as usize));
                    }
                    prop_assert_eq!(tried.is_some(), matches!(result, Ok(()) | Err("authentication")));
                    prop_assert!(result.is_ok() || snapshot(&schedule) == before, "a refused packet left traces");
                    prop_assert!(work.iter().all(|byte| *byte == 0));
                }
                Receiving::Pass(seconds) => {
                    now += seconds;
                    schedule.expire(now);
                    model.expire(now);
                }
                Receiving::Step => {
                    let dead = model.epochs.is_empty();
                    prop_assert_eq!(schedule.step(now), if dead { Err("dead") } else { Ok(()) });
                    if !dead {
                        model.come_up(model.newest + 1, now);
                    }
                }
            }
            prop_assert!(model.kept() <= SKIPPED_BLOCKS);
            if step % 8 == 0 {
                check(&schedule, &model, &mut eager);
            }
        }
        check(&schedule, &model, &mut eager);
        schedule.erase();
        prop_assert!(schedule.dead() && schedule.secrets.iter().all(|byte| *byte == 0));
    }
}

#[test]
fn the_last_epoch() {
    let mut schedule = ReceiveSchedule::new(&ROOT, 0, 0.0).unwrap();
    let mut work = work().unwrap();
    schedule.newest = LAST_EPOCH - 1;
    schedule.epochs[0].number = LAST_EPOCH - 1;
    assert_eq!(schedule.receive(LAST_EPOCH, 0, 0.0, &mut work, |_| true), Ok(()));
    assert_eq!(schedule.receive(0, 0, 0.0, &mut work, |_| true), Err("old_epoch"));
    assert_eq!(schedule.step(0.0), Err("epoch_end"));
    assert_eq!(schedule.newest, LAST_EPOCH);
}

#[test]
fn forged_packets_far_ahead_are_bounded() {
    let mut schedule = ReceiveSchedule::new(&ROOT, 0, 0.0).unwrap();
    let mut work = work().unwrap();
    let mut derived = 0;
    while schedule.receive(0, WINDOW - 1, 0.0, &mut work, |_| false) == Err("authentication") {
        derived += 1;
        assert!(derived < 1000);
    }
    let each = f64::from((WINDOW - 1) / 18) * FORGED_PRICE;
    assert_eq!(derived, (AHEAD_BUDGET / each).ceil() as u32);
    let near = BLOCKS_AHEAD * 18;
    let mut receive = |counter, now, genuine| schedule.receive(0, counter, now, &mut work, |_| genuine);
    assert_eq!(receive(WINDOW - 1, 0.0, true), Err("ahead_budget"));
    assert_eq!(receive(near, 0.0, false), Err("authentication"));
    assert_eq!(receive(near, 0.0, true), Ok(()));
    assert_eq!(receive(WINDOW - 1, 1.0, true), Ok(()));
}

#[test]
fn a_tunnel_that_loses_half_of_very_many_packets_goes_on() {
    let mut schedule = ReceiveSchedule::new(&ROOT, 0, 0.0).unwrap();
    let mut work = work().unwrap();
    let (mut counter, mut now) = (0, 0.0);
    while now < 10.0 {
        for n in 0..512 {
            let opened = schedule.receive(0, counter + n, now, &mut work, |_| true);
            assert_eq!(opened, Ok(()), "after {now} s");
        }
        counter += 1024;
        now += 1024e-6; // a million packets a second
    }
}
