//! What the baseline must get right, or its times mean nothing: counts, minutes, ages, what readers see, no deadlock.

use std::sync::Arc;

use super::*;

const NOW: Millis = 1_000_000_000;

fn names(prefix: &str, count: usize) -> Vec<Name> {
    (0..count).map(|at| Name::new(&format!("{prefix}{at}"))).collect()
}

fn ask<'a>(nodes: &'a [Name], model: &'a Name, limit: u64) -> Ask<'a> {
    Ask { nodes, model, limit, random: 0, now: NOW }
}

async fn fleet(nodes: &[Name], model: &Name, loaded: impl Fn(usize) -> bool) -> Arc<Locked<u32>> {
    let locked = Arc::new(Locked::new(Publishing::Always));
    let models: Models = Arc::new([model.clone()].into_iter().collect());
    for (at, node) in nodes.iter().enumerate() {
        locked.available.put(node, models.clone(), NOW).await;
        locked.loaded.put(node, if loaded(at) { models.clone() } else { Models::default() }, NOW).await;
    }
    locked
}

#[tokio::test]
async fn fresh_stale_and_evicted_by_age() {
    let locked = Locked::<()>::new(Publishing::Always);
    let node = Name::new("http://a:11434");
    let models: Models = Arc::new([Name::new("m:latest")].into_iter().collect());
    locked.loaded.put(&node, models.clone(), NOW).await;
    assert_eq!(locked.loaded.get(&node, NOW + 9_999).await, Found::Fresh(models.clone()));
    assert_eq!(locked.loaded.get(&node, NOW + 59_999).await, Found::Stale(models.clone()));
    assert_eq!(locked.loaded.len().await, 1);
    assert_eq!(locked.loaded.get(&node, NOW + 60_000).await, Found::Nothing);
    assert!(locked.loaded.is_empty().await, "the look that found it too old removed it");
    locked.available.put(&node, models.clone(), NOW).await;
    assert_eq!(locked.available.get(&node, NOW + 299_999).await, Found::Fresh(models.clone()));
    assert_eq!(locked.available.get(&node, NOW + 300_000).await, Found::Stale(models));
    locked.available.forget(&node).await;
    assert_eq!(locked.available.get(&node, NOW).await, Found::Nothing);
    locked.failed.put(&node, NOW).await;
    assert!(locked.failed.is_recent(&node, NOW + 299_999).await);
    assert!(!locked.failed.is_recent(&node, NOW + 300_000).await);
}

#[tokio::test]
async fn the_order_is_the_ancestors() {
    let (nodes, model, other) = (names("n", 3), Name::new("m"), Name::new("other"));
    let locked = fleet(&nodes, &model, |at| at > 0).await;
    // Loaded ones first, at random while none serves it, then the least busy of them, each up to the limit.
    let first = locked.reserve(&Ask { random: 1, ..ask(&nodes, &model, 2) }, |_| true).await;
    assert_eq!(first, Some(Choice { node: 2, loaded: true }));
    for expected in [1, 1, 2] {
        let choice = locked.reserve(&ask(&nodes, &model, 2), |_| true).await;
        assert_eq!(choice.map(|choice| choice.node), Some(expected));
    }
    // Then the one that only has it; then, all being full, the least busy whatever the limit.
    for _ in 0..2 {
        let choice = locked.reserve(&ask(&nodes, &model, 2), |_| true).await;
        assert_eq!(choice, Some(Choice { node: 0, loaded: false }));
    }
    assert_eq!(locked.reserve(&ask(&nodes, &model, 2), |_| true).await.map(|choice| choice.node), Some(0));
    // What a caller does not admit is no candidate; what no node has goes nowhere.
    assert_eq!(locked.reserve(&ask(&nodes, &model, 9), |at| at == 1).await.map(|choice| choice.node), Some(1));
    assert_eq!(locked.reserve(&ask(&nodes, &other, 2), |_| true).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn counts_are_exact_from_many_threads() {
    const TASKS: usize = 16;
    const ROUNDS: usize = 500;
    let (nodes, model) = (names("http://node-", 4), Name::new("m:latest"));
    let locked = fleet(&nodes, &model, |_| true).await;
    let reader = locked.subscribe().await;
    let worker = tokio::spawn({
        let locked = locked.clone();
        async move { locked.work(|| 1_772_366_459).await }
    });
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let (locked, nodes, model) = (locked.clone(), nodes.clone(), model.clone());
            tokio::spawn(async move {
                for round in 0..ROUNDS {
                    let chosen = locked.reserve(&ask(&nodes, &model, 4), |_| true).await.expect("a node has it");
                    let node = nodes[chosen.node].clone();
                    let detail = u32::try_from(task * ROUNDS + round).expect("few");
                    locked.spend(Event { node: node.clone(), model: model.clone(), input: 2, output: 5, detail });
                    if round % 2 == 0 || !locked.try_release(&node, &model) {
                        locked.release(&node, &model).await;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.expect("no panic");
    }
    // Tokens are counted last, under the usage lock: once all are there and it is free, the worker waits for more.
    let all = 7 * (TASKS * ROUNDS) as u64;
    while all_tokens(&locked, &nodes, &model).await < all {
        tokio::task::yield_now().await;
    }
    drop(locked.lock_usage().await);
    worker.abort();
    let _ = worker.await;
    let late = Event { node: nodes[0].clone(), model: model.clone(), input: 0, output: 0, detail: 8_000 };
    locked.spend(late);
    locked.work_off(|| 1_772_366_459).await;
    for node in &nodes {
        assert_eq!(locked.in_flight(node, &model).await, 0);
    }
    assert_eq!(all_tokens(&locked, &nodes, &model).await, all);
    let buffers = locked.take_buffers().await;
    let mut seen: Vec<u32> = buffers.series.iter().map(|row| row.event.detail).collect();
    seen.sort_unstable();
    assert_eq!(seen, (0..=8_000).collect::<Vec<_>>());
    assert!(buffers.series.iter().all(|row| row.timestamp == 1_772_366_400), "floored to the UTC minute");
    let sums = buffers.tokens.values().flat_map(|models| models.values());
    assert_eq!(sums.fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1)), (16_000, 40_000));
    assert!(locked.take_buffers().await.series.is_empty(), "taken once");
    let mut newest = None;
    for _ in 0..BACKLOG {
        newest = reader.try_next();
        assert!(newest.is_some(), "the newest {BACKLOG} states are kept");
    }
    assert!(reader.try_next().is_none(), "and no more");
    assert_eq!(newest, Some(locked.state().await), "the last one published is the state now");
}

async fn all_tokens(locked: &Locked<u32>, nodes: &[Name], model: &Name) -> u64 {
    let mut sum = 0;
    for node in nodes {
        sum += locked.tokens(node, model).await;
    }
    sum
}

#[tokio::test]
async fn a_change_makes_one_state_and_says_what_is() {
    let (nodes, model) = (names("n\"", 1), Name::new("m"));
    let locked = fleet(&nodes, &model, |_| true).await;
    let reader = locked.subscribe().await;
    locked.reserve(&ask(&nodes, &model, 1), |_| true).await.expect("a node has it");
    let event = Event { node: nodes[0].clone(), model: model.clone(), input: 10, output: 8, detail: 0 };
    locked.account(event, 59).await;
    locked.release(&nodes[0], &model).await;
    let expected = [
        r#"{"token_usage_counts":{},"usage_counts":{"n\"0":{"m":1}}}"#,
        r#"{"token_usage_counts":{"n\"0":{"m":18}},"usage_counts":{"n\"0":{"m":1}}}"#,
        r#"{"token_usage_counts":{"n\"0":{"m":18}},"usage_counts":{"n\"0":{}}}"#,
    ];
    for state in expected {
        assert_eq!(reader.next().await, state);
    }
    locked.unsubscribe(&reader).await;
    locked.release(&nodes[0], &model).await;
    assert!(reader.try_next().is_none());
    assert_eq!(locked.in_flight(&nodes[0], &model).await, 0, "never below zero");
}

#[tokio::test]
async fn a_held_lock_refuses_the_quick_way_and_changes_nothing() {
    let (nodes, model) = (names("n", 1), Name::new("m"));
    let locked = fleet(&nodes, &model, |_| true).await;
    locked.reserve(&ask(&nodes, &model, 1), |_| true).await.expect("a node has it");
    let tokens = locked.token_usage.lock().await;
    assert!(!locked.try_release(&nodes[0], &model));
    drop(tokens);
    assert_eq!(locked.in_flight(&nodes[0], &model).await, 1);
    assert!(locked.try_release(&nodes[0], &model));
    assert_eq!(locked.in_flight(&nodes[0], &model).await, 0);
}

#[tokio::test]
async fn whoever_is_cancelled_between_count_and_state_leaves_nothing() {
    let (nodes, model) = (names("n", 1), Name::new("m"));
    let locked = fleet(&nodes, &model, |_| true).await;
    let tokens = locked.token_usage.lock().await;
    let asked = ask(&nodes, &model, 1);
    let mut reserve = Box::pin(locked.reserve(&asked, |_| true));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(reserve.as_mut().poll(&mut cx).is_pending(), "counted, and waiting for the tokens' lock");
    drop(reserve);
    drop(tokens);
    assert_eq!(locked.in_flight(&nodes[0], &model).await, 0);
}

#[tokio::test]
async fn without_readers_a_state_is_made_only_where_the_ancestor_makes_one() {
    let (nodes, model) = (names("n", 1), Name::new("m"));
    let locked = Locked::<()>::new(Publishing::WhenRead);
    locked.available.put(&nodes[0], Arc::new([model.clone()].into_iter().collect()), NOW).await;
    locked.reserve(&ask(&nodes, &model, 1), |_| true).await.expect("a node has it");
    let reader = locked.subscribe().await;
    assert!(reader.try_next().is_none());
    locked.release(&nodes[0], &model).await;
    assert_eq!(reader.try_next().as_deref(), Some(&br#"{"token_usage_counts":{},"usage_counts":{"n0":{}}}"#[..]));
}
