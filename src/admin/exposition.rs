//! Prometheus' text format 0.0.4: families with help and type, samples with escaped labels.
//!
//! Called by [`super::metrics`] alone. Knows nothing of what is measured.

use std::fmt::Write;

/// The type that a family is announced with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// Only rises, until the process ends; its name ends in `_total`.
    Counter,
    /// Goes both ways.
    Gauge,
    /// Cumulative buckets with sum and count.
    Histogram,
}

/// A distribution as read from its counters.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(crate) struct Distribution {
    /// Upper bounds, microseconds, ascending.
    pub(crate) bounds_us: &'static [u64],
    /// Per bound how many were at or below it and above the one before; one more for those above the last.
    pub(crate) counts: Vec<u64>,
    /// Sum of all, microseconds.
    pub(crate) sum_us: u64,
}

/// A text under construction.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    out: String,
    name: String,
}

impl Exposition {
    /// The finished text.
    pub(crate) fn finish(self) -> String {
        self.out
    }

    /// Starts a family; the samples that follow belong to it.
    pub(crate) fn family(&mut self, name: &str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        name.clone_into(&mut self.name);
        self.out.push_str("# HELP ");
        self.out.push_str(name);
        self.out.push(' ');
        push_escaped(&mut self.out, help, false);
        self.line(format_args!("\n# TYPE {name} {kind}\n"));
    }

    /// One sample of a whole number.
    pub(crate) fn whole(&mut self, labels: &[(&str, &str)], value: u64) {
        self.head("", labels, None);
        self.line(format_args!(" {value}\n"));
    }

    /// One sample in seconds, from milliseconds.
    pub(crate) fn seconds_of_ms(&mut self, labels: &[(&str, &str)], value_ms: u64) {
        self.head("", labels, None);
        self.line(format_args!(" {}.{:03}\n", value_ms / 1000, value_ms % 1000));
    }

    /// One sample in seconds, from microseconds.
    pub(crate) fn seconds_of_us(&mut self, labels: &[(&str, &str)], value_us: u64) {
        self.head("", labels, None);
        self.line(format_args!(" {}\n", Seconds(value_us)));
    }

    /// All samples of one distribution, in seconds.
    pub(crate) fn distribution(&mut self, labels: &[(&str, &str)], read: &Distribution) {
        let mut below = 0;
        for (bound, count) in read.bounds_us.iter().zip(&read.counts) {
            below += count;
            self.head("_bucket", labels, Some(&Seconds(*bound).to_string()));
            self.line(format_args!(" {below}\n"));
        }
        let all: u64 = read.counts.iter().sum();
        self.head("_bucket", labels, Some("+Inf"));
        self.line(format_args!(" {all}\n"));
        self.head("_sum", labels, None);
        self.line(format_args!(" {}\n", Seconds(read.sum_us)));
        self.head("_count", labels, None);
        self.line(format_args!(" {all}\n"));
    }

    fn head(&mut self, suffix: &str, labels: &[(&str, &str)], below: Option<&str>) {
        self.out.push_str(&self.name);
        self.out.push_str(suffix);
        let mut open = '{';
        for (name, value) in labels.iter().copied().chain(below.map(|bound| ("le", bound))) {
            self.out.push(open);
            self.out.push_str(name);
            self.out.push_str("=\"");
            push_escaped(&mut self.out, value, true);
            self.out.push('"');
            open = ',';
        }
        if open == ',' {
            self.out.push('}');
        }
    }

    fn line(&mut self, text: std::fmt::Arguments<'_>) {
        // Writing to a String cannot fail.
        let _ = self.out.write_fmt(text);
    }
}

/// Microseconds, written as seconds without trailing zeros.
struct Seconds(u64);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (whole, rest) = (self.0 / 1_000_000, self.0 % 1_000_000);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
    }
}

/// `\` and line feeds always, quotes in labels: all that the format reserves.
fn push_escaped(out: &mut String, text: &str, label: bool) {
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '"' if label => out.push_str("\\\""),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
pub(crate) mod strict {
    //! A small reader that accepts nothing but the format, for tests.

    use std::collections::{BTreeMap, BTreeSet};

    /// Family name to (type, samples in order); a sample is its name, its labels and its value.
    pub(crate) type Families = BTreeMap<String, (String, Vec<Sample>)>;
    pub(crate) type Sample = (String, Vec<(String, String)>, f64);

    /// Reads a whole exposition; panics at the first thing that is not in the format.
    pub(crate) fn parse(text: &str) -> Families {
        assert!(text.ends_with('\n'), "the last line ends too");
        let mut families = Families::new();
        let mut seen = BTreeSet::new();
        let mut lines = text.lines().peekable();
        while let Some(help) = lines.next() {
            let (name, words) = help.strip_prefix("# HELP ").expect(help).split_once(' ').expect(help);
            assert!(!words.is_empty() && is_name(name), "{help}");
            let kind = lines.next().and_then(|l| l.strip_prefix(&format!("# TYPE {name} "))).expect(help);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{kind}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            let mut samples = Vec::new();
            while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
                let sample = sample(line);
                assert!(seen.insert((sample.0.clone(), sample.1.clone())), "twice: {line}");
                let tail = sample.0.strip_prefix(name).expect(line);
                let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.contains(&tail), "{line}");
                assert!(kind == "gauge" || sample.2 >= 0.0, "{line}");
                samples.push(sample);
            }
            assert!(families.insert(name.to_owned(), (kind.to_owned(), samples)).is_none(), "{name} twice");
        }
        families
    }

    fn is_name(name: &str) -> bool {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
    }

    fn sample(line: &str) -> Sample {
        let name: String = line.chars().take_while(|c| *c != '{' && *c != ' ').collect();
        assert!(is_name(&name), "{line}");
        let mut rest = &line[name.len()..];
        let mut labels = Vec::new();
        if let Some(inner) = rest.strip_prefix('{') {
            rest = inner;
            loop {
                let (label, after) = rest.split_once("=\"").expect(line);
                assert!(is_name(label), "{line}");
                let (value, after) = quoted(after, line);
                labels.push((label.to_owned(), value));
                rest = after;
                match rest.strip_prefix(',') {
                    Some(next) => rest = next,
                    None => break,
                }
            }
            rest = rest.strip_prefix('}').expect(line);
        }
        let value = rest.strip_prefix(' ').expect(line);
        (name, labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
    }

    fn quoted<'a>(text: &'a str, line: &str) -> (String, &'a str) {
        let mut value = String::new();
        let mut chars = text.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => return (value, &text[at + 1..]),
                '\\' => value.push(match chars.next().expect(line).1 {
                    'n' => '\n',
                    c @ ('\\' | '"') => c,
                    c => panic!("\\{c} in {line}"),
                }),
                c => value.push(c),
            }
        }
        panic!("no closing quote: {line}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_help_are_escaped_and_read_back() {
        let mut text = Exposition::default();
        text.family("a_total", Kind::Counter, "back\\slash\nline");
        text.whole(&[("model", "x\"y\\z\nw"), ("node", "http://[::1]:1/")], 7);
        let read = strict::parse(&text.finish());
        let (_, labels, value) = &read["a_total"].1[0];
        assert_eq!(labels[0], ("model".to_owned(), "x\"y\\z\nw".to_owned()));
        assert_eq!(labels[1].1, "http://[::1]:1/");
        assert!((value - 7.0).abs() < f64::EPSILON);
    }

    #[test]
    fn a_distribution_is_cumulative_and_in_seconds() {
        let mut text = Exposition::default();
        text.family("wait_seconds", Kind::Histogram, "Waiting.");
        let read = Distribution { bounds_us: &[500, 1_000_000], counts: vec![2, 3, 1], sum_us: 2_500_010 };
        text.distribution(&[("worker", "0")], &read);
        let expected = "# HELP wait_seconds Waiting.\n# TYPE wait_seconds histogram\n\
            wait_seconds_bucket{worker=\"0\",le=\"0.0005\"} 2\nwait_seconds_bucket{worker=\"0\",le=\"1\"} 5\n\
            wait_seconds_bucket{worker=\"0\",le=\"+Inf\"} 6\nwait_seconds_sum{worker=\"0\"} 2.50001\n\
            wait_seconds_count{worker=\"0\"} 6\n";
        let text = text.finish();
        assert_eq!(text, expected);
        strict::parse(&text);
    }

    #[test]
    fn seconds_keep_their_digits() {
        let mut text = Exposition::default();
        text.family("age_seconds", Kind::Gauge, "Age.");
        text.seconds_of_ms(&[], 61_005);
        text.seconds_of_us(&[("a", "b")], 1);
        assert!(text.finish().ends_with("age_seconds 61.005\nage_seconds{a=\"b\"} 0.000001\n"));
    }
}
