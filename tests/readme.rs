//! README.md against the binary: the help texts and the table of keys are those that the binary has.
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

/// The README as it should be now.
fn renewed(text: &str) -> String {
    with_keys(&with_help(text))
}

/// Between two marks: every key with its default and what it is for.
fn with_keys(text: &str) -> String {
    let (before, rest) = text.split_once("<!-- every key -->\n").expect("a mark before the table of keys");
    let (_, after) = rest.split_once("<!-- end -->").expect("a mark behind it");
    format!("{before}<!-- every key -->\n{}<!-- end -->{after}", keys(herdgate::config::DEFAULT_FILE))
}

/// The table of keys, from the default file: a comment says what the key below it is for; a key in a comment is one that
/// has no default.
fn keys(file: &str) -> String {
    let mut table = "| key | default | |\n|---|---|---|\n".to_owned();
    let mut sections: Vec<(usize, String)> = Vec::new();
    let mut said: Vec<&str> = Vec::new();
    for line in file.lines() {
        let indent = line.len() - line.trim_start().len();
        let comment = line.trim_start().strip_prefix("# ");
        let text = comment.unwrap_or(line.trim_start());
        if text.is_empty() {
            said.clear();
            continue;
        }
        let entry = text.strip_prefix("- ").unwrap_or(text);
        let Some((key, value)) = entry.split_once(':').filter(|(key, _)| is_key(key)) else {
            said.extend(comment);
            continue;
        };
        if comment.is_some() && said.is_empty() && !key.contains('*') {
            // An example in a comment.
            continue;
        }
        // A key below another: deeper by its column, a list's dash aside.
        let column = if text.starts_with("- ") { indent + 2 } else { indent };
        sections.retain(|(outer, _)| *outer < column);
        let path = sections.iter().map(|(_, name)| format!("{name}.")).collect::<String>() + key;
        let value = value.trim();
        let list = if key == "nodes" {
            "nodes[]"
        } else if key.contains('*') {
            "NAME"
        } else {
            key
        };
        sections.push((column, list.to_owned()));
        if !said.is_empty() {
            let default = if comment.is_some() { "unset".to_owned() } else { format!("`{value}`").replace("``", "") };
            let default = if key == "nodes" { "one, as `url`".to_owned() } else { default };
            table += &format!("| `{path}` | {default} | {} |\n", said.join(" ").replace('|', "\\|"));
        }
        said.clear();
    }
    table
}

fn is_key(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_*".contains(&byte))
}

#[test]
fn the_table_has_every_key_of_the_default_file() {
    let table = keys(herdgate::config::DEFAULT_FILE);
    for row in [
        "| `listen` | `127.0.0.1:12434` | Address and port",
        "| `nodes[].name` | unset | Its name in ledger",
        "| `models.NAME.slots` | unset | ",
        "| `timeouts.connect` | `2s` | Until a node accepts",
        "| `ledger.fold_after` | `30d` | ",
        "| `headers` | `on` | ",
    ] {
        assert!(table.contains(row), "{row}: {table}");
    }
    assert!(!table.contains("key1") && table.lines().count() > 60, "{table}");
}

/// Every help text as the binary prints it now.
fn with_help(text: &str) -> String {
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
        // Those that take a word and print something need no more than a sentence.
        let told =
            [format!("$ herdgate {name} -h\n"), format!("`herdgate {name} ")].iter().any(|told| text.contains(told));
        assert!(told, "README.md: add a block `$ herdgate {name} -h`, or a sentence on `herdgate {name} ...`");
    }
}
