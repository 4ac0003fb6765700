//! A thread of ours that hangs: named in the liveness probe, `/health` and `/metrics`, while what runs runs on.

use herdgate::clock::Clock;
use herdgate::gate::Start;
use herdgate::pulse::STUCK_MS;
use herdgate::sim::{ModelSpec, Node, NodeSpec};

use crate::BODY;
use crate::support::client::{get, post_once};
use crate::support::proxy::{Proxy, eventually};

/// Seconds that a thread is late, as the metrics say.
async fn late(proxy: &Proxy, thread: &str) -> f64 {
    let text = get(proxy.address, "/metrics").await.text();
    let head = format!("herdgate_thread_late_seconds{{thread=\"{thread}\"}} ");
    text.lines().find_map(|line| line.strip_prefix(&head)).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_control_thread_is_told_and_streams_go_on() {
    let node = Node::start(NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(4)).unwrap();
    let clock = Clock::manual(1_795_608_030_000);
    let (release, held) = flume::bounded::<()>(1);
    let (entered, hangs) = flume::bounded(1);
    // What a reload calls on the control thread hangs there.
    let log_level = move |_: &str| {
        let _ = entered.send(());
        let _ = held.recv();
    };
    let its_own = clock.clone();
    let adjust = |start| Start { clock: its_own, log_level: Some(Box::new(log_level)), ..start };
    let proxy = Proxy::from_file_with(tempfile::tempdir().unwrap(), &[node.url()], "", adjust).await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    assert_eq!(get(address, "/herdgate/live").await.status, 200);
    let file = proxy.data.path().join("herdgate.yaml");
    let louder = std::fs::read_to_string(&file).unwrap() + "log: { level: debug }\n";
    std::fs::write(&file, louder).unwrap();
    let order = tokio::spawn(async move { post_once(address, "/herdgate/reload", "").await.status });
    hangs.recv_async().await.unwrap();
    assert_eq!(get(address, "/herdgate/live").await.status, 200, "it is not late yet");
    clock.advance(STUCK_MS + 60_000);
    // Workers and ledger notice that time has passed, and promise anew.
    eventually("the others move on", || async {
        late(&proxy, "worker-0").await + late(&proxy, "worker-1").await + late(&proxy, "ledger").await < 1.0
    })
    .await;
    let live = get(address, "/herdgate/live").await;
    assert_eq!(live.status, 503, "{}", live.text());
    assert!(live.text().contains("control (") && !live.text().contains("worker"), "{}", live.text());
    let health = get(address, "/health").await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("error")));
    assert!(health.json()["threads"]["detail"].as_str().unwrap().contains("control"), "{}", health.text());
    assert!(late(&proxy, "control").await >= 30.0);
    assert_eq!(get(address, "/herdgate/ready").await.status, 200, "clients are served all the same");
    assert_eq!(post_once(address, "/api/generate", BODY).await.status, 200);
    drop(release);
    assert_eq!(order.await.unwrap(), 200);
    eventually("it moves again", || async { get(address, "/herdgate/live").await.status == 200 }).await;
    eventually("and all is well", || async { get(address, "/health").await.status == 200 }).await;
}
