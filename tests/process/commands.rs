//! What the commands answer and exit with: mistakes, taken ports and stores, help texts, `check`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::support::client;
use crate::support::proxy::eventually;
use crate::{BINARY, Serving, configure, herd};

fn run(arguments: &[&str], directory: &Path) -> Output {
    let mut command = Command::new(BINARY);
    command.args(arguments).current_dir(directory).stdin(Stdio::null());
    command.output().expect("the binary starts")
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn wrong_flags_and_wrong_configuration_exit_64_with_every_mistake() {
    let directory = tempfile::tempdir().unwrap();
    for arguments in [
        &["serve", "--no-such-flag"][..],
        &["serve", "--listen", "nowhere"],
        &["serve", "--node", "ftp://x"],
        &["serve", "--workers", "many"],
        &["no-such-command"],
        &[],
        &["check"],
        &["serve", "--config", "no-such-file.yaml"],
    ] {
        let output = run(arguments, directory.path());
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {}", text(&output));
        assert!(!output.stderr.is_empty());
    }
    let path = directory.path().join("bad.yaml");
    let bad = "listen: here\nno_such_key: 1\nworkers: -3\ntimeouts: { connect: fast, nothing: 1s }\nnodes: [ { url: 7 } ]\n\
               limits: { head: 3 }\nrouter_keys: [ '' ]\n";
    std::fs::write(&path, bad).unwrap();
    for command in ["check", "serve"] {
        let output = run(&[command, "--config", "bad.yaml"], directory.path());
        assert_eq!(output.status.code(), Some(64), "{}", text(&output));
        let said = text(&output);
        for key in [
            "listen",
            "no_such_key",
            "workers",
            "timeouts.connect",
            "timeouts.nothing",
            "nodes",
            "limits.head",
            "router_keys",
        ] {
            let line = said.lines().find(|line| line.contains(key));
            let line = line.unwrap_or_else(|| panic!("{key} is not in {said}"));
            assert!(line.contains("bad.yaml:"), "file and line are missing: {line}");
        }
    }
    let output = run(&["check", "--lenient", "--config", "bad.yaml"], directory.path());
    assert_eq!(output.status.code(), Some(64), "the other mistakes stay mistakes");
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure_and_a_full_disk_is_one_in_words() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("ok.yaml"), "workers: 1\n").unwrap();
    let print = |arguments: &[&str], out: Stdio| {
        let mut command = Command::new(BINARY);
        command.args(arguments).current_dir(directory.path()).stdin(Stdio::null()).stdout(out).stderr(Stdio::piped());
        command.spawn().unwrap().wait_with_output().unwrap()
    };
    for arguments in [&["check", "--config", "ok.yaml"][..], &["package", "config"], &["man"], &["completions", "bash"]]
    {
        let (_, gone) = std::io::pipe().unwrap();
        let output = print(arguments, gone.into());
        assert_eq!((output.status.code(), text(&output)), (Some(0), String::new()), "{arguments:?}");
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = print(arguments, full.into());
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output));
        assert!(!text(&output).contains("panicked"), "{arguments:?}: {}", text(&output));
    }
}

#[test]
fn a_taken_port_exits_69() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let output = run(&["serve", "--listen", &listen, "--node", "http://127.0.0.1:9"], directory.path());
    assert_eq!(output.status.code(), Some(69), "{}", text(&output));
    assert!(text(&output).contains(&listen), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_store_exits_75_and_a_shared_port_69() {
    let (herd, directory) = (herd(), tempfile::tempdir().unwrap());
    let config = configure(directory.path(), &herd.urls(), "");
    let serving = Serving::start(&config).await;
    let config = config.to_str().unwrap();
    let output = run(&["serve", "--config", config], directory.path());
    assert_eq!(output.status.code(), Some(75), "{}", text(&output));
    let listen = serving.address.to_string();
    let output = run(&["serve", "--config", config, "--listen", &listen], directory.path());
    assert_eq!(output.status.code(), Some(69), "the port of another gate is taken: {}", text(&output));
    // Where it may, it serves with the ledger in memory, and says so.
    let optional = std::fs::read_to_string(config).unwrap() + "ledger: { required: false }\n";
    let path = directory.path().join("optional.yaml");
    std::fs::write(&path, optional).unwrap();
    let second = Serving::start(&path).await;
    let metrics = client::get(second.address, "/metrics").await.text();
    assert!(metrics.contains("herdgate_ledger_degraded 1"), "{metrics}");
    // And takes the store when it is freed.
    serving.signal(Signal::TERM);
    assert_eq!(serving.ended().await.0.code(), Some(0));
    let address = second.address;
    eventually("the store is taken", || async {
        client::get(address, "/metrics").await.text().contains("herdgate_ledger_degraded 0")
    })
    .await;
}

/// Processor time of a process, in milliseconds.

#[test]
fn every_command_has_a_help_text_and_exits_0() {
    let directory = tempfile::tempdir().unwrap();
    for (arguments, words) in [
        (&["--help"][..], &["serve", "demo", "sim", "check"][..]),
        (&["serve", "--help"], &["--config", "--listen", "--node", "--data", "--workers", "--lenient"]),
        (&["demo", "--help"], &["--for"]),
        (&["sim", "--help"], &["--nodes", "--model", "--load-time"]),
        (&["check", "--help"], &["--config", "--lenient"]),
        (&["status", "--help"], &["--json", "--listen", "--key", "--config"]),
        (&["drain", "--help"], &["NODE", "--wait", "HERDGATE_KEY"]),
        (&["undrain", "--help"], &["NODE", "--wait"]),
        (&["reload", "--help"], &["--config", "exit 64"]),
    ] {
        let output = run(arguments, directory.path());
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        let help = String::from_utf8(output.stdout).unwrap();
        for word in words {
            assert!(help.contains(word), "{arguments:?} does not explain {word}: {help}");
        }
        assert!(output.stderr.is_empty());
    }
    let version = run(&["--version"], directory.path());
    assert!(text(&version).starts_with("herdgate "));
}

#[test]
fn check_accepts_the_ancestors_file() {
    let directory = tempfile::tempdir().unwrap();
    let theirs = "# NOMYO router\nendpoints:\n  - http://192.168.0.50:11434\n  - http://192.168.0.51:11434\n  \
                  - http://192.168.0.60:8000/v1\nllama_server_endpoints:\n  - http://192.168.0.70:8080/v1\n\
                  max_concurrent_connections: 2\napi_keys:\n  \"http://192.168.0.60:8000/v1\": \"sk-1\"\n\
                  nomyo-router-api-key: \"sesame\"\ndb_path: token_counts.db\n";
    std::fs::write(directory.path().join("config.yaml"), theirs).unwrap();
    let output = run(&["check", "--config", "config.yaml"], directory.path());
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
    let said = String::from_utf8(output.stdout.clone()).unwrap();
    for word in ["192.168.0.50:11434", "192.168.0.60:8000", "192.168.0.70:8080"] {
        assert!(said.contains(word), "{said}");
    }
    assert!(!text(&output).contains("sesame") && !text(&output).contains("sk-1"), "keys are not shown");
    std::fs::write(
        directory.path().join("config.yaml"),
        theirs.replace("endpoints:\n  - http:", "endpoints:\n  - https:"),
    )
    .unwrap();
    let output = run(&["check", "--config", "config.yaml"], directory.path());
    assert_eq!(output.status.code(), Some(64), "https is an error, never a node that is down");
}
