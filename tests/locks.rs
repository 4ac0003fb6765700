//! Locks of a worker: how many it takes per short request, per chunk of a paced stream and per burst of 64 chunks, and
//! how many of them it shares with another thread (none).
//!
//! Built by a step of `.ci/run` against copies of tokio, hyper, flume, seize and papaya whose locks count themselves
//! (`.ci/lockcount`); empty otherwise. By hand: `bash .ci/steps/40-locks.sh`, which prints each place that locks.
//!
//! A *meeting* is an acquisition by another thread than the one before, at the same time or not. What a worker locks on
//! a request's way belongs to it alone (a socket's waker, the runtime's timers): no meeting, so nobody ever waits.
#![cfg(proxy_lock_count)]
#![expect(clippy::unwrap_used, reason = "a panic is a failed test")]

mod support;

use herdgate::sync::{Arc, spawn_thread};
use support::steady::{Load, Steady};

/// What is counted, and how many locks it may cost: exactly as many as it does now.
struct Case {
    name: &'static str,
    path: &'static str,
    load: Load,
    /// Locks for each request, chunk or burst, those of going to sleep left out.
    budget: u64,
    /// How often a worker sleeps for each, at most: once for each thing it waits for. Less often under load.
    sleeps: u64,
}

/// All of them are tokio's: one for each event of a socket, one for each poll of a socket that is not ready. A burst costs
/// what a short request does. One of the six is the price of a write that waits behind the reads of others: its task is
/// polled once more, and registers with tokio once more.
const CASES: &[Case] = &[
    Case { name: "short request, native", path: "/api/chat", load: Load::Short, budget: 6, sleeps: 2 },
    Case { name: "short request, v1", path: "/v1/chat/completions", load: Load::Short, budget: 6, sleeps: 2 },
    Case { name: "chunk of a paced stream, native", path: "/api/chat", load: Load::Paced, budget: 3, sleeps: 1 },
    Case { name: "chunk of a paced stream, v1", path: "/v1/chat/completions", load: Load::Paced, budget: 3, sleeps: 1 },
    Case { name: "burst of 64 chunks, native", path: "/api/chat", load: Load::Burst, budget: 6, sleeps: 2 },
    Case { name: "burst of 64 chunks, v1", path: "/v1/chat/completions", load: Load::Burst, budget: 6, sleeps: 2 },
];

/// A worker that goes to sleep locks its I/O driver once and its timers twice, going and coming.
const SLEEP: &str = "src/runtime/io/driver.rs";
const TIMERS: &str = "src/runtime/time/";
const TIMERS_PER_SLEEP: u64 = 2;

/// Of each hundred: what the ticks do, and events that came early or late.
const SLACK_PERCENT: u64 = 15;

const WORKERS: usize = 2;

/// Clients on each worker, at least.
const CLIENTS: u32 = 2;

/// Clients in all, at most, until each worker has its own: the kernel spreads them by chance.
const CLIENTS_MAX: usize = 64;

/// Before counting: pools, connections to the node and names are there afterwards.
const WARM_UP: u64 = 50;

/// How often each client is counted.
const COUNTED: u64 = 250;

impl Case {
    async fn start(&self) -> (Steady, u64) {
        let mut steady = Steady::start(self.path, self.load, WORKERS).await;
        let mut clients = 0;
        while steady.spread().iter().any(|connections| *connections < CLIENTS) {
            assert!(clients < CLIENTS_MAX, "{clients} clients, and a worker has none: {:?}", steady.spread());
            steady.connect().await;
            steady.run(1).await;
            clients += 1;
        }
        (steady, clients as u64)
    }
}

/// What was counted while a case ran, in hundredths for each request, chunk or burst.
struct Counts {
    places: Vec<lockcount::Place>,
    units: u64,
}

impl Counts {
    fn of(&self, is_counted: impl Fn(&str) -> bool) -> u64 {
        let counted = self.places.iter().filter(|place| is_counted(&place.at));
        counted.map(|place| place.locks).sum::<u64>() * 100 / self.units
    }

    fn awake(&self) -> u64 {
        self.of(|place| !place.contains(SLEEP) && !place.contains(TIMERS))
    }

    fn meetings(&self) -> u64 {
        self.places.iter().map(|place| place.meetings).sum()
    }

    /// What is over the budget of a case.
    fn over(&self, case: &Case) -> Vec<String> {
        let (sleeps, timers) = (self.of(|place| place.contains(SLEEP)), self.of(|place| place.contains(TIMERS)));
        let mut over = Vec::new();
        let mut check = |what: &str, hundredths: u64, most: u64| {
            if hundredths > most + SLACK_PERCENT {
                over.push(format!("{}: {} {what}, {} at most", case.name, decimal(hundredths), decimal(most)));
            }
        };
        check("locks", self.awake(), case.budget * 100);
        check("sleeps", sleeps, case.sleeps * 100);
        check("locks of timers (a timer for each request?)", timers, sleeps * TIMERS_PER_SLEEP);
        if self.meetings() > 0 {
            over.push(format!("{}: {} meetings with another thread, none allowed", case.name, self.meetings()));
        }
        over
    }

    fn print(&self, case: &Case, clients: u64) {
        println!(
            "{}: {} locks (budget {}), {} with those of sleeping; {} meetings; {} counted of {clients} clients",
            case.name,
            decimal(self.awake()),
            case.budget,
            decimal(self.of(|_| true)),
            self.meetings(),
            self.units,
        );
        for place in &self.places {
            let each = decimal(place.locks * 100 / self.units);
            println!("  {each:>6} locks {:>4} meetings  {}", place.meetings, place.at);
        }
    }
}

fn decimal(hundredths: u64) -> String {
    format!("{}.{:02}", hundredths / 100, hundredths % 100)
}

/// A lock that two threads take is seen to be one: without this, none found would prove nothing.
fn control() {
    let lock = Arc::new(lockcount::Mutex::new(()));
    let taken = lock.clone();
    lockcount::arm();
    spawn_thread("worker-control", move || drop(taken.lock())).unwrap().join().unwrap();
    drop(lock.lock());
    let places = lockcount::disarm();
    let sum = places.iter().fold((0, 0), |sum, place| (sum.0 + place.locks, sum.1 + place.meetings));
    assert_eq!(sum, (1, 1), "one lock of a worker's and one meeting: {places:?}");
}

#[tokio::test]
async fn a_worker_shares_no_lock_and_takes_few() {
    control();
    let mut over = Vec::new();
    for case in CASES {
        let (mut steady, clients) = case.start().await;
        steady.run(WARM_UP).await;
        lockcount::arm();
        steady.run(COUNTED).await;
        let counts = Counts { places: lockcount::disarm(), units: clients * COUNTED };
        steady.stop().await;
        counts.print(case, clients);
        assert!(counts.awake() > 0, "{}: no lock at all: the workers were not counted", case.name);
        over.extend(counts.over(case));
    }
    assert!(over.is_empty(), "{over:#?}");
}
