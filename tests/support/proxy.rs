//! The whole proxy in this process, in front of given nodes, with a data directory of its own.

use std::net::SocketAddr;
use std::time::Duration;

use herdgate::clock::Clock;
use herdgate::config::{self, Config, Flags, Sources};
use herdgate::fleet::resolve::Resolver;
use herdgate::gate::{Gate, Start};
use herdgate::operator::Origin;
use herdgate::shared::Shared;
use tempfile::TempDir;

use super::client;

/// A running proxy; stopped, with its last flush checked, by [`Proxy::stop`] (or by drop, unchecked).
pub struct Proxy {
    gate: Option<Gate>,
    pub address: SocketAddr,
    pub data: TempDir,
}

/// A configuration for tests: the nodes given, port 0, two workers, quick polls; `extra` is further YAML.
pub fn config(urls: &[String], data: &std::path::Path, extra: &str) -> Config {
    let text = text(urls, data, extra);
    let sources =
        Sources { file: Some(("test.yaml".into(), text)), flags: Flags::default(), env: config::Env::default() };
    config::load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).config
}

/// The same as a file.
fn text(urls: &[String], data: &std::path::Path, extra: &str) -> String {
    let nodes: Vec<String> = urls.iter().map(|url| format!("  - {{ url: '{url}' }}\n")).collect();
    let given = |key: &str| extra.lines().any(|line| line.starts_with(key));
    let mut text = String::new();
    if !given("nodes:") {
        text += &format!("nodes:\n{}", nodes.concat());
    }
    if !given("health:") {
        text += "health: { probe: 100ms, probe_timeout: 2s, backoff_max: 200ms, ps: 200ms, tags: 500ms }\n";
    }
    if !given("workers:") {
        text += "workers: 2\n";
    }
    if !given("listen:") {
        text += "listen: 127.0.0.1:0\n";
    }
    text += &format!("data: {}\n{extra}\n", data.display());
    text
}

impl Proxy {
    /// Starts it and waits until it is ready.
    pub async fn start(urls: &[String], extra: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), urls, extra, Clock::system()).await
    }

    /// The same on a data directory that exists.
    pub async fn start_in(data: TempDir, urls: &[String], extra: &str, clock: Clock) -> Self {
        let config = config(urls, data.path(), extra);
        Self::start_with(data, config, clock).await
    }

    /// The same with a configuration as it is, whose data directory is this one.
    pub async fn start_with(data: TempDir, config: Config, clock: Clock) -> Self {
        let gate = tokio::task::spawn_blocking(move || Gate::start(config, clock)).await.unwrap().unwrap();
        let address = gate.address();
        let proxy = Self { gate: Some(gate), address, data };
        proxy.until("ready", || async { client::get(address, "/herdgate/ready").await.status == 200 }).await;
        proxy
    }

    /// From a file in its data directory, which [`Proxy::reload`] writes anew.
    pub async fn from_file(urls: &[String], extra: &str) -> Self {
        Self::from_file_in(tempfile::tempdir().unwrap(), urls, extra, Resolver::system()).await
    }

    /// The same on a data directory that exists, with a resolver of the test's.
    pub async fn from_file_in(data: TempDir, urls: &[String], extra: &str, resolver: Resolver) -> Self {
        Self::from_file_with(data, urls, extra, |start| Start { resolver, ..start }).await
    }

    /// The same with whatever else it is started with.
    pub async fn from_file_with(
        data: TempDir,
        urls: &[String],
        extra: &str,
        adjust: impl FnOnce(Start) -> Start,
    ) -> Self {
        let named = data.path().join("herdgate.yaml");
        std::fs::write(&named, text(urls, data.path(), extra)).unwrap();
        let origin = Origin { named: Some(named), ..Origin::default() };
        let config = config::load(&origin.sources().unwrap()).unwrap_or_else(|mistakes| panic!("{mistakes:?}")).config;
        let start = adjust(Start { origin: Some(origin), ..Start::fixed(config, Clock::system()) });
        let gate = tokio::task::spawn_blocking(move || Gate::begin(start)).await.unwrap().unwrap();
        let address = gate.address();
        let proxy = Self { gate: Some(gate), address, data };
        let ready = || async { proxy.shared().fleet.load().ready };
        proxy.until("ready", ready).await;
        proxy
    }

    /// Writes the file anew and lets it be read again.
    pub async fn reload(&self, urls: &[String], extra: &str) -> client::Answer {
        std::fs::write(self.data.path().join("herdgate.yaml"), text(urls, self.data.path(), extra)).unwrap();
        self.order("reload").await
    }

    /// An order of the operator's, with the first key that is configured.
    pub async fn order(&self, path: &str) -> client::Answer {
        let config = self.shared().config.now();
        let key = config.router_keys.first().map(|key| format!("Bearer {}", key.secret.0));
        let headers: Vec<_> = key.iter().map(|key| ("Authorization", key.as_str())).collect();
        let mut client = client::Client::connect(self.address).await;
        client.send(&client::request("POST", &format!("/herdgate/{path}"), &headers, b"")).await;
        client.answer().await.expect("an order is answered")
    }

    pub fn shared(&self) -> &Shared {
        &self.gate.as_ref().expect("running").shared
    }

    pub fn gate(&self) -> &Gate {
        self.gate.as_ref().expect("running")
    }

    /// Waits until something holds; fails by name after a minute.
    pub async fn until<F: Future<Output = bool>>(&self, what: &str, holds: impl FnMut() -> F) {
        eventually(what, holds).await;
    }

    /// Waits until a model is listed by `/api/tags`.
    pub async fn until_listed(&self, model: &str) {
        let address = self.address;
        self.until(model, || async { client::get(address, "/api/tags").await.text().contains(model) }).await;
    }

    /// Everything recorded so far is in the store.
    pub async fn flush(&self) {
        self.shared().ledger.flush().await.expect("a flush");
    }

    /// Requests in slots now, all nodes and models together.
    pub fn in_flight(&self) -> u64 {
        let snapshot = self.shared().fleet.snapshot.load_full();
        let slots = snapshot.models.values().flat_map(|model| model.candidates.iter());
        slots.map(|candidate| u64::from(candidate.pair.cell.view().in_flight)).sum()
    }

    /// How many nodes have this model loaded, as the proxy knows it.
    pub fn loaded(&self, name: &str) -> usize {
        let key = herdgate::dialect::name::key(name);
        let snapshot = self.shared().fleet.load();
        let candidates = snapshot.models.get(&key).map(|model| model.candidates.iter());
        candidates.map_or(0, |all| all.filter(|one| one.pair.cell.view().loaded).count())
    }

    /// How many requests wait for this model.
    pub fn waiting(&self, name: &str) -> u32 {
        let key = herdgate::dialect::name::key(name);
        self.shared().fleet.load().models.get(&key).map_or(0, |model| model.queue.len())
    }

    /// Drains and ends; the data directory stays for the next.
    pub async fn stop(mut self) -> TempDir {
        let gate = self.gate.take().expect("running");
        tokio::task::spawn_blocking(move || gate.stop()).await.unwrap().expect("the last flush");
        std::mem::replace(&mut self.data, tempfile::tempdir().unwrap())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            // The runtime of the test may be current: the end waits for threads, so it gets one of its own.
            let _ = std::thread::scope(|scope| scope.spawn(|| gate.stop()).join());
        }
    }
}

/// Waits until something holds; fails by name after a minute.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    for _ in 0..6000 {
        if holds().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("never: {what}");
}
