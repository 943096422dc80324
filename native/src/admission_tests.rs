use super::*;

const LIMITS: Limits = Limits {
    per_second: 40.0,
    per_prefix: 5.0,
};

fn from(host: &str) -> SocketAddr {
    SocketAddr::new(host.parse().unwrap(), 42423)
}

fn handshake() -> Vec<u8> {
    let mut data = vec![7; HANDSHAKE_BYTES];
    data[..2].copy_from_slice(&HANDSHAKE);
    data
}

/// How many in a row are admitted from this source, and why the next is not.
fn run(admission: &Admission, source: &str, now: f64) -> (usize, &'static str) {
    let mut count = 0;
    loop {
        match admission.admit(&handshake(), from(source), now) {
            Ok(_) => count += 1,
            Err(reason) => return (count, reason),
        }
    }
}

#[test]
fn only_three_shapes_are_known() {
    let admission = Admission::new(Some(LIMITS), 0.0);
    let mut cookie = vec![7; COOKIE];
    cookie[..8].copy_from_slice(COOKIE_PREFIX);
    for good in [handshake(), cookie] {
        let admit = |data: &[u8]| admission.admit(data, from("192.0.2.1"), 0.0);
        assert_eq!(admit(&good), Ok(false));
        assert_eq!(admit(&good[..good.len() - 1]), Err("datagram_unknown"));
        assert_eq!(admit(&[&good[..], &[0]].concat()), Err("datagram_unknown"));
        let mut other = good.clone();
        other[1] ^= 1;
        assert_eq!(admit(&other), Err("datagram_unknown"));
    }
    for bad in [&[][..], &[1], &[3, 0, 0], &[3], &[2, 0], &[255, 255]] {
        assert_eq!(admission.admit(bad, from("192.0.2.1"), 0.0), Err("datagram_unknown"));
    }
}

#[test]
fn a_client_admits_hints_and_a_server_does_not() {
    let client = Admission::new(None, 0.0);
    let server = Admission::new(Some(LIMITS), 0.0);
    let hint = |admission: &Admission, now| admission.admit(&[3, 0], from("192.0.2.1"), now);
    assert_eq!(hint(&server, 0.0), Err("hint_unwanted"));
    assert_eq!(
        client.admit(&handshake(), from("192.0.2.1"), 0.0),
        Err("handshake_unwanted")
    );
    for _ in 0..10 {
        assert_eq!(hint(&client, 0.0), Ok(false));
    }
    assert_eq!(hint(&client, 0.0), Err("hint_limit"));
    assert_eq!(hint(&client, 0.125), Ok(false));
    client.expect("192.0.2.1".parse().unwrap(), 0.0); // nothing to do
}

#[test]
fn a_prefix_takes_no_more_than_its_share() {
    let admission = Admission::new(Some(LIMITS), 0.0);
    admission.expect("192.0.2.200".parse().unwrap(), 0.0);
    admission.expect("2001:db8::1".parse().unwrap(), 0.0);
    // Two seconds' worth, then what comes in with time; of all, a quarter's worth is ten too.
    assert_eq!(run(&admission, "192.0.2.1", 0.0), (10, "handshake_prefix_limit"));
    assert_eq!(run(&admission, "192.0.2.99", 0.0), (0, "handshake_prefix_limit"));
    assert_eq!(run(&admission, "192.0.2.99", 1.0), (5, "handshake_prefix_limit"));
    assert_eq!(run(&admission, "2001:db8:0:ff::1", 2.0), (10, "handshake_prefix_limit"));
    assert_eq!(run(&admission, "2001:db8:0:1::2", 2.0), (0, "handshake_prefix_limit"));
}

#[test]
fn expected_sources_have_a_bucket_of_their_own() {
    let admission = Admission::new(Some(LIMITS), 0.0);
    // A quarter of a second at a quarter of the rate: two and a half.
    assert_eq!(run(&admission, "198.51.100.1", 0.0), (2, "handshake_limit"));
    admission.expect("192.0.2.1".parse().unwrap(), 0.0);
    assert_eq!(admission.admit(&handshake(), from("192.0.2.7"), 0.0), Ok(true));
    assert_eq!(run(&admission, "203.0.113.1", 0.0), (0, "handshake_limit"));
    assert_eq!(run(&admission, "192.0.2.7", 119.0), (10, "handshake_prefix_limit"));
    assert_eq!(admission.admit(&handshake(), from("192.0.2.7"), 120.0), Ok(false));
}

/// Other engines have other keys: who finds two prefixes that share a slot of one knows nothing of another.
#[test]
fn slots_differ_from_engine_to_engine() {
    let slots = || {
        let server = Admission::new(Some(LIMITS), 0.0).server.unwrap();
        let of = |n: u8| server.slots.of(IpAddr::from([192, 0, n, 1]));
        (0..=255).map(of).collect::<Vec<_>>()
    };
    assert_ne!(slots(), slots());
}
