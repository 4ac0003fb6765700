//! Events that find no room on their ring.

use super::*;
use herdgate::ids::KeyId;

/// A ring that is full drops which key a request came with, and nothing else: sums by node and model stay exact, and the
/// row says `_lost`.
#[test]
fn what_a_full_ring_drops_is_in_the_ledger_under_lost() {
    const RING: u64 = 4096;
    const LOST: u64 = 700;
    let clock = Clock::manual(NOON);
    let mut rig = Rig::start(Disk::default().opener(), names(), &clock);
    let event = Outcome { key: KeyId(1), eval_ns: 7, ..outcome(&clock) };
    for _ in 0..RING + LOST {
        rig.record(0, &event);
    }
    rig.recorders[0].hand_over();
    rig.flush().unwrap();
    let rows = rig.call(|reply| Command::Ask(Ask::Rows(Span::Totals, reply))).unwrap();
    let of = |key: &str| {
        let row = rows.iter().find(|row| &*row.key == key);
        row.map(|row| (row.row.requests_total(), row.row.exact.output, row.row.eval_ns)).unwrap_or_default()
    };
    assert_eq!(of("ops"), (RING, 5 * RING, 7 * RING));
    assert_eq!(of("_lost"), (LOST, 5 * LOST, 7 * LOST));
    assert_eq!(rig.health().events, RING + LOST);
}
