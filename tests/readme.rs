//! README.md against the binary: the help texts it shows are those that the binary prints.
//!
//! Under a line `$ herdgate … -h` stands what the command prints. `HERDGATE_BLESS=1 cargo test --test readme` writes it anew.

use std::path::PathBuf;
use std::process::Command;

fn readme() -> (PathBuf, String) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = std::fs::read_to_string(&path).expect("README.md");
    (path, text)
}

fn printed(arguments: &str) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_herdgate"))
        .args(arguments.split_whitespace())
        .output()
        .expect("the binary starts");
    assert!(output.status.success(), "herdgate {arguments} failed");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| format!("{}\n", line.trim_end())).collect::<String>().trim_end().to_owned()
}

/// The README with every help text as the binary prints it now.
fn renewed(text: &str) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let Some(arguments) = line.strip_prefix("$ herdgate ").filter(|arguments| arguments.ends_with("-h")) else {
            continue;
        };
        out.push_str(&printed(arguments));
        out.push('\n');
        let close = lines.by_ref().find(|line| line.starts_with("```"));
        out.push_str(close.expect("a closing fence after each help text"));
        out.push('\n');
    }
    out
}

#[test]
fn shows_the_help_texts_that_the_binary_prints() {
    let (path, text) = readme();
    let renewed = renewed(&text);
    if std::env::var_os("HERDGATE_BLESS").is_some() {
        std::fs::write(path, &renewed).expect("README.md is written");
        return;
    }
    assert!(text == renewed, "README.md shows old help texts; run HERDGATE_BLESS=1 cargo test --test readme");
}

#[test]
fn shows_every_command() {
    let (_, text) = readme();
    let help = printed("-h");
    let (_, commands) = help.split_once("Commands:\n").expect("a list of commands");
    for command in commands.lines().take_while(|line| !line.is_empty()) {
        let name = command.split_whitespace().next().expect("a name");
        assert!(text.contains(&format!("$ herdgate {name} -h\n")), "README.md: add a block `$ herdgate {name} -h`");
    }
}
