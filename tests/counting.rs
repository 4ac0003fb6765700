//! Heap allocations of a worker: per short request, per chunk of a paced stream, per burst of 64 chunks; counted over a
//! kept connection in steady state.
//!
//! The budgets are counts, not times: they hold on any machine. What the workers' system calls cost is counted from
//! outside by a step of `.ci/run`, and locks by another.
//!
//! Which allocations are left, each with its place and its callers:
//! `cargo test --test counting -- --ignored --nocapture`; `HERDGATE_CASE=short` shows the cases with that word alone.

#[path = "support/allocations.rs"]
mod allocations;
#[path = "support/sites.rs"]
mod sites;
mod support;

use support::steady::{Load, Steady};

#[global_allocator]
static ALLOCATOR: allocations::Counting = allocations::Counting;

/// What is counted, and how many allocations it may cost: exactly as many as it does now.
struct Case {
    name: &'static str,
    path: &'static str,
    load: Load,
    /// For each request, chunk or burst.
    budget: u64,
}

/// The `/v1` streams do not ask for usage, as most clients do not: the question and its answer are the proxy's work.
const CASES: &[Case] = &[
    Case { name: "short request, native", path: "/api/chat", load: Load::Short, budget: 0 },
    Case { name: "short request, v1", path: "/v1/chat/completions", load: Load::Short, budget: 0 },
    Case { name: "chunk of a paced stream, native", path: "/api/chat", load: Load::Paced, budget: 0 },
    Case { name: "chunk of a paced stream, v1", path: "/v1/chat/completions", load: Load::Paced, budget: 0 },
    Case { name: "burst of 64 chunks, native", path: "/api/chat", load: Load::Burst, budget: 2 },
    Case { name: "burst of 64 chunks, v1", path: "/v1/chat/completions", load: Load::Burst, budget: 3 },
];

/// Before counting: pools, scratch buffers and names are there afterwards.
const WARM_UP: u64 = 100;

/// How often each is counted.
const COUNTED: u64 = 500;

/// Allocations that belong to no request (a new Snapshot is taken over, a clock is set): a tenth for each one counted,
/// so that one more in every tenth request is a failure.
const BACKGROUND_MAX: u64 = COUNTED / 10;

/// How many are looked at for the table of places.
const LOOKED_AT: u64 = 50;

impl Case {
    async fn start(&self) -> Steady {
        let mut steady = Steady::start(self.path, self.load, 1).await;
        // Without this, a budget of none would hold as well if the worker went uncounted.
        allocations::arm();
        steady.connect().await;
        steady.run(1).await;
        let (calls, _) = allocations::disarm();
        assert!(calls > 0, "{}: a new connection allocates nothing: the worker is not counted", self.name);
        steady.run(WARM_UP).await;
        steady
    }
}

#[tokio::test]
async fn allocations_stay_within_their_budgets() {
    let mut over = Vec::new();
    for case in CASES {
        let mut steady = case.start().await;
        allocations::arm();
        steady.run(COUNTED).await;
        let (calls, bytes) = allocations::disarm();
        steady.stop().await;
        let each = format!("{}.{:03}", calls / COUNTED, calls % COUNTED * 1000 / COUNTED);
        println!("{:<32} {each:>8} allocations, {:>6} bytes; budget {}", case.name, bytes / COUNTED, case.budget);
        if calls > case.budget * COUNTED + BACKGROUND_MAX {
            over.push(format!("{}: {each} allocations, {} at most", case.name, case.budget));
        }
    }
    assert!(over.is_empty(), "{over:#?}\nwhere: cargo test --test counting -- --ignored --nocapture");
}

#[tokio::test]
#[ignore = "a tool, not a check: prints where allocations come from"]
async fn where_allocations_come_from() {
    let wanted = std::env::var("HERDGATE_CASE").unwrap_or_default();
    for case in CASES.iter().filter(|case| case.name.contains(&wanted)) {
        let mut steady = case.start().await;
        allocations::arm_with_stacks();
        steady.run(LOOKED_AT).await;
        let taken = allocations::disarm_with_stacks();
        steady.stop().await;
        let hundredths = taken.len() as u64 * 100 / LOOKED_AT;
        println!("\n== {}: {}.{:02} allocations", case.name, hundredths / 100, hundredths % 100);
        print!("{}", sites::table(&taken, LOOKED_AT));
    }
}
