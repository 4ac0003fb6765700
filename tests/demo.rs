//! `herdgate demo` as a newcomer runs it: it ends by itself or at Ctrl-C, with exit code 0, and keeps nothing.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

fn demo(temporary: &std::path::Path, arguments: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_herdgate"))
        .arg("demo")
        .args(arguments)
        .env("TMPDIR", temporary)
        .current_dir(temporary)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary starts")
}

fn is_empty(directory: &std::path::Path) -> bool {
    std::fs::read_dir(directory).expect("a readable folder").next().is_none()
}

#[test]
fn it_ends_after_its_time_with_an_account_that_the_nodes_confirm() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let output = demo(temporary.path(), &["--for", "4", "--nodes", "3"]).wait_with_output().expect("it ends");
    let said = String::from_utf8(output.stdout).expect("text");
    assert!(output.status.success(), "{said}");
    assert!(said.starts_with("herdgate http://127.0.0.1:"), "{said}");
    assert!(said.contains("curl http://127.0.0.1:"), "{said}");
    let (_, account) = said.split_once("requests by ending:").expect("an account");
    let served: Vec<&str> = account.lines().filter(|line| line.starts_with("node-")).collect();
    assert!(!served.is_empty(), "{said}");
    for line in served {
        // node, model, requests, tokens in, tokens out, and what the node says: IN / OUT.
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [_, _, _, input, output, own_input, "/", own_output] = words[..] {
            assert_eq!((input, output), (own_input, own_output), "{said}");
        }
    }
    assert!(is_empty(temporary.path()), "something was left behind");
}

#[test]
fn it_ends_at_an_interrupt() {
    let temporary = tempfile::tempdir().expect("a temporary folder");
    let mut child = demo(temporary.path(), &["--nodes", "1"]);
    let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
    let mut line = String::new();
    while !line.trim_start().starts_with("1s ") {
        line.clear();
        assert!(output.read_line(&mut line).expect("lines") > 0, "it ended before its first second");
    }
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a process id")).expect("a process id");
    kill_process(pid, Signal::INT).expect("the signal is sent");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("the rest");
    assert!(child.wait().expect("it ends").success(), "{rest}");
    assert!(rest.contains("requests by ending:"), "{rest}");
    assert!(is_empty(temporary.path()), "something was left behind");
}
