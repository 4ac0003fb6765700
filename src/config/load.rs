//! From the sources of a configuration to one checked [`Config`], or to every mistake in all of them.
//!
//! `main.rs` calls [`find`] once and [`load`] with what it found; tests call [`load`] with texts of their own. The
//! environment is an argument: only [`process_env`] reads the process' own.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::expand::{self, Rule};
use super::mistake::{Mistake, Place};
use super::tree::{self, Entry, Kind, Node, Scalar, Value};
use super::walk::{Duplicates, Walk};
use super::{Config, ancestor, check, ours};
use crate::sync::Arc;

/// Environment variables by name.
pub type Env = BTreeMap<String, String>;

/// The prefix of overrides.
const PREFIX: &str = "HERDGATE_CFG_";
/// What is read when no file is named.
const DEFAULT_PATH: &str = "herdgate.yaml";
/// More than any configuration; [`tree::parse`] says so in words.
const READ_BYTES_MAX: u64 = 2 << 20;

/// What was given on the command line, as it was written there.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Flags {
    /// `--listen`.
    pub listen: Option<String>,
    /// `--node`, repeated; any replaces the nodes of every other source.
    pub nodes: Vec<String>,
    /// `--data`.
    pub data: Option<PathBuf>,
    /// `--workers`: a number or `auto`.
    pub workers: Option<String>,
    /// `--lenient`: unknown keys are warnings.
    pub lenient: bool,
}

/// Everything a configuration comes from.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Sources {
    /// The file's path and text, if there is one.
    pub file: Option<(PathBuf, String)>,
    /// The command line.
    pub flags: Flags,
    /// The environment.
    pub env: Env,
}

/// A configuration without mistakes.
#[derive(Clone, PartialEq, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// What works and is probably not meant.
    pub warnings: Vec<Mistake>,
}

/// This process' environment; variables that are no UTF-8 are read with replacement characters.
#[must_use]
pub fn process_env() -> Env {
    std::env::vars_os()
        .map(|(name, value)| (name.to_string_lossy().into_owned(), value.to_string_lossy().into_owned()))
        .collect()
}

/// Finds and reads the file: the named one (`--config`), else `herdgate.yaml` in `directory` if it is there, else the
/// one of `NOMYO_ROUTER_CONFIG_PATH` if that is set (`~` is the home). `directory` is the working directory: `""`.
///
/// # Errors
/// A file that is named and cannot be read, or that is no UTF-8.
pub fn find(named: Option<&Path>, directory: &Path, env: &Env) -> Result<Option<(PathBuf, String)>, Mistake> {
    if let Some(path) = named {
        return read_file(path).map(Some);
    }
    let usual = directory.join(DEFAULT_PATH);
    // A file that is there and cannot be looked at is no reason to run with the defaults.
    if usual.try_exists().unwrap_or(true) {
        return read_file(&usual).map(Some);
    }
    let Some(path) = env.get("NOMYO_ROUTER_CONFIG_PATH").filter(|path| !path.is_empty()) else { return Ok(None) };
    let path = match (path.strip_prefix("~/"), env.get("HOME")) {
        (Some(below), Some(home)) => Path::new(home).join(below),
        _ => directory.join(path),
    };
    read_file(&path).map(Some).map_err(|mut mistake| {
        mistake.reason.push_str(" (named by NOMYO_ROUTER_CONFIG_PATH)");
        mistake
    })
}

fn read_file(path: &Path) -> Result<(PathBuf, String), Mistake> {
    let refuse = |line: usize, column: usize, reason: String| {
        let place = Place::File { path: Arc::from(path.display().to_string()), line, column };
        Mistake { place, key: String::new(), value: None, reason }
    };
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(READ_BYTES_MAX).read_to_end(&mut bytes))
        .map_err(|error| refuse(0, 0, format!("cannot be read: {error}")))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok((path.to_owned(), text)),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.split(|&byte| byte == b'\n').count();
            let column = good.rsplit(|&byte| byte == b'\n').next().map_or(1, |rest| rest.len() + 1);
            Err(refuse(line, column, "is no UTF-8".to_owned()))
        }
    }
}

/// Puts the sources together. Precedence by key: flag, `HERDGATE_CFG_*`, file, `NOMYO_ROUTER_*`, default.
///
/// # Errors
/// Every mistake of every source, those of the file first, in the order of its lines.
pub fn load(sources: &Sources) -> Result<Loaded, Vec<Mistake>> {
    let mut walk = Walk::new(sources.flags.lenient);
    let config = fill(sources, &mut walk);
    let Walk { mut mistakes, mut warnings, .. } = walk;
    mistakes.sort_by_key(order);
    warnings.sort_by_key(order);
    if mistakes.is_empty() { Ok(Loaded { config, warnings }) } else { Err(mistakes) }
}

/// The configuration as far as it can be read, and what is wrong with it: for whoever asks it where a proxy is, not for
/// running one.
#[must_use]
pub fn read_anyway(sources: &Sources) -> (Config, Vec<Mistake>) {
    let mut walk = Walk::new(sources.flags.lenient);
    let config = fill(sources, &mut walk);
    (config, walk.mistakes)
}

/// The configuration and, in `walk`, what is wrong with it.
pub(super) fn fill(sources: &Sources, walk: &mut Walk) -> Config {
    let mut config = Config::default();
    let (mut ours_root, mut ancestors_root) = (None, None);
    if let Some((path, text)) = &sources.file {
        match tree::parse(&Arc::from(path.display().to_string()), text) {
            Ok(mut root) => {
                let rule = ancestor::rule_of(&root);
                expand::expand(&mut root, rule, &sources.env, "", &mut walk.mistakes);
                match rule {
                    Rule::Ours => ours_root = Some(root),
                    Rule::Ancestor => ancestors_root = Some(root),
                }
            }
            Err(mistakes) => walk.mistakes.extend(mistakes),
        }
    }
    walk.duplicates = Duplicates::LastWins;
    ancestor::read(ancestors_root, &sources.env, walk, &mut config);
    walk.duplicates = Duplicates::Refuse;
    walk.hint = ours::hints();
    if let Some(root) = ours_root {
        ours::read(root, walk, &mut config);
    }
    if let Some(root) = overrides(&sources.env, walk) {
        ours::read(root, walk, &mut config);
    }
    ollama_origins(&sources.env, walk, &mut config);
    flags(&sources.flags, walk, &mut config);
    check::check(&config, !sources.flags.nodes.is_empty(), walk);
    config
}

/// Mistakes of the file by line, then those of variables, then those of flags.
fn order(mistake: &Mistake) -> (u8, usize, usize) {
    match mistake.place {
        Place::File { line, column, .. } => (0, line, column),
        Place::Variable(_) => (1, 0, 0),
        Place::Flag(_) => (2, 0, 0),
        Place::Default => (3, 0, 0),
    }
}

fn loose(text: &str) -> Value {
    Value::Scalar(Scalar { text: text.to_owned(), kind: Kind::Loose, written: None })
}

/// The tree that the `HERDGATE_CFG_*` variables spell: `__` goes one level down, case does not count.
fn overrides(env: &Env, walk: &mut Walk) -> Option<Node> {
    let mut root: Vec<Entry> = Vec::new();
    for (name, value) in env {
        let Some(path) = name.strip_prefix(PREFIX) else { continue };
        let place = Place::Variable(Arc::from(name.as_str()));
        let words: Vec<String> = path.split("__").map(str::to_lowercase).collect();
        if let Err(reason) = insert(&mut root, &words, &place, value) {
            walk.mistake(&place, &words.join("."), None, reason);
        }
    }
    let place = root.first()?.place.clone();
    Some(Node { place, value: Value::Map(root) })
}

fn insert(entries: &mut Vec<Entry>, words: &[String], place: &Place, value: &str) -> Result<(), &'static str> {
    let Some((word, below)) = words.split_first() else { return Ok(()) };
    let existing = entries.iter_mut().find(|entry| entry.name == *word);
    if below.is_empty() {
        if existing.is_some() {
            return Err("is set by two variables");
        }
        let node = Node { place: place.clone(), value: loose(value) };
        entries.push(entry(word, place, node));
        return Ok(());
    }
    match existing {
        Some(Entry { node: Node { value: Value::Map(inner), .. }, .. }) => insert(inner, below, place, value),
        Some(_) => Err("the section is set whole by another variable"),
        None => {
            let mut inner = Vec::new();
            insert(&mut inner, below, place, value)?;
            entries.push(entry(word, place, Node { place: place.clone(), value: Value::Map(inner) }));
            Ok(())
        }
    }
}

fn entry(name: &str, place: &Place, node: Node) -> Entry {
    Entry { name: name.to_owned(), kind: Kind::Text, place: place.clone(), duplicate: false, node }
}

/// `OLLAMA_ORIGINS` widens `origins`, as it does on a node. It is another program's variable: what is wrong in it is
/// left out with a warning.
fn ollama_origins(env: &Env, walk: &mut Walk, config: &mut Config) {
    let Some(list) = env.get("OLLAMA_ORIGINS") else { return };
    let place = Place::Variable(Arc::from("OLLAMA_ORIGINS"));
    for text in list.split(',').map(str::trim).filter(|text| !text.is_empty()) {
        match ours::origin(text) {
            Ok(origin) if config.origins.contains(&origin) => {}
            Ok(origin) => config.origins.push(origin),
            Err(reason) => walk.warn(&place, "origins", Some(text), format!("left out: {reason}")),
        }
    }
}

fn flags(flags: &Flags, walk: &mut Walk, config: &mut Config) {
    let node = |flag, text: &str| Node { place: Place::Flag(flag), value: loose(text) };
    if let Some(text) = &flags.listen {
        let node = node("--listen", text);
        walk.set_place("listen", &node.place);
        config.listen = walk.scalar("listen", &node, ours::listen).unwrap_or(config.listen);
    }
    if let Some(text) = &flags.workers {
        let node = node("--workers", text);
        config.workers = walk.scalar("workers", &node, ours::workers).unwrap_or(config.workers);
    }
    if let Some(data) = &flags.data {
        if data.as_os_str().is_empty() {
            walk.mistake(&Place::Flag("--data"), "data", None, "is empty");
        }
        config.data.clone_from(data);
    }
    if !flags.nodes.is_empty() {
        ours::nodes_from_flags(&flags.nodes, walk, config);
    }
}
