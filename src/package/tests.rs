//! What is printed is what the program can do.

use std::time::Duration;

use super::*;
use crate::config::{Env, Flags, Sources, load};

fn printed(what: What) -> String {
    printed_for(what, &Config::default().shutdown)
}

fn printed_for(what: What, shutdown: &ShutdownConfig) -> String {
    let mut out = Vec::new();
    print(what, shutdown, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

/// Seconds that a unit gives a stop.
fn stop_s(unit: &str) -> u64 {
    let found =
        lines(unit).iter().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')?.parse().ok());
    found.expect("TimeoutStopSec in seconds")
}

/// Lines of a text without the blanks around them.
fn lines(text: &str) -> Vec<&str> {
    text.lines().map(str::trim).collect()
}

#[test]
fn the_unit_drains_reloads_and_gives_the_drain_its_time() {
    let unit = printed(What::Systemd);
    let lines = lines(&unit);
    for line in [
        "Type=notify",
        "ExecReload=/bin/kill -HUP $MAINPID",
        "DynamicUser=yes",
        "StateDirectory=herdgate",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
        "RestartPreventExitStatus=64",
        "SystemCallFilter=@system-service",
    ] {
        assert!(lines.contains(&line), "{line}");
    }
    let watchdog: u64 =
        lines.iter().find_map(|line| line.strip_prefix("WatchdogSec=")?.strip_suffix('s')?.parse().ok()).unwrap();
    assert!(watchdog > 10, "it is told of every second, and a busy machine is no reason to kill");
}

#[test]
fn i11_a_stop_is_given_more_than_the_longest_end_takes() {
    let defaults = Config::default().shutdown;
    for (delay_s, drain_s) in [(0, 0), (0, 25), (5, 25), (0, 3600)] {
        let shutdown = ShutdownConfig { delay: Duration::from_secs(delay_s), drain: Duration::from_secs(drain_s) };
        let given = stop_s(&printed_for(What::Systemd, &shutdown));
        assert_eq!(given, shutdown.patience_s());
        assert!(Duration::from_secs(given) > shutdown.longest(), "{delay_s} {drain_s}");
    }
    assert_eq!(printed(What::Systemd), What::Systemd.text(), "the file in the tree is the one for the defaults");
    assert_eq!(stop_s(What::Systemd.text()), defaults.patience_s());
    let image = printed(What::Dockerfile);
    assert!(image.contains(&format!("--stop-timeout {}:", defaults.patience_s())), "{image}");
}

#[test]
fn the_socket_is_one_that_is_taken() {
    let (socket, unit) = (printed(What::Socket), printed(What::Systemd));
    let (socket, unit) = (lines(&socket), lines(&unit));
    let listens: Vec<_> = socket.iter().filter_map(|line| line.strip_prefix("ListenStream=")).collect();
    assert_eq!(listens, [Config::default().listen.to_string()], "one, where an empty configuration listens");
    assert!(socket.contains(&"Accept=no") && socket.contains(&"BindIPv6Only=both"));
    assert!(unit.contains(&"SystemCallFilter=pidfd_getfd"), "or it cannot be taken");
}

#[test]
fn the_image_is_the_binary_alone_as_nobody_special() {
    let file = printed(What::Dockerfile);
    let lines = lines(&file);
    let last = lines.iter().rposition(|line| line.starts_with("FROM ")).unwrap();
    assert_eq!(lines[last], "FROM scratch");
    assert!(lines[last..].contains(&"USER 65532:65532"));
    assert!(lines[last..].contains(&r#"CMD ["serve", "--listen", "[::]:12434", "--data", "/data"]"#));
    assert!(file.contains("target-feature=+crt-static"));
}

#[test]
fn the_manifests_probe_what_is_there_and_give_the_drain_its_time() {
    let manifests = printed(What::Kubernetes);
    for path in ["/herdgate/live", "/herdgate/ready", "/metrics"] {
        assert!(manifests.contains(path), "{path}");
        assert!(!matches!(
            crate::front::routes::route(&http::Method::GET, path),
            crate::front::routes::Handler::NotFound
        ));
    }
    let text = |line: &str, key: &str| line.trim().strip_prefix(key).map(str::to_owned);
    let grace = manifests.lines().find_map(|line| text(line, "terminationGracePeriodSeconds: ")).unwrap();
    // The configuration in the map is one that loads.
    let (_, rest) = manifests.split_once("  herdgate.yaml: |\n").unwrap();
    let config: String =
        rest.lines().take_while(|line| line.starts_with("    ")).map(|line| format!("{}\n", &line[4..])).collect();
    let env: Env = [("ROUTER_KEY".to_owned(), "k".to_owned())].into_iter().collect();
    let sources = Sources { file: Some(("herdgate.yaml".into(), config)), flags: Flags::default(), env };
    let loaded = load(&sources).unwrap_or_else(|mistakes| panic!("{mistakes:?}"));
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let shutdown = loaded.config.shutdown;
    assert_eq!(shutdown.delay.as_secs(), 5);
    assert_eq!(grace.parse::<u64>().unwrap(), shutdown.patience_s(), "more than the longest end takes");
}

#[test]
fn the_configuration_is_the_default_one() {
    assert_eq!(printed(What::Config), DEFAULT_FILE);
}

fn command() -> Command {
    let leaf =
        Command::new("serve").about("Run it").arg(clap::Arg::new("listen").long("listen").help("Where to listen"));
    Command::new("herdgate").about("The gate").subcommand(leaf)
}

#[test]
fn completions_know_commands_and_flags() {
    for shell in Shell::value_variants() {
        let mut out = Vec::new();
        completions(&CompletionsArgs { shell: *shell }, command(), &mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(text.contains("serve") && text.contains("listen"), "{shell}");
    }
}

#[test]
fn man_pages_are_the_help() {
    let page = |name: Option<&str>| {
        let mut out = Vec::new();
        man(&ManArgs { command: name.map(str::to_owned) }, command(), &mut out)?;
        Ok::<_, PackageError>(String::from_utf8(out).unwrap())
    };
    assert!(page(None).unwrap().contains("herdgate\\-serve(1)"));
    let serve = page(Some("serve")).unwrap();
    assert!(serve.starts_with(".ie") && serve.contains(".TH herdgate-serve 1"), "{serve}");
    assert!(serve.contains("Where to listen"));
    assert!(matches!(page(Some("dance")), Err(PackageError::NoCommand(_))));
}
