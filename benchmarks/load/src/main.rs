//! pqtun-load FROM TO PORT: one end of each socket in network namespace FROM, the other in TO (names of `ip netns`).
//!
//! Each line of input is an order, answered by one line of JSON:
//!
//!     udp ADDRESS COUNT SIZE SEGMENTS RATE WINDOW SECONDS
//!         UDP packets of SIZE bytes (IP header included), SEGMENTS with one call to each of COUNT addresses in turn, from
//!         ADDRESS on; RATE a second in all, with at most WINDOW on their way; 0: no limit
//!     tcp ADDRESS COUNT STREAMS SECONDS
//!         STREAMS connections, spread over the addresses, from FROM to TO, all sending whenever they can
//!
//! The time to empty the queues is granted after the last packet; what has not arrived then counts as lost.

mod net;
mod tcp;
mod udp;

use std::io::{BufRead, Write};
use std::net::Ipv4Addr;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [from, to, port] = arguments.as_slice() else {
        eprintln!("usage: pqtun-load FROM TO PORT");
        std::process::exit(2);
    };
    if let Err(error) = serve(from, to, port) {
        eprintln!("pqtun-load: {error}");
        std::process::exit(1);
    }
}

fn serve(from: &str, to: &str, port: &str) -> Result<(), Box<dyn std::error::Error>> {
    net::raise_file_limit();
    let (from, to, port) = (
        net::Namespace::open(from)?,
        net::Namespace::open(to)?,
        port.parse()?,
    );
    let mut out = std::io::stdout();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["udp", address, count, size, segments, rate, window, seconds] => udp::run(
                &from,
                &to,
                &addresses(address, count, port)?,
                &udp::Load {
                    size: size.parse()?,
                    segments: segments.parse()?,
                    rate: rate.parse()?,
                    window: window.parse()?,
                    seconds: seconds.parse()?,
                },
            )?,
            ["tcp", address, count, streams, seconds] => tcp::run(
                &from,
                &to,
                &addresses(address, count, port)?,
                streams.parse()?,
                seconds.parse()?,
            )?,
            _ => return Err(format!("no such order: {line}").into()),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn addresses(
    first: &str,
    count: &str,
    port: u16,
) -> Result<Vec<libc::sockaddr_in>, Box<dyn std::error::Error>> {
    let first: u32 = first.parse::<Ipv4Addr>()?.into();
    let count: u32 = count.parse()?;
    Ok((0..count)
        .map(|i| net::address((first + i).into(), port))
        .collect())
}
