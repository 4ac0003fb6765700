//! What is printed is what the program can do.

use super::*;
use crate::config::{Env, Flags, Sources, load};

fn printed(what: What) -> String {
    let mut out = Vec::new();
    print(&PackageArgs { what }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
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
    let stop = lines.iter().find_map(|line| line.strip_prefix("TimeoutStopSec=")?.strip_suffix('s')).unwrap();
    let defaults = crate::config::Config::default().shutdown;
    // The last flush takes up to 5 s, the end of its threads 2.
    assert!(stop.parse::<u64>().unwrap() >= (defaults.delay + defaults.drain).as_secs() + 7);
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
    assert!(grace.parse::<u64>().unwrap() >= (shutdown.delay + shutdown.drain).as_secs() + 7);
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
