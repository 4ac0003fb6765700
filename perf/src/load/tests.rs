//! The generator against nodes in a thread: what it completes, and what it must call an error.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;
use crate::backend::{self, Backend};
use crate::scenario::Scenario;

fn shipped(name: &str) -> Scenario {
    let all = crate::scenario::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
    all.into_iter().find(|s| s.name == name).unwrap()
}

/// What the generator says of nodes that serve `served` while it asks for `asked`.
#[expect(clippy::disallowed_methods, reason = "a test's own thread")]
fn figures(served: Scenario, asked: Scenario, mode: Mode) -> Figures {
    let job = backend::Job { scenarios: vec![served], nodes: 2, models: 3, seconds_max: 60 };
    let end = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&end);
    let (tell, told) = std::sync::mpsc::channel();
    let serving = std::thread::spawn(move || {
        let mut nodes = Backend::new(&job).unwrap();
        tell.send(nodes.ports().unwrap()).unwrap();
        nodes.run(&|| seen.load(Ordering::Relaxed)).unwrap();
    });
    let port = told.recv().unwrap()[1];
    let job = Job { scenario: asked, port, mode, warm_ms: 5, window_ms: 60, watch: Vec::new(), backend: None };
    let figures = measure(job);
    end.store(true, Ordering::Relaxed);
    serving.join().unwrap();
    figures.unwrap()
}

#[test]
fn closed_and_open_loops_complete_what_they_start() {
    for mode in [Mode::Closed { connections: 3 }, Mode::Open { per_second: 500.0, connections: 4, seed: 1 }] {
        let figures = figures(shipped("burst64"), shipped("burst64"), mode);
        assert_eq!((figures.errors, figures.first_error), (0, None));
        assert!(figures.completed > 0 && figures.gaps.count >= 63, "{}", figures.completed);
        assert!(figures.completed_in_all >= figures.completed);
    }
}

#[test]
fn held_streams_open_and_are_checked() {
    let mut held = shipped("open9000");
    held.answer.every_ms = 10;
    let figures = figures(held.clone(), held, Mode::Hold { connections: 5 });
    assert_eq!((figures.errors, figures.first_error), (0, None));
    assert!(figures.gaps.count > 0);
}

#[test]
fn a_wrong_answer_or_a_bent_request_is_an_error() {
    let mut other = shipped("short");
    other.answer.form = Form::Embedding;
    other.answer.records = 3;
    let asks_as_before = |mut s: Scenario| {
        s.request.prompt_bytes += 1;
        s
    };
    let mode = Mode::Closed { connections: 1 };
    let bent = figures(shipped("short"), asks_as_before(shipped("short")), mode.clone());
    assert!(bent.first_error.unwrap().contains("status 400"));
    let mut longer = shipped("burst64");
    longer.answer.records = 65;
    let wrong = figures(longer, shipped("burst64"), mode);
    assert!(wrong.errors > 0 && wrong.completed == 0);
}
