//! Tests of the configuration as a whole. Properties:
//! - the embedded file is the default, names every key, and is right with every example in it uncommented;
//! - every mistake of a file is reported in one run, at its line; each rule has a case;
//! - flags lie over variables, variables over the file, the file over the ancestor's variables;
//! - no text panics, whatever it is.

use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::load::fill;
use super::walk::Walk;
use super::*;

/// Sources with one file.
pub(super) fn file(text: &str) -> Sources {
    Sources { file: Some((PathBuf::from("gate.yaml"), text.to_owned())), ..Sources::default() }
}

/// Sources with one file and an environment.
pub(super) fn file_and_env(text: &str, env: &[(&str, &str)]) -> Sources {
    Sources { env: variables(env), ..file(text) }
}

fn variables(env: &[(&str, &str)]) -> Env {
    env.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

fn only_env(env: &[(&str, &str)]) -> Sources {
    Sources { env: variables(env), ..Sources::default() }
}

/// The configuration of sources that must be right.
pub(super) fn right(sources: &Sources) -> Loaded {
    load(sources).unwrap_or_else(|mistakes| panic!("mistakes in what is right: {:#?}", shown(&mistakes)))
}

/// The mistakes of sources that must be wrong, as they are printed.
pub(super) fn wrong(sources: &Sources) -> Vec<String> {
    match load(sources) {
        Ok(_) => panic!("no mistake found in {sources:?}"),
        Err(mistakes) => shown(&mistakes),
    }
}

pub(super) fn shown(mistakes: &[Mistake]) -> Vec<String> {
    mistakes.iter().map(ToString::to_string).collect()
}

/// One mistake, at one line, with these words.
fn one_wrong(text: &str, line: usize, words: &str) {
    let mistakes = wrong(&file(text));
    let place = format!("gate.yaml:{line}:");
    assert!(
        mistakes.len() == 1 && mistakes[0].starts_with(&place) && mistakes[0].contains(words),
        "wanted one mistake at {place} with {words:?}, got {mistakes:#?} in\n{text}"
    );
}

// The embedded file.

#[test]
fn the_embedded_file_is_the_default() {
    let loaded = right(&file(DEFAULT_FILE));
    assert_eq!(loaded.config, Config::default());
    assert_eq!(shown(&loaded.warnings), Vec::<String>::new());
    assert_eq!(right(&Sources::default()).config, Config::default());
    assert_eq!(right(&file("")).config, Config::default());
    assert_eq!(right(&file("# nothing\n")).config, Config::default());
}

/// The embedded file with its examples uncommented: `# key: value` and `# - key: value` are examples, prose never
/// looks like that.
fn with_examples() -> String {
    let uncomment = |line: &str| {
        let indent = line.len() - line.trim_start().len();
        let example = line.trim_start().strip_prefix("# ").filter(|rest| {
            let key = rest.strip_prefix("- ").unwrap_or(rest).split(':').next().unwrap_or("");
            rest.contains(':') && !key.is_empty() && key.bytes().all(|b| b.is_ascii_lowercase() || b"_3*".contains(&b))
        });
        match example {
            Some(example) if indent > 0 => format!("{}{example}\n", &line[..indent]),
            _ => format!("{line}\n"),
        }
    };
    let text: String = DEFAULT_FILE.lines().map(uncomment).collect();
    text.replace("models: {}", "models:").replace("router_keys: []", "router_keys:")
}

#[test]
fn the_embedded_file_names_every_key_and_its_examples_are_right() {
    let text = with_examples();
    let mut walk = Walk::new(false);
    let config = fill(&file(&text), &mut walk);
    assert_eq!(shown(&walk.mistakes), Vec::<String>::new(), "in\n{text}");
    let ancestors = |key: &String| key == "limits" || super::ancestor::our_key(key).is_some();
    walk.absent.retain(|key| !ancestors(key));
    assert_eq!(walk.absent, Vec::<String>::new(), "keys that default.yaml does not show");
    assert_eq!(config.nodes[0].name, "gpu1");
    assert_eq!(config.nodes[0].connect_timeout, Some(Duration::from_secs(2)));
    assert_eq!(config.models[0].pull_targets, ["gpu1"]);
    assert_eq!(config.models[0].timeouts.queue_wait, Some(Duration::from_secs(270)));
    assert_eq!(config.router_keys[0].secret, Secret("secret".to_owned()));
}

// Every mistake at once.

#[test]
fn ten_mistakes_are_ten_reports_at_their_lines() {
    let text = "\
listen: 12434
workers: none
nodes:
  - url: https://gpu1
  - url: http://gpu2:11434
    knid: ollama
timeouts: { connect: 2, pool_idle: 1 hour }
limits:
  max_body: 128MB
router_keys:
  - ''
administration: everybody
log:
  level: loud
";
    let mistakes = load(&file(text)).unwrap_err();
    let found: Vec<(usize, usize, &str)> = mistakes
        .iter()
        .map(|mistake| match mistake.place {
            Place::File { line, column, .. } => (line, column, mistake.key.as_str()),
            _ => panic!("{mistake}"),
        })
        .collect();
    let wanted = [
        (1, 9, "listen"),
        (2, 10, "workers"),
        (4, 10, "nodes[0].url"),
        (6, 5, "nodes[1].knid"),
        (7, 22, "timeouts.connect"),
        (7, 36, "timeouts.pool_idle"),
        (9, 13, "limits.max_body"),
        (11, 5, "router_keys[0]"),
        (12, 17, "administration"),
        (14, 10, "log.level"),
    ];
    assert_eq!(found, wanted);
    let printed = shown(&mistakes);
    assert_eq!(
        printed[4],
        "gate.yaml:7:22: timeouts.connect: value `2`: has no unit, such as 2s; a duration is a whole number and a unit: 100ms, 2s, 5m, 24h, 30d"
    );
    assert!(printed[3].ends_with("unknown key; did you mean `kind`?"), "{}", printed[3]);
    assert!(printed[6].contains("value `128MB`: ") && printed[6].ends_with("did you mean 128MiB?"), "{}", printed[6]);
    assert!(printed[7].contains("leave it out instead"), "{}", printed[7]);
}

#[test]
fn unknown_keys_say_where_they_belong() {
    one_wrong("listne: x", 1, "did you mean `listen`?");
    one_wrong("connect: 2s", 1, "did you mean `timeouts.connect`?");
    one_wrong("limits: { probe: 2s }", 1, "did you mean `health.probe`?");
    one_wrong("log: { headers: on }", 1, "stands at the left margin");
    one_wrong("zzz: 1", 1, "known here: listen, data, workers");
    one_wrong(
        "listen: 127.0.0.1:1\nendpoints: []",
        2,
        "it is the ancestor's, whose file has no key of ours; write `nodes`",
    );
    one_wrong("data: x\ncache_ttl: 1", 2, "no response cache");
}

/// Of every time-out that there is: who may have one of his own, and why not who may not.
#[test]
fn each_time_out_is_overridden_where_that_means_something_and_refused_in_words_elsewhere() {
    for (name, node, model) in [
        ("connect", Ok(()), Err("serves all of its models (a node may have its own)")),
        ("request_head", Err("before a node is chosen"), Err("before its model is known")),
        ("request_body_idle", Err("before a node is chosen"), Err("before its model is known")),
        ("client_idle", Err("between two requests"), Err("between two requests")),
        ("pool_idle", Ok(()), Err("serves all of its models (a node may have its own)")),
        ("stream_idle", Ok(()), Ok(())),
        ("client_stall", Ok(()), Ok(())),
        ("queue_wait", Err("has no node yet (a model may have its own)"), Ok(())),
        ("suspect_after", Ok(()), Ok(())),
    ] {
        right(&file(&format!("timeouts: {{ {name}: 7s }}")));
        let of_node = format!("nodes: [ {{ url: 'http://a:1', timeouts: {{ {name}: 7s }} }} ]");
        let of_model = format!("models: {{ m: {{ timeouts: {{ {name}: 7s }} }} }}");
        for (text, expected) in [(of_node, node), (of_model, model)] {
            match expected {
                Ok(()) => {
                    let config = right(&file(&text)).config;
                    let said = super::describe(&config);
                    assert!(
                        said.contains(&format!("{name} 7s")) || said.contains(&format!("{name}: 7s")),
                        "{text}: {said}"
                    );
                }
                Err(why) => {
                    one_wrong(&text, 1, why);
                    one_wrong(&text, 1, &format!("it is `timeouts.{name}` for all"));
                }
            }
        }
    }
    let all = include_str!("default.yaml");
    let (_, section) = all.split_once("\ntimeouts:\n").unwrap();
    let keys = section.lines().take_while(|line| line.starts_with("  ")).filter(|line| !line.trim().starts_with('#'));
    assert_eq!(keys.count(), 9, "a new time-out has its place in the table above");
}

#[test]
fn lenient_makes_unknown_keys_warnings_and_nothing_else() {
    let mut sources = file("listne: x\nnodes: [ { url: 'http://a:1', x: 1 } ]");
    sources.flags.lenient = true;
    let warnings = shown(&right(&sources).warnings);
    assert_eq!(warnings.len(), 2);
    assert!(warnings[0].starts_with("gate.yaml:1:1: listne: unknown key"), "{warnings:?}");
    sources.file = file("listne: x\nworkers: 0").file;
    assert_eq!(wrong(&sources).len(), 1);
}

#[test]
fn wrong_types() {
    one_wrong("- a", 1, "wants a mapping of keys, not a list");
    one_wrong("hello", 1, "wants a mapping of keys, not text");
    one_wrong("nodes: http://a:1", 1, "value `http://a:1`: wants a list, not text");
    one_wrong("timeouts: 2s", 1, "wants a mapping of keys, not text");
    one_wrong("workers: [1]", 1, "wants one value, not a list");
    one_wrong("workers: '4'", 1, "without quotes");
    one_wrong("workers: 4.5", 1, "whole number");
    one_wrong("listen:", 1, "has no value");
    one_wrong("router_keys:", 1, "has no value");
    one_wrong("router_keys: [1234]", 1, "wants text; put it in quotes");
    one_wrong("data: 12", 1, "put it in quotes: \"12\"");
    one_wrong("data: ''", 1, "is empty");
    one_wrong("ledger: { required: maybe }", 1, "must be one of true, false, on, off");
    one_wrong("log: { access: error }", 1, "did you mean errors?");
    one_wrong("headers: 1", 1, "must be one of");
    one_wrong("debug: { flamegraph: 10 }", 1, "must be one of");
    one_wrong("nodes: []", 1, "a gate needs a node");
    one_wrong("nodes: [ { name: a } ]", 1, "nodes[0].url: is missing");
    // A section whose keys are all commented out is an empty one.
    assert_eq!(right(&file("timeouts:\n  # connect: 1s\nmodels:\n")).config, Config::default());
}

#[test]
fn ranges() {
    for (text, words) in [
        ("workers: 0", "from 1 to 1024, or auto"),
        ("workers: 99999999999999999999", "whole number"),
        ("workers: -1", "whole number"),
        ("slots: 0", "must be soft, or a number"),
        ("slots: soft 0", "must be soft"),
        ("slots: hard", "must be soft"),
        ("slots: 4294967297", "must be soft"),
        ("timeouts: { connect: 0s }", "must be from 1ms to 1h"),
        ("timeouts: { stream_idle: 2d }", "must be from 1ms to 1d"),
        ("limits: { head: 1KiB }", "must be from 8KiB to 1MiB"),
        ("limits: { connections: 64 }", "from 65"),
        ("limits: { queue_length: 0 }", "from 1 to"),
        ("health: { panic_threshold: 101 }", "from 1 to 100"),
        ("routing: { retry_share: 101 }", "from 0 to 100"),
        ("ledger: { tick: 1ms }", "must be from 10ms"),
        ("shutdown: { delay: 2h }", "must be from 0s to 1h"),
    ] {
        one_wrong(text, 1, words);
    }
}

#[test]
fn no_yaml_says_where() {
    one_wrong("listen: 127.0.0.1:1\nnodes: [ {", 3, "no YAML");
    one_wrong("listen: 127.0.0.1:1\n---\ndata: x", 3, "a second document");
    one_wrong("data: !path x", 1, "means nothing here");
    one_wrong("data: *x", 1, "no YAML");
    one_wrong("? [a]\n: b", 1, "a key must be a word");
    one_wrong(&format!("data: x\nlog: {}", "- ".repeat(5000)), 2, "nested too deeply");
    one_wrong(&format!("data: x\n{}a: b", " ".repeat(300)), 2, "nested too deeply");
    let large = format!("data: x\n#{}", "x".repeat(2 << 20));
    assert!(wrong(&file(&large))[0].starts_with("gate.yaml: the file has"), "no line for the whole");
}

#[test]
fn duplicate_keys_are_all_reported_beside_the_rest() {
    let text = "workers: 0\nlog: { level: info }\nworkers: 2\nlog: { level: info, level: info }\n'workers': 3\n";
    let mistakes = wrong(&file(text));
    assert_eq!(mistakes.len(), 4, "{mistakes:#?}");
    assert!(mistakes[0].starts_with("gate.yaml:1:10: workers: value `0`"), "{}", mistakes[0]);
    assert_eq!(mistakes[1], "gate.yaml:3:1: workers: stands twice, first in line 1");
    assert_eq!(mistakes[2], "gate.yaml:4:1: log: stands twice, first in line 2");
    assert_eq!(mistakes[3], "gate.yaml:5:1: workers: stands twice, first in line 1");
    one_wrong("log: { level: info, level: warn }", 1, "log.level: stands twice");
    one_wrong("models: { a: { slots: 1 }, a: { slots: 2 } }", 1, "models.a: stands twice");
}

#[test]
fn marks_and_line_ends_move_no_position() {
    one_wrong("\u{feff}# ü\r\ndata: x\r\nworkers: 0\r\n", 3, "workers");
    let mistakes = wrong(&file("\u{feff}data: x\ndata: y\n"));
    assert_eq!(mistakes, ["gate.yaml:2:1: data: stands twice, first in line 1"]);
    let mistakes = wrong(&file("log: { 'ü': 1, level: loud }\n"));
    assert!(mistakes[1].starts_with("gate.yaml:1:23: log.level"), "{mistakes:?}");
}

#[test]
fn the_deepest_nesting_that_is_read_fits_a_stack() {
    let deep = format!("{0}\n{1}{0}\n{1}{1}{0}{2}", "- ".repeat(64), " ".repeat(128), "[".repeat(254));
    assert!(!wrong(&file(&deep)).is_empty());
    let keys = format!("{0}\n{1}{0}\n{1}{1}{0}x", "? ".repeat(64), " ".repeat(128));
    assert!(!wrong(&file(&keys)).is_empty());
}

#[test]
fn many_mistakes_stay_cheap() {
    let text: String = (0..2_000).map(|n| format!("k{n}: 1\n")).collect();
    assert_eq!(wrong(&file(&text)).len(), 2_000);
}

// Nodes.

#[test]
fn nodes_in_every_form() {
    let text = "
nodes:
  - http://gpu1:11434
  - { url: 'http://gpu2:11434/', name: two, slots: 8, expand: true, cloud: on, api_key: k }
  - { url: 'http://gpu3:8080/v1', slots: soft 2, timeouts: { connect: 5s, stream_idle: 1h } }
  - { url: 'http://gpu4:8080/base', kind: openai, slots: soft }
";
    let loaded = right(&file(text));
    assert_eq!(loaded.warnings, []);
    let nodes = &loaded.config.nodes;
    assert_eq!(nodes.len(), 4);
    assert_eq!((nodes[0].name.as_str(), nodes[0].kind), ("http://gpu1:11434", NodeKind::Ollama));
    assert_eq!((nodes[1].name.as_str(), nodes[1].url.as_str()), ("two", "http://gpu2:11434/"));
    assert_eq!((nodes[1].slots, nodes[1].expand, nodes[1].cloud), (Some(SlotsConfig::Hard(8)), true, true));
    assert_eq!(nodes[1].api_key, Some(Secret("k".to_owned())));
    assert_eq!((nodes[2].kind, nodes[2].base_path.as_str()), (NodeKind::OpenAi, ""));
    assert_eq!(nodes[2].slots, Some(SlotsConfig::Soft(2)));
    assert_eq!(nodes[2].connect_timeout, Some(Duration::from_secs(5)));
    assert_eq!(nodes[2].timeouts.stream_idle, Some(Duration::from_secs(3600)));
    assert_eq!((nodes[3].kind, nodes[3].base_path.as_str()), (NodeKind::OpenAi, "/base"));
    assert_eq!(nodes[3].slots, Some(SlotsConfig::SOFT_DEFAULT));
}

#[test]
fn nodes_that_cannot_be() {
    for (node, words) in [
        ("hello", "looks like http://gpu1:11434"),
        ("https://gpu1", "https is not supported yet"),
        ("'http://me:secret@gpu1:1'", "belong in `api_key`"),
        ("{ url: 'http://a:1/v1', kind: ollama }", "ends with /v1, which is a node of kind openai"),
        ("{ url: 'http://a:1', kind: olama }", "did you mean ollama?"),
        ("{ url: 'http://a:1', api_key: '' }", "leave it out instead"),
        ("{ url: 'http://a:1', name: _other }", "kept for sums"),
        ("{ url: 'http://a:1', name: \"a\\nb\" }", "control character"),
        ("{ url: 'http://a:1', apikey: x }", "did you mean `api_key`?"),
        ("{ url: 'http://a:1', timeouts: { conect: 1s } }", "did you mean `connect`?"),
        ("12", "put it in quotes"),
        ("[]", "wants a mapping of keys, not a list"),
        ("~", "nodes[0].url: is missing"),
        (&format!("http://a:1/{}", "x".repeat(300)), "longer than 256 bytes"),
    ] {
        one_wrong(&format!("nodes:\n  - {node}\n"), 2, words);
    }
    // The other keys of a node with a wrong URL are checked as well.
    assert_eq!(wrong(&file("nodes: [ { url: hello, slots: 0, nmae: x } ]")).len(), 3);
}

#[test]
fn two_nodes_with_one_name_are_a_mistake_and_one_server_twice_a_warning() {
    one_wrong(
        "nodes:\n  - { url: 'http://a:1', name: x }\n  - { url: 'http://b:1', name: x }",
        3,
        "has the name of nodes[0]",
    );
    one_wrong("nodes:\n  - http://a:1\n  - http://a:1\n", 3, "has the name of nodes[0]");
    one_wrong("nodes:\n  - http://a:1\n  - { url: 'http://b:1', name: 'http://a:1' }\n", 3, "has the name of nodes[0]");
    for twin in ["http://A:11434", "http://a:11434/", "http://a:11434/v1", "HTTP://a.:11434"] {
        let warnings = shown(&right(&file(&format!("nodes:\n  - http://a:11434\n  - {twin}\n"))).warnings);
        assert_eq!(warnings.len(), 1, "{twin}");
        assert!(
            warnings[0].starts_with("gate.yaml:3:5: nodes[1]") && warnings[0].contains("the same server as nodes[0]")
        );
    }
    let warnings = shown(&right(&file("nodes: [ http://gpu1 ]")).warnings);
    assert!(warnings.len() == 1 && warnings[0].contains("names no port: 80 is used"), "{warnings:?}");
}

// Models.

#[test]
fn slots_come_from_the_model_then_the_node_then_the_whole() {
    let text = "
slots: 3
nodes: [ { url: 'http://a:1', slots: 8 }, { url: 'http://b:1' } ]
models:
  big*: { timeouts: { queue_wait: 1s } }
  'big:70b': { slots: 1 }
  llama3: { slots: soft 6 }
  '*': { pull_targets: ['http://a:1'] }
";
    let config = right(&file(text)).config;
    let slots = |node: usize, model: &str| config.slots_for(&config.nodes[node], model);
    assert_eq!(slots(0, "big:70b"), (SlotsConfig::Hard(1), "models"));
    assert_eq!(slots(0, "BIG:70B"), (SlotsConfig::Hard(1), "models"));
    assert_eq!(slots(0, "llama3:latest"), (SlotsConfig::Soft(6), "models"));
    assert_eq!(slots(0, "llama3:8b"), (SlotsConfig::Hard(8), "nodes"));
    assert_eq!(slots(1, "llama3:8b"), (SlotsConfig::Hard(3), "slots"));
    let default = Config::default();
    assert_eq!(default.slots_for(&default.nodes[0], "m"), (SlotsConfig::Soft(4), "default"));
    assert_eq!(config.overrides_of("big:70b").count(), 3);
}

#[test]
fn pull_targets_name_nodes() {
    let text = "nodes: [ { url: 'http://a:1', name: alpha } ]\nmodels:\n  m: { pull_targets: [alpha, alpah] }\n";
    one_wrong(text, 3, "value `alpah`: is the name of no node; did you mean `alpha`?");
    let mut sources = file("models: { m: { pull_targets: [gone] } }");
    sources.flags.nodes = vec!["http://b:1".to_owned()];
    assert_eq!(right(&sources).warnings.len(), 1);
    one_wrong("models: { '': { slots: 1 } }", 1, "names no model");
}

// Keys, hosts, origins.

#[test]
fn router_keys_have_names_and_are_never_shown() {
    let config = right(&file("router_keys: [ s3cret, { name: ops, key: other }, { key: third } ]")).config;
    let names: Vec<&str> = config.router_keys.iter().map(|key| key.name.as_str()).collect();
    assert_eq!(names, ["key1", "ops", "key3"]);
    assert!(!format!("{config:?}{}", describe(&config)).contains("s3cret"));
    one_wrong("router_keys: [ a, { name: key1, key: b } ]", 1, "has the name of router_keys[0]");
    one_wrong("router_keys: [ a, a ]", 1, "is the key of router_keys[0] again");
    one_wrong("router_keys: [ { name: a } ]", 1, "router_keys[0].key: is missing");
    one_wrong("router_keys: [ ~ ]", 1, "leave it out instead");
    for text in ["router_keys: ['s3cret ']", "router_keys: ['s3crët']", "router_keys: [{ key: ['s3cret'] }]"] {
        let mistakes = wrong(&file(text));
        assert!(mistakes.len() == 1 && !mistakes[0].contains("s3cr"), "{mistakes:?}");
    }
    let mistakes =
        wrong(&file("nodes: [ 'http://me:s3cret@a:1', { url: 'me:s3cret@a' } ]\ndata: [s3cret]\ns3cret_key: x"));
    assert!(mistakes.len() == 4 && mistakes[..3].iter().all(|mistake| !mistake.contains("s3cret")), "{mistakes:?}");
}

#[test]
fn no_message_shows_a_secret_however_it_is_miswritten() {
    let key = [("KEY", "open-sesame")];
    let sources = |text: &str| Sources { env: variables(&key), ..file(text) };
    for text in [
        "router_keys: open-sesame",
        "router_keys: ${KEY}",
        "router_keys: { a: open-sesame }",
        "router_keys: [[open-sesame]]",
        "router_keys: [\"open-sesame ${\"]",
        "router_keys: [\"${open-sesame}\"]",
        "router_keys: [\"x${open_sesame}\"]",
        "router_keys: [\"open-sesame\\n\"]",
        "router_keys: [{ name: a, key: [open-sesame] }]",
        "router_keys: [{ name: a, key: 'open-sesame ${' }]",
        "router_key: open-sesame",
        "nodes: [{ url: 'http://a:1', api_key: [open-sesame] }]",
        "nodes: [{ url: 'http://a:1', api_key: 'open-sesame${' }]",
        "nodes: [{ url: 'http://a:1', apikey: open-sesame }]",
        "endpoints: [http://a:1]\napi_keys: open-sesame",
        "endpoints: [http://a:1]\napi_keys: ${KEY}",
        "endpoints: [http://a:1]\napi_keys: [open-sesame]",
        "endpoints: [http://a:1]\nnomyo-router-api-key: [open-sesame]",
        "endpoints: [http://a:1]\nrouter_api_key: { a: open-sesame }",
    ] {
        let mistakes = wrong(&sources(text));
        assert!(!mistakes.is_empty(), "{text}");
        assert!(mistakes.iter().all(|told| !told.contains("sesame")), "{text}: {mistakes:?}");
    }
    for value in ["open-sesame", "\"open-sesame\"", "{\"a\": \"open-sesame\"}", "[[\"open-sesame\"]]"] {
        let mistakes = wrong(&only_env(&[("HERDGATE_CFG_ROUTER_KEYS", value)]));
        assert!(mistakes.iter().all(|told| !told.contains("sesame")), "{value}: {mistakes:?}");
    }
    let unset = wrong(&file("router_keys: [\"${NOT_SET}\"]"));
    assert!(unset[0].contains("NOT_SET"), "the name of a variable is none: {unset:?}");
}

#[test]
fn hosts_and_origins() {
    let config =
        right(&file("allowed_hosts: [Gate.Example.org, '[::1]']\norigins: ['*', 'https://*.example.org']")).config;
    assert_eq!(config.allowed_hosts, ["gate.example.org", "::1"]);
    assert_eq!(config.origins, ["*", "https://*.example.org"]);
    for host in ["'gate:80'", "'http://gate'", "a/b", "''", "'*'"] {
        one_wrong(&format!("allowed_hosts: [{host}]"), 1, "allowed_hosts[0]");
    }
    for origin in ["example.org", "'http://*.a.*'", "'http://'", "'http://a b'", "'**'"] {
        one_wrong(&format!("origins: [{origin}]"), 1, "must be * or a scheme");
    }
    let loaded =
        right(&file_and_env("origins: ['http://a']", &[("OLLAMA_ORIGINS", "http://b, http://a,,bad,app://*")]));
    assert_eq!(loaded.config.origins, ["http://a", "http://b", "app://*"]);
    assert_eq!(shown(&loaded.warnings).len(), 1);
    assert!(loaded.warnings[0].to_string().starts_with("OLLAMA_ORIGINS: origins: value `bad`: left out"));
}

#[test]
fn an_open_listener_is_a_warning() {
    let warnings = |text: &str| shown(&right(&file(text)).warnings).len();
    assert_eq!(warnings("listen: 0.0.0.0:1"), 1);
    assert_eq!(warnings("listen: '[::]:1'"), 1);
    assert_eq!(warnings("listen: 0.0.0.0:1\nrouter_keys: [k]"), 0);
    assert_eq!(warnings("listen: localhost:1"), 0);
    assert_eq!(warnings("administration: key"), 1);
    assert_eq!(right(&file("listen: localhost:0")).config.listen.to_string(), "127.0.0.1:0");
    one_wrong("listen: ':12434'", 1, "0.0.0.0:12434 or [::]:12434 for all");
    one_wrong("listen: 12434", 1, "value `12434`: must be an address and a port");
    one_wrong("listen: 127.0.0.1", 1, "an address and a port");
}

#[test]
fn numbers_that_contradict_each_other() {
    one_wrong("limits:\n  max_body: 1GiB", 2, "must hold at least one body of limits.max_body (1GiB)");
    one_wrong("limits:\n  max_body: 1GiB\n  body_memory: 1MiB", 3, "limits.body_memory (1MiB)");
    one_wrong("health:\n  probe: 20s", 2, "must not be below health.probe (20s)");
    assert_eq!(right(&file("health: { ps: 40s }")).warnings.len(), 1);
}

// Environment and flags.

#[test]
fn values_expand_from_the_environment() {
    let text = "nodes: [ { url: 'http://${HOST}:11434', api_key: '${KEY:-none}' } ]\nworkers: ${N}\ntimeouts: { connect: \"${T:-3s}\" }";
    let config = right(&file_and_env(text, &[("HOST", "gpu9"), ("N", "3")])).config;
    assert_eq!((config.nodes[0].host.as_str(), config.workers), ("gpu9", Some(3)));
    assert_eq!(config.nodes[0].api_key, Some(Secret("none".to_owned())));
    assert_eq!(config.timeouts.connect, Duration::from_secs(3));
    one_wrong("log: { level: info }\ndata: ${NOT_SET}", 2, "`NOT_SET` is not set in the environment");
    one_wrong("data: x\nrouter_keys: ['${KEY}']", 2, "router_keys[0]: value `${KEY}`: `KEY` is not set");
    let empty = wrong(&file_and_env("router_keys: ['${KEY}']", &[("KEY", "")]));
    assert!(empty.len() == 1 && empty[0].contains("leave it out instead"), "{empty:?}");
    let two = wrong(&file_and_env("data: ${A}\nworkers: ${N}", &[("N", "x")]));
    assert!(two.len() == 2 && two[1].contains("value `x`: must be a whole number"), "{two:?}");
}

#[test]
fn precedence_by_key() {
    let mut sources = file_and_env(
        "workers: 2\ndata: file\nslots: 2\ntimeouts: { connect: 2s, queue_wait: 5s }\nnodes: [http://file:1]",
        &[
            ("HERDGATE_CFG_WORKERS", "3"),
            ("HERDGATE_CFG_DATA", "variable"),
            ("HERDGATE_CFG_TIMEOUTS__CONNECT", "3s"),
            ("NOMYO_ROUTER_DB_PATH", "there/x.db"),
            ("NOMYO_ROUTER_MAX_CONCURRENT_CONNECTIONS", "7"),
            ("NOMYO_ROUTER_API_KEY", "k"),
        ],
    );
    sources.flags.workers = Some("4".to_owned());
    sources.flags.listen = Some("127.0.0.1:9".to_owned());
    let config = right(&sources).config;
    assert_eq!((config.workers, config.data.to_str(), config.slots), (Some(4), Some("variable"), SlotsConfig::Hard(2)));
    assert_eq!(config.timeouts.connect, Duration::from_secs(3));
    assert_eq!(config.timeouts.queue_wait, Duration::from_secs(5));
    assert_eq!(config.listen.port(), 9);
    assert_eq!(config.router_keys[0].secret, Secret("k".to_owned()), "the file has none");
    assert_eq!(config.nodes[0].url, "http://file:1");
    sources.flags.nodes = vec!["http://flag:1".to_owned(), "http://flag:2/v1".to_owned()];
    sources.flags.data = Some(PathBuf::from("flag"));
    let config = right(&sources).config;
    let urls: Vec<&str> = config.nodes.iter().map(|node| node.url.as_str()).collect();
    assert_eq!(urls, ["http://flag:1", "http://flag:2/v1"]);
    assert_eq!(config.nodes[1].kind, NodeKind::OpenAi);
    assert_eq!(config.data, Path::new("flag"));
}

#[test]
fn variables_set_every_kind_of_key() {
    let config = right(&only_env(&[
        ("HERDGATE_CFG_NODES", r#"["http://a:1", {"url": "http://b:1/v1", "slots": 2}]"#),
        ("HERDGATE_CFG_MODELS", r#"{"m*": {"slots": 1}}"#),
        ("HERDGATE_CFG_ORIGINS", "[\"*\"]"),
        ("HERDGATE_CFG_LISTEN", "[::1]:1"),
        ("HERDGATE_CFG_LIMITS__MAX_BODY", "1MiB"),
        ("HERDGATE_CFG_LIMITS__NAMES", "100"),
        ("HERDGATE_CFG_LOG", r#"{"level": "debug"}"#),
        ("HERDGATE_CFG_HEADERS", "off"),
        ("HERDGATE_CFG_DEBUG__FLAMEGRAPH", "on"),
        ("HERDGATE_CFG_ledger__required", "false"),
        ("HERDGATE_PORT", "tcp://10.0.0.1:80"),
    ]))
    .config;
    assert_eq!((config.nodes.len(), config.nodes[1].slots), (2, Some(SlotsConfig::Hard(2))));
    assert_eq!((config.models[0].slots, config.origins.len()), (Some(SlotsConfig::Hard(1)), 1));
    assert_eq!((config.limits.max_body_bytes, config.limits.names), (1 << 20, 100));
    assert_eq!((config.log.level.as_str(), config.headers, config.ledger.required), ("debug", false, false));
    assert!(config.debug.flamegraph && !Config::default().debug.flamegraph);
    assert_eq!(config.listen.to_string(), "[::1]:1");
}

#[test]
fn mistakes_in_variables_and_flags_name_them() {
    let mut sources = only_env(&[
        ("HERDGATE_CFG_LISTEN", "x"),
        ("HERDGATE_CFG_NODES", "http://a:1"),
        ("HERDGATE_CFG_NODES__URL", "http://a:1"),
        ("HERDGATE_CFG_ORIGINS", "[1]"),
        ("HERDGATE_CFG_TIMEOUTS__CONECT", "1s"),
        ("HERDGATE_CFG_WORKER", "1"),
    ]);
    sources.flags.workers = Some("many".to_owned());
    sources.flags.nodes = vec!["gpu1".to_owned(), "http://me:s3cret@x".to_owned()];
    let mistakes = wrong(&sources);
    let starts = [
        "HERDGATE_CFG_NODES__URL: nodes.url: the section is set whole",
        "HERDGATE_CFG_LISTEN: listen: value `x`: must be",
        "HERDGATE_CFG_NODES: nodes: a list or mapping in a variable is JSON",
        "HERDGATE_CFG_ORIGINS: origins[0]: value `1`: wants text",
        "HERDGATE_CFG_TIMEOUTS__CONECT: timeouts.conect: unknown key; did you mean `connect`?",
        "HERDGATE_CFG_WORKER: worker: unknown key; did you mean `workers`?",
        "--workers: workers: value `many`: must be",
        "--node: nodes[0]: value `gpu1`: no URL",
        "--node: nodes[1]: value `http://…@x`: holds a user",
    ];
    assert_eq!(mistakes.len(), starts.len(), "{mistakes:#?}");
    for (mistake, start) in mistakes.iter().zip(starts) {
        assert!(mistake.starts_with(start), "{mistake} does not start with {start}");
    }
}

// Files.

#[test]
fn the_file_is_found_where_it_is_named_or_usual() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let env =
        |path: &str| variables(&[("NOMYO_ROUTER_CONFIG_PATH", path), ("HOME", directory.path().to_str().unwrap())]);
    assert_eq!(find(None, directory.path(), &Env::new()), Ok(None));
    std::fs::write(at("theirs.yaml"), "endpoints: []").unwrap();
    let theirs = find(None, directory.path(), &env("~/theirs.yaml")).unwrap().unwrap();
    assert_eq!(theirs, (at("theirs.yaml"), "endpoints: []".to_owned()));
    assert_eq!(find(None, directory.path(), &env("theirs.yaml")).unwrap().unwrap(), theirs);
    std::fs::write(at("herdgate.yaml"), "workers: 1").unwrap();
    assert_eq!(find(None, directory.path(), &env("~/theirs.yaml")).unwrap().unwrap().1, "workers: 1");
    assert_eq!(find(Some(&at("theirs.yaml")), directory.path(), &Env::new()).unwrap().unwrap().1, "endpoints: []");
    std::fs::write(at("bad.yaml"), b"a: 1\nb: \xff").unwrap();
    let bad = find(Some(&at("bad.yaml")), directory.path(), &Env::new()).unwrap_err().to_string();
    assert!(bad.ends_with("bad.yaml:2:4: is no UTF-8"), "{bad}");
    let missing = find(Some(&at("none.yaml")), directory.path(), &Env::new()).unwrap_err().to_string();
    assert!(missing.contains("none.yaml: cannot be read: "), "{missing}");
    std::fs::remove_file(at("herdgate.yaml")).unwrap();
    let missing = find(None, directory.path(), &env("none.yaml")).unwrap_err().to_string();
    assert!(missing.ends_with("(named by NOMYO_ROUTER_CONFIG_PATH)"), "{missing}");
}

#[test]
fn slots_of_all_models_of_a_node_are_off_or_a_number_and_the_node_overrides_it() {
    let of = |text: &str| {
        let config = right(&file(text)).config;
        let (slots, origin) = config.node_slots_of(&config.nodes[0]);
        (slots.limit(), origin)
    };
    assert_eq!(of("nodes: [ 'http://a:1' ]"), (None, "default"));
    assert_eq!(of("nodes: [ 'http://a:1' ]\nnode_slots: 8"), (Some(8), "node_slots"));
    assert_eq!(of("nodes: [ { url: 'http://a:1', node_slots: 2 } ]\nnode_slots: 8"), (Some(2), "nodes"));
    assert_eq!(of("nodes: [ { url: 'http://a:1', node_slots: off } ]\nnode_slots: 8"), (None, "nodes"));
    for value in ["0", "soft", "soft 4", "-1", "1000001", "on", "1.5"] {
        one_wrong(&format!("node_slots: {value}"), 1, "must be off, or a number");
        one_wrong(&format!("nodes: [ {{ url: 'http://a:1', node_slots: {value} }} ]"), 1, "must be off, or a number");
    }
}

#[test]
fn a_description_names_nodes_limits_and_origins() {
    let text = "
listen: 127.0.0.1:1
node_slots: 6
nodes: [ { url: 'http://a:1', name: alpha, slots: 8, node_slots: 12 }, { url: 'http://b:1/v1', api_key: s3cret } ]
models: { big*: { slots: 1, timeouts: { queue_wait: 90s } } }
router_keys: [ { name: ops, key: s3cret } ]
";
    let described = describe(&right(&file(text)).config);
    for line in [
        "listen   127.0.0.1:1\n",
        "keys     ops\n",
        "  alpha  http://a:1  ollama  hard 8 per model (nodes)  hard 12 for all models together (nodes)\n",
        "  http://b:1/v1  openai  soft 4 per model (default)  hard 6 for all models together (node_slots)  with a key\n",
        "  big*  hard 1 per node (models)  queue_wait 90s\n",
    ] {
        assert!(described.contains(line), "{line:?} is not in\n{described}");
    }
    assert!(!described.contains("s3cret"));
}

// Anything at all.

/// A line that looks like configuration, more or less.
fn line_like() -> impl Strategy<Value = String> {
    let indent = "[ ]{0,6}";
    let key = prop::sample::select(vec![
        "listen",
        "nodes",
        "url",
        "slots",
        "models",
        "timeouts",
        "connect",
        "endpoints",
        "api_keys",
        "limits",
        "a",
        "'a'",
        "\"b\"",
        "? x",
        "- url",
        "- ",
        "[a]",
        "*x",
        "&x a",
        "!!int a",
        "<<",
        "\u{F0000}a",
        "ü",
    ]);
    let value = prop::sample::select(vec![
        "",
        "1",
        "2s",
        "http://a:1",
        "${A}",
        "${",
        "$${",
        "[",
        "]",
        "{ a: b",
        "}",
        "'",
        "\"",
        "&x",
        "*x",
        "!!int z",
        "!t z",
        "|",
        ">-",
        "- - -",
        "~",
        "{}",
        "[[[[{a: [",
        "# c",
        "\t",
        "\u{feff}",
        "hard",
        "99999999999999999999",
        ".nan",
        "---",
        "...",
    ]);
    (indent, key, value).prop_map(|(indent, key, value)| format!("{indent}{key}: {value}\n"))
}

proptest! {
    #[test]
    fn no_text_panics(text in any::<String>()) {
        let _ = load(&file(&text));
    }

    #[test]
    fn no_lines_panic(lines in prop::collection::vec(line_like(), 0..12), lenient in any::<bool>()) {
        let mut sources = file_and_env(&lines.concat(), &[("A", "x")]);
        sources.flags.lenient = lenient;
        let _ = load(&sources);
    }

    #[test]
    fn no_bent_default_file_panics(at in 0..DEFAULT_FILE.len(), with in "\\PC{0,3}|[\\n\\t \\-?:{}\\[\\],&*!|>'\"%@`#]{0,4}") {
        let mut text = DEFAULT_FILE.to_owned();
        text.replace_range(at..=at, &with);
        let _ = load(&file(&text));
    }

    #[test]
    fn no_variable_panics(name in "HERDGATE_CFG_[A-Z_]{0,12}|NOMYO_ROUTER_(ENDPOINTS|API_KEYS|DB_PATH)", value in any::<String>()) {
        let _ = load(&only_env(&[(&name, &value)]));
    }

    /// Every mistake stands within the file.
    #[test]
    fn every_place_is_in_the_file(lines in prop::collection::vec(line_like(), 0..12)) {
        let text = lines.concat();
        if let Err(mistakes) = load(&file(&text)) {
            let last = text.lines().count() + 1;
            for mistake in mistakes {
                if let Place::File { line, column, .. } = mistake.place {
                    prop_assert!((1..=last).contains(&line) && column >= 1, "{mistake} in {text:?}");
                }
            }
        }
    }
}

#[test]
fn administration_is_open_on_loopback_and_to_a_key_unless_told_otherwise() {
    let (none, key) = (KeyId::NONE, KeyId(1));
    let who = [(true, none), (true, key), (false, none), (false, key)];
    for (rule, may) in [
        (Administration::Auto, [true, true, false, true]),
        (Administration::Key, [false, true, false, true]),
        (Administration::Open, [true; 4]),
        (Administration::Off, [false; 4]),
    ] {
        assert_eq!(who.map(|(loopback, key)| rule.admits(loopback, key)), may, "{rule:?}");
    }
}
