use super::*;

fn datagram(number: u16, expected: bool) -> Event {
    Event::Datagram(number.to_be_bytes().to_vec(), "192.0.2.1:9".parse().unwrap(), expected)
}

fn control(number: u16) -> Event {
    let tid = number.to_be_bytes().repeat(16);
    Event::Control(tid.try_into().unwrap(), Vec::new())
}

#[test]
fn one_peer_takes_a_part_only() {
    let events = Events::new().unwrap();
    let mut count = 0;
    while events.put(control(1)) {
        count += 1;
    }
    assert_eq!(count, QUEUED_EVENTS_PER_TUNNEL);
    assert!(events.put(control(2)));
    for number in 3..=400 {
        while events.put(control(number)) {}
    }
    // When half of the room is taken, another is heard still, once.
    assert_eq!([(); 2].map(|()| events.put(control(401))), [true, false]);
    for number in 402..2000 {
        while events.put(control(number)) {}
    }
    assert_eq!(events.take().len(), QUEUED_PEER_EVENTS);
    assert!(events.put(control(1)), "what was taken does not count");
}

#[test]
fn of_a_peer_that_moves_about_the_last_place_counts() {
    let events = Events::new().unwrap();
    while events.put(control(0x0101)) {}
    for port in 1..2000 {
        for peer in [1, 2] {
            assert!(events.put(Event::Roamed([peer; 32], SocketAddr::from(([192, 0, 2, peer], port)))));
        }
    }
    let taken = events.take();
    assert_eq!(taken.len(), QUEUED_EVENTS_PER_TUNNEL + 2);
    for (peer, event) in [1, 2].into_iter().zip(taken.iter().skip(QUEUED_EVENTS_PER_TUNNEL)) {
        assert_eq!(
            *event,
            Event::Roamed([peer; 32], SocketAddr::from(([192, 0, 2, peer], 1999)))
        );
    }
    assert!(events.put(Event::Roamed([1; 32], SocketAddr::from(([192, 0, 2, 1], 7)))));
    assert_eq!(events.take().len(), 1);
}

#[test]
fn expected_datagrams_come_first_and_push_out_others() {
    let events = Events::new().unwrap();
    let all = QUEUED_DATAGRAMS as u16;
    for number in 0..all {
        assert!(events.put(datagram(number, false)));
    }
    assert!(!events.put(datagram(all, true)));
    assert!(!events.put(datagram(all + 1, false)));
    assert!(events.put(Event::Wanted([10, 43, 0, 7])), "another kind");
    let taken = events.take();
    assert_eq!(taken.len(), QUEUED_DATAGRAMS + 1);
    assert_eq!(taken[0], Event::Wanted([10, 43, 0, 7]));
    assert_eq!(taken[1], datagram(all, true));
    assert_eq!(*taken.back().unwrap(), datagram(all + 1, false), "the newest stays");
    for number in 0..all {
        assert!(events.put(datagram(number, true)));
    }
    assert!(!events.put(datagram(all, true)), "none of these goes");
    assert_eq!(events.take().len(), QUEUED_DATAGRAMS);
}

/// Who sends much cannot say which of the datagrams before goes: no place stays for sure.
#[test]
fn any_datagram_may_have_to_go() {
    let events = Events::new().unwrap();
    let (all, most) = (QUEUED_DATAGRAMS as u16, 60_000);
    for number in 0..most {
        let _ = events.put(datagram(number, false));
    }
    let kept: Vec<_> = events.take().into();
    assert_eq!(kept.len(), QUEUED_DATAGRAMS);
    let of_the_latest = kept
        .iter()
        .filter(|event| (most - all..most).any(|number| **event == datagram(number, false)))
        .count();
    assert!((1..QUEUED_DATAGRAMS).contains(&of_the_latest));
}
