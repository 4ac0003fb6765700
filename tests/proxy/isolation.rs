//! I5, I9, I10: one generation a decision; a dead, hanging or mute node and a stuck subscriber harm nobody else.

use std::time::Duration;

use herdgate::sim::{Fault, Harm, Herd, ModelSpec, NodeSpec};
use herdgate::sync::{Arc, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::client::{self, Client, post};
use crate::support::proxy::{Proxy, eventually};

/// How many nodes have this model, as the proxy knows it.
fn candidates(proxy: &Proxy, name: &str) -> usize {
    let key = herdgate::dialect::name::key(name);
    proxy.shared().fleet.load().models.get(&key).map_or(0, |model| model.candidates.len())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_models_that_move_between_nodes_under_load_are_never_missing() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("stays")]).slots(16);
    let herd = Herd::start(vec![spec(), spec(), spec()]).unwrap();
    herd.nodes()[0].add_model(ModelSpec::chat("m"));
    let health = "health: { probe: 50ms, probe_timeout: 2s, backoff_max: 100ms, ps: 20ms, tags: 20ms }";
    // How long a place that it left is still tried depends on the machine: the budget of retries must not.
    let proxy = Proxy::start(&herd.urls(), &format!("{health}\nrouting: {{ retry_floor: 100000 }}")).await;
    proxy.until_listed("m:latest").await;
    let address = proxy.address;
    let stop = Arc::new(AtomicU64::new(0));
    let drivers = (0..6).map(|at| {
        let stop = stop.clone();
        tokio::spawn(async move {
            let (path, body) = crate::failover::STREAMS[at];
            let mut client = Client::connect(address).await;
            let mut seen = [0_u32; 2];
            while stop.load(Ordering::Acquire) == 0 {
                client.send(&post(path, body)).await;
                let answer = client.answer().await.unwrap();
                match answer.status {
                    200 => seen[0] += 1,
                    // Where all attempts meet places that it left, the honest answer is "try again", never "no such model".
                    503 => seen[1] += 1,
                    status => panic!("{path}: {status} {}", answer.text()),
                }
            }
            seen
        })
    });
    let drivers: Vec<_> = drivers.collect();
    // It is always on a node at least, and the proxy knows of the new place before the old one goes.
    for round in 0..30 {
        let (from, to) = (&herd.nodes()[round % 3], &herd.nodes()[(round + 1) % 3]);
        to.add_model(ModelSpec::chat("m"));
        eventually("the new place is known", || async { candidates(&proxy, "m") == 2 }).await;
        from.remove_model("m");
        eventually("the old place is forgotten", || async { candidates(&proxy, "m") == 1 }).await;
    }
    stop.store(1, Ordering::Release);
    let mut seen = [0; 2];
    for driver in drivers {
        let [served, later] = driver.await.unwrap();
        seen = [seen[0] + served, seen[1] + later];
    }
    assert!(seen[0] > 100 && seen[1] * 10 < seen[0], "served, told to try again: {seen:?}");
    eventually("in flight zero", || async { proxy.in_flight() == 0 }).await;
}

/// Inventories are asked for once, and again only because of what requests bring.
const SELDOM: &str = "health: { probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 1h }";

/// What a client may ask of one model, and what an answer is that has found it.
const ASKED: [(&str, &str, &str); 4] = [
    ("POST", "/api/show", r#"{"model":"m"}"#),
    ("POST", "/api/generate", r#"{"model":"m","keep_alive":0}"#),
    ("POST", "/api/copy", r#"{"source":"m","destination":"n"}"#),
    ("DELETE", "/api/delete", r#"{"model":"m"}"#),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_a_model_that_moved_between_two_polls_is_found_where_it_is() {
    let spec = || NodeSpec::ollama(vec![ModelSpec::chat("stays")]).slots(8);
    let streams = crate::failover::STREAMS.map(|(path, body)| ("POST", path, body));
    for (method, path, body) in streams.into_iter().chain(ASKED) {
        let herd = Herd::start(vec![spec(), spec()]).unwrap();
        let (old, new) = (&herd.nodes()[0], &herd.nodes()[1]);
        old.add_model(ModelSpec::chat("m"));
        let proxy = Proxy::start(&herd.urls(), SELDOM).await;
        proxy.until_listed("m:latest").await;
        new.add_model(ModelSpec::chat("m"));
        old.remove_model("m");
        let mut client = Client::connect(proxy.address).await;
        client.send(&client::request(method, path, &[], body.as_bytes())).await;
        let answer = client.answer().await.unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i5_what_no_node_has_any_more_is_404_and_what_a_disk_lost_is_503() {
    let three = || ["m", "a", "b"].map(ModelSpec::chat).to_vec();
    for (gone, status) in [(&["m"][..], 404), (&["m", "a", "b"], 503)] {
        let herd = Herd::start(vec![NodeSpec::ollama(three())]).unwrap();
        let proxy = Proxy::start(&herd.urls(), SELDOM).await;
        proxy.until_listed("m:latest").await;
        gone.iter().for_each(|name| assert!(herd.nodes()[0].remove_model(name)));
        let streams = crate::failover::STREAMS.iter().map(|(path, body)| ("POST", *path, *body));
        for (method, path, body) in streams.chain(ASKED) {
            let mut client = Client::connect(proxy.address).await;
            client.send(&client::request(method, path, &[], body.as_bytes())).await;
            let answer = client.answer().await.unwrap();
            assert_eq!(answer.status, status, "{path} without {gone:?}: {}", answer.text());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_denies_what_it_lists_means_something_else_and_is_believed() {
    let herd = Herd::start(vec![NodeSpec::ollama(vec![ModelSpec::chat("m")])]).unwrap();
    let proxy = Proxy::start(&herd.urls(), SELDOM).await;
    proxy.until_listed("m:latest").await;
    let said = "model \"M\" not found, try pulling it first";
    herd.nodes()[0].fault(Fault::new(Harm::Status(404, said.to_owned())).for_path("/api/embeddings"));
    for _ in 0..3 {
        let answer = client::post_once(proxy.address, "/api/embeddings", r#"{"model":"M","prompt":"x"}"#).await;
        assert_eq!((answer.status, answer.json()["error"].as_str().unwrap()), (404, said));
    }
}

/// Polls that come often and wait for ever: whatever is answered was not answered by a time-out of theirs.
const PATIENT: &str = "health: { probe: 100ms, probe_timeout: 60s, backoff_max: 200ms, ps: 100ms, tags: 100ms }\n\
                       timeouts: { connect: 60s }";

/// Everything that does not need the bad node is served, many times over.
async fn assert_served(proxy: &Proxy, what: &str) {
    let mut client = Client::connect(proxy.address).await;
    for _ in 0..10 {
        for path in ["/", "/api/tags", "/api/ps", "/api/version", "/v1/models", "/v1/models/m", "/health", "/metrics"] {
            client.send(&client::request("GET", path, &[], b"")).await;
            let answer = client.answer().await.unwrap();
            assert_eq!(answer.status, 200, "{what}: {path} {}", answer.text());
        }
        for (path, body) in crate::failover::STREAMS {
            client.send(&post(path, body)).await;
            let answer = client.answer().await.unwrap();
            assert_eq!(answer.status, 200, "{what}: {path} {}", answer.text());
        }
        client.send(&post("/api/show", r#"{"model":"m"}"#)).await;
        assert_eq!(client.answer().await.unwrap().status, 200, "{what}: show");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_a_node_that_hangs_or_dies_or_is_mute_harms_nobody_else() {
    let bad: [(&str, Vec<Fault>); 5] = [
        ("hangs at everything", vec![Fault::new(Harm::Hang).for_all()]),
        ("mute at ps", vec![Fault::new(Harm::Hang).for_path("/api/ps")]),
        ("mute at tags", vec![Fault::new(Harm::Hang).for_path("/api/tags")]),
        ("refuses", vec![Fault::new(Harm::Refuse)]),
        ("talks garbage", vec![Fault::new(Harm::Garbage).for_all()]),
    ];
    for (what, faults) in bad {
        let good = NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8);
        let other = NodeSpec::ollama(vec![ModelSpec::chat("other")]).slots(8);
        let herd = Herd::start(vec![other, good]).unwrap();
        let proxy = Proxy::start(&herd.urls(), PATIENT).await;
        proxy.until_listed("other:latest").await;
        proxy.until_listed("m:latest").await;
        for fault in faults {
            herd.nodes()[0].fault(fault);
        }
        // Requests that need the bad node hang there meanwhile, in number.
        let mut stuck = Vec::new();
        for _ in 0..8 {
            let mut client = Client::connect(proxy.address).await;
            client.send(&post("/api/generate", r#"{"model":"other","prompt":"x"}"#)).await;
            stuck.push(client);
        }
        assert_served(&proxy, what).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i9_a_node_that_never_answered_delays_neither_start_nor_service() {
    let good = NodeSpec::ollama(vec![ModelSpec::chat("m")]).slots(8);
    let mute = NodeSpec::ollama(vec![ModelSpec::chat("other")]).slots(8);
    let herd = Herd::start(vec![mute, good]).unwrap();
    herd.nodes()[0].fault(Fault::new(Harm::Hang).for_all());
    let proxy = Proxy::start(&herd.urls(), PATIENT).await;
    proxy.until_listed("m:latest").await;
    assert_served(&proxy, "mute from the start").await;
    // What it may have is not denied: nobody must pull because of a node that starts slowly.
    let answer = client::post_once(proxy.address, "/api/show", r#"{"model":"other"}"#).await;
    assert_eq!(answer.status, 503, "{}", answer.text());
}

/// The last count of this model's tokens in these events: it stands under its node after the requests in flight.
fn tokens(events: &str, model: &str) -> u64 {
    let named = format!("\"{model}\":");
    let count = |rest: &str| rest.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    events.rsplit_once(&named).and_then(|(_, rest)| count(rest)).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn i10_a_slow_subscriber_is_told_and_gets_the_newest_while_the_proxy_goes_on() {
    // Long names make long states, so that a reader that does not read is soon behind.
    let long = |at: usize| format!("host.example/{}/{}{at}:latest", "n".repeat(70), "m".repeat(70));
    let models = (0..500).map(|at| ModelSpec::chat(&long(at))).collect();
    let herd = Herd::start(vec![NodeSpec { max_loaded: 600, ..NodeSpec::ollama(models).slots(4) }]).unwrap();
    let proxy = Proxy::start(&herd.urls(), "limits: { unsent: 64KiB }").await;
    proxy.until_listed(&long(499)).await;
    let mut driver = Client::connect(proxy.address).await;
    let mut ask = async |at: usize| {
        let body = format!(r#"{{"model":"{}","prompt":"x","stream":false,"options":{{"num_predict":3}}}}"#, long(at));
        driver.send(&post("/api/generate", &body)).await;
        assert_eq!(driver.answer().await.unwrap().status, 200);
    };
    for at in 0..500 {
        ask(at).await;
    }
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&proxy.address.into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let mut subscriber = tokio::net::TcpStream::from_std(socket.into()).unwrap();
    subscriber.write_all(b"GET /api/usage-stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await.unwrap();
    eventually("it subscribed", || async { proxy.shared().live.wanted() }).await;
    // Another reader keeps up, and every change reaches it although the first is stuck.
    let mut quick = Client::connect(proxy.address).await;
    quick.send(b"GET /api/usage-stream HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").await;
    quick.begin().await.unwrap();
    let seen = Arc::new(AtomicU64::new(0));
    let (name, told) = (long(0), seen.clone());
    let quick = tokio::spawn(async move {
        loop {
            let event = String::from_utf8(quick.chunk().await.unwrap()).unwrap();
            assert!(event.starts_with("data: {") || event == ":\n\n", "it lagged: {}", &event[..event.len().min(99)]);
            told.fetch_max(tokens(&event, &name), Ordering::AcqRel);
        }
    });
    let (url, name) = (herd.nodes()[0].url(), long(0));
    let newest = || async {
        let usage = client::get(proxy.address, "/api/usage").await.json();
        usage["token_usage_counts"][&url][&name].as_u64().unwrap()
    };
    let before = newest().await;
    ask(0).await;
    eventually("counted", || async { newest().await > before }).await;
    let first = newest().await;
    for round in 1..150 {
        ask(0).await;
        let expected = first + round * (first - before);
        eventually("told the quick one", || async { seen.load(Ordering::Acquire) >= expected }).await;
    }
    assert!(!quick.is_finished(), "it keeps up");
    quick.abort();
    // Now the slow one reads: a comment that it lagged, and in the end the newest state.
    let newest = newest().await;
    socket2::SockRef::from(&subscriber).set_recv_buffer_size(1 << 20).unwrap();
    let mut text = String::new();
    let mut buffer = vec![0; 64 * 1024];
    let read = async {
        while !(text.contains(": lagged ") && tokens(&text, &name) >= newest) {
            let count = subscriber.read(&mut buffer).await.unwrap();
            assert!(count > 0, "the stream goes on");
            text += &String::from_utf8_lossy(&buffer[..count]);
        }
    };
    let read = tokio::time::timeout(Duration::from_secs(60), read).await;
    let (told, newest) = (text.contains(": lagged "), tokens(&text, &name) >= newest);
    assert!(read.is_ok() && told && newest, "told: {told}, newest: {newest}, {} bytes", text.len());
    assert!(text.find(": lagged ") < text.rfind("data: "), "the newest follows the comment");
}
