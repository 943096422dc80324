//! What hostile peers can hoard in late packets' keys, in a process of its own, because the pool is one for all tunnels.

use _native::limits::{ALL_BLOCKS, SKIPPED_BLOCKS, SKIPPED_WHEN_SHORT};
use _native::schedule::{work, ReceiveSchedule, KEYS_PER_BLOCK};

#[test]
fn many_tunnels_together_keep_a_bounded_number_of_skipped_keys() {
    let mut work = work().unwrap();
    let last = (SKIPPED_BLOCKS * KEYS_PER_BLOCK - 1) as u32;
    let mut kept = 0;
    let mut schedules = Vec::new();
    for number in 0..ALL_BLOCKS / SKIPPED_BLOCKS + 50 {
        let mut schedule = ReceiveSchedule::new(&[7; 32], 0, 0.0).unwrap();
        schedule.receive(0, last, 0.0, &mut work, |_| true).unwrap();
        kept += schedule.blocks();
        if number > ALL_BLOCKS / SKIPPED_BLOCKS + 1 {
            assert_eq!(schedule.blocks(), SKIPPED_WHEN_SHORT);
            let before = schedule.receive(0, last - 1, 0.0, &mut work, |_| true);
            assert_eq!(before, Ok(()), "what is a little late still comes in");
        } else if number < 2 {
            assert_eq!(schedule.blocks(), SKIPPED_BLOCKS);
        }
        schedules.push(schedule);
    }
    assert!(kept < ALL_BLOCKS + 60 * SKIPPED_BLOCKS);
    drop(schedules);
    let mut fresh = ReceiveSchedule::new(&[7; 32], 0, 0.0).unwrap();
    fresh.receive(0, last, 0.0, &mut work, |_| true).unwrap();
    assert_eq!(fresh.blocks(), SKIPPED_BLOCKS);
}
