//! Minutes fold into days: the ancestor's figures, without its doubling.

use super::*;

const DAY: u64 = 86_400_000;

fn fold(rig: &mut Rig, days: u64, trim: bool) -> u64 {
    rig.call(|reply| Command::Fold { keep_ms: days * DAY, trim, reply }).unwrap()
}

/// Requests per day row.
fn requests_by_day(rig: &mut Rig) -> BTreeMap<u32, u64> {
    let mut requests = BTreeMap::new();
    for row in rows(rig, DAYS) {
        let Bucket::Day(day) = row.bucket else { panic!("not a day: {row:?}") };
        *requests.entry(day.0).or_default() += row.row.requests_total();
    }
    requests
}

/// Two nodes and two models on each of 40 days up to now, two minutes of each.
fn forty_days(disk: &Disk) -> Rig {
    let clock = Clock::manual(NOON - 39 * DAY);
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    for day in 0..40 {
        for node in 0..2 {
            for model in 2..4 {
                for minute in 0..2 {
                    let minute = UnixMinute(clock.minute().0 + minute);
                    let (node, model) = (NodeId(node), ModelId(model));
                    rig.record(0, &Outcome { node, model, minute, ..outcome(&clock) });
                }
            }
        }
        rig.tick();
        if day < 39 {
            clock.advance(DAY - 100);
        }
    }
    rig
}

#[test]
fn folding_twice_adds_nothing() {
    let mut rig = forty_days(&Disk::default());
    let before = total(&mut rig);
    // Days 10 to 39 back lie beyond; the minutes of the tenth day back lie exactly at the cut or later.
    let old = fold(&mut rig, 10, false);
    assert_eq!(old, 29 * 4 + 4, "(node, model, date) groups");
    assert_eq!(fold(&mut rig, 10, false), old, "without trim nothing changes");
    assert!(requests_by_day(&mut rig).is_empty());
    assert_eq!(fold(&mut rig, 10, true), old);
    let days = requests_by_day(&mut rig);
    assert_eq!(days.values().sum::<u64>() + requests_by_minute(&mut rig).values().sum::<u64>(), 320);
    assert!(days.values().all(|requests| *requests <= 8), "the ancestor doubled here: {days:?}");
    assert_eq!(fold(&mut rig, 10, true), 0, "they are gone");
    assert_eq!(requests_by_day(&mut rig), days);
    assert_eq!(total(&mut rig), before, "totals stay");
}

#[test]
fn a_fold_shrinks_the_series_and_keeps_the_totals() {
    let mut rig = forty_days(&Disk::default());
    let ask = |rig: &mut Rig| rig.call(|reply| Command::Ask(Ask::Stats("qwen:7b".into(), reply))).unwrap();
    let before = ask(&mut rig);
    assert_eq!((before.series.len(), before.totals), (160, Some(tokens(480, 800))));
    fold(&mut rig, 1, true);
    let after = ask(&mut rig);
    assert_eq!(after.totals, before.totals);
    assert!(after.series.len() < 10 && !after.series.is_empty());
    let shares: u64 = after.distribution.iter().map(|(_, share)| share).sum();
    assert_eq!(shares, after.series.iter().map(|point| point.tokens.total()).sum::<u64>());
}

#[test]
fn an_event_of_a_folded_minute_adds_to_its_day() {
    let disk = Disk::default();
    let mut rig = forty_days(&disk);
    fold(&mut rig, 10, true);
    let days = requests_by_day(&mut rig);
    let late = UnixMinute::of_unix_ms(NOON - 20 * DAY);
    let clock = rig.clock.clone();
    rig.record(0, &Outcome { minute: late, ..outcome(&clock) });
    rig.flush().unwrap();
    let mut expected = days;
    *expected.get_mut(&late.day().0).unwrap() += 1;
    assert_eq!(requests_by_day(&mut rig), expected);
    rig.shutdown().unwrap();
    // And after a restart, which knows it from the store.
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    rig.record(0, &Outcome { minute: late, ..outcome(&clock) });
    *expected.get_mut(&late.day().0).unwrap() += 1;
    assert_eq!(requests_by_day(&mut rig), expected);
    assert!(!requests_by_minute(&mut rig).contains_key(&late.0));
}

#[test]
fn a_fold_while_events_come_loses_none() {
    let mut rig = forty_days(&Disk::default());
    let clock = rig.clock.clone();
    let old = UnixMinute::of_unix_ms(NOON - 20 * DAY);
    // In memory with a known base, then folded underneath, then touched again.
    rig.record(0, &Outcome { minute: old, ..outcome(&clock) });
    rig.flush().unwrap();
    let mut answer = rig.send(|reply| Command::Fold { keep_ms: 10 * DAY, trim: true, reply });
    rig.step();
    rig.record(0, &Outcome { minute: old, ..outcome(&clock) });
    rig.step();
    rig.serve();
    rig.record(0, &Outcome { minute: old, ..outcome(&clock) });
    rig.flush().unwrap();
    assert_eq!(answer.try_recv(), Ok(Ok(120)));
    assert_eq!(requests_by_day(&mut rig)[&old.day().0], 8 + 3);
    assert_eq!(total(&mut rig).requests_total(), 323);
}

#[test]
fn a_long_fold_goes_in_slices_between_commits() {
    let (disk, clock) = (Disk::default(), Clock::manual(NOON));
    let mut rig = Rig::start(disk.opener(), names(), &clock);
    for minute in 0..20_000 {
        let minute = UnixMinute(clock.minute().0 - 100_000 + minute);
        rig.record(0, &Outcome { minute, ..outcome(&clock) });
        if minute.0.is_multiple_of(1000) {
            rig.tick();
        }
    }
    rig.flush().unwrap();
    let commits = disk.tried().0;
    let mut answer = rig.send(|reply| Command::Fold { keep_ms: 10 * DAY, trim: true, reply });
    let mut steps = 0;
    let groups = loop {
        rig.record(0, &outcome(&clock));
        rig.step();
        rig.serve();
        steps += 1;
        if let Ok(answer) = answer.try_recv() {
            break answer.unwrap();
        }
        assert!(steps < 100);
    };
    assert_eq!(groups, 14, "the dates that 20,000 minutes touch");
    assert!(disk.tried().0 - commits >= 5, "three slices, and batches between them");
    assert_eq!(requests_by_day(&mut rig).values().sum::<u64>(), 20_000);
    assert_eq!(total(&mut rig).requests_total(), 20_000 + steps);
}

#[test]
fn a_fold_of_a_failing_store_is_refused_and_leaves_it_alone() {
    let disk = Disk::default();
    let mut rig = forty_days(&disk);
    rig.flush().unwrap();
    let commits = disk.tried().0;
    for fault in [Fault::Fails, Fault::StoredButFails, Fault::Breaks] {
        disk.plan(&[fault]);
        let failed = rig.call(|reply| Command::Fold { keep_ms: 10 * DAY, trim: true, reply });
        assert!(matches!(failed, Err(LedgerError::Unavailable { .. })) || fault != Fault::Fails, "{failed:?}");
        let clock = rig.clock.clone();
        rig.record(0, &Outcome { minute: UnixMinute::of_unix_ms(NOON - 20 * DAY), ..outcome(&clock) });
        rig.flush().unwrap();
    }
    assert!(disk.tried().0 > commits);
    let kept = requests_by_minute(&mut rig).values().sum::<u64>() + requests_by_day(&mut rig).values().sum::<u64>();
    assert_eq!((kept, total(&mut rig).requests_total()), (323, 323));
}

#[test]
fn old_minutes_fold_on_their_own_each_hour() {
    let disk = Disk::default();
    let rig = forty_days(&disk);
    let clock = rig.clock.clone();
    rig.shutdown().unwrap();
    let after = std::time::Duration::from_secs(10 * 86_400);
    let mut rig = Rig::start_with(disk.opener(), names(), &clock, |links| links.fold_after = after);
    rig.tick();
    assert_eq!(requests_by_day(&mut rig).len(), 0, "not at the very start");
    for _ in 0..6 {
        clock.advance(20_000);
        rig.tick();
    }
    assert_eq!(requests_by_day(&mut rig).len(), 30);
    let commits = disk.tried().0;
    for _ in 0..40 {
        clock.advance(3 * 60_000);
        rig.tick();
    }
    assert_eq!(disk.tried().0, commits, "an hour later there is nothing to fold, and nothing is written");
    assert_eq!(total(&mut rig).requests_total(), 320);
}
