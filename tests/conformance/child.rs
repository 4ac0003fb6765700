//! The gate as a process of its own, where its memory is looked at.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use herdgate::sync::spawn_thread;

use crate::support::client;
use crate::support::proxy::eventually;

/// A running `herdgate serve`; killed when dropped.
pub(crate) struct Child {
    child: std::process::Child,
    pub(crate) address: SocketAddr,
    log: Option<JoinHandle<()>>,
    _directory: tempfile::TempDir,
}

impl Child {
    /// Starts it in front of these nodes and waits until it is ready.
    pub(crate) async fn serving(urls: &[String]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_herdgate"));
        command.args(["serve", "--listen", "127.0.0.1:0", "--workers", "2", "--data"]).arg(directory.path());
        command.current_dir(directory.path());
        for url in urls {
            command.args(["--node", url]);
        }
        let mut child = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let (found, address) = flume::bounded(1);
        let log = spawn_thread("log", move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let said = serde_json::from_str::<serde_json::Value>(&line).unwrap_or_default();
                if let Some(address) = said["address"].as_str() {
                    let _ = found.try_send(address.parse().unwrap());
                }
            }
        });
        let address: SocketAddr = tokio::time::timeout(Duration::from_secs(60), address.recv_async())
            .await
            .expect("it serves in time")
            .expect("it says where");
        let this = Self { child, address, log: Some(log.unwrap()), _directory: directory };
        eventually("ready", || async { client::get(address, "/herdgate/ready").await.status == 200 }).await;
        this
    }

    /// What is resident of it, bytes.
    pub(crate) fn resident(&self) -> u64 {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.log.take().unwrap().join();
    }
}
