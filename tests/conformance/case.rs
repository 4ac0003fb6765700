//! What a conformance case is made of: its number in the contract, requests, what each must be answered.

use std::pin::Pin;

use serde_json::Value;

use crate::support::client::{Answer, post, request};

/// Content types.
pub(crate) const JSON: &str = "application/json; charset=utf-8";
pub(crate) const V1: &str = "application/json";
pub(crate) const NDJSON: &str = "application/x-ndjson";
pub(crate) const SSE: &str = "text/event-stream";
pub(crate) const TEXT: &str = "text/plain";

/// Which nodes a case is played on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    /// Nodes with the models of `stage`.
    Full,
    /// Nodes with no model.
    Empty,
    /// Nodes whose cloud is switched off.
    CloudOff,
}

type Holds = Box<dyn Fn(&Answer) -> bool + Send + Sync>;
type Played = Pin<Box<dyn Future<Output = ()>>>;

/// One request and what it must be answered, by a node and by the gate alike.
pub(crate) struct Step {
    pub(crate) bytes: Vec<u8>,
    pub(crate) status: u16,
    /// `None`: there must be no type.
    pub(crate) kind: Option<&'static str>,
    pub(crate) holds: Vec<(String, Holds)>,
    /// Asked again until it holds: what a request left behind shows a little later.
    pub(crate) patient: bool,
}

impl Step {
    pub(crate) fn is_head(&self) -> bool {
        self.bytes.starts_with(b"HEAD ")
    }

    /// The request's first line and body, for messages.
    pub(crate) fn shown(&self) -> String {
        let text = String::from_utf8_lossy(&self.bytes);
        let line = text.lines().next().unwrap_or_default().to_owned();
        let body: String = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).chars().take(200).collect();
        format!("{line} {body}")
    }

    /// What is wrong with an answer.
    pub(crate) fn faults(&self, answer: &Answer) -> Vec<String> {
        let mut found = Vec::new();
        if answer.status != self.status {
            found.push(format!("status {} instead of {}", answer.status, self.status));
        }
        if answer.header("content-type") != self.kind {
            found.push(format!("type {:?} instead of {:?}", answer.header("content-type"), self.kind));
        }
        if !answer.whole {
            found.push("the body broke off".to_owned());
        }
        if found.is_empty() {
            // The first alone: what follows may read what it has shown to be there.
            let missed = self.holds.iter().find(|(_, holds)| !holds(answer));
            found.extend(missed.map(|(what, _)| format!("does not hold: {what}")));
        }
        if !found.is_empty() {
            found.push(format!("body {:?}", answer.text().chars().take(600).collect::<String>()));
        }
        found
    }
}

/// How a case is played.
pub(crate) enum Play {
    /// The same requests to a node and to the gate, answered alike.
    Steps(Vec<Step>),
    /// Told in code: more than requests and answers is looked at.
    Scene(fn() -> Played),
}

/// A case of the contract.
pub(crate) struct Case {
    pub(crate) number: u16,
    pub(crate) set: Set,
    pub(crate) play: Play,
}

/// A case of requests and answers.
pub(crate) fn case(number: u16) -> Case {
    Case { number, set: Set::Full, play: Play::Steps(Vec::new()) }
}

/// A case told in code.
pub(crate) fn scene(number: u16, play: fn() -> Played) -> Case {
    Case { number, set: Set::Full, play: Play::Scene(play) }
}

impl Case {
    pub(crate) fn on(mut self, set: Set) -> Self {
        self.set = set;
        self
    }

    /// Any request.
    pub(crate) fn ask(mut self, bytes: Vec<u8>) -> Self {
        if let Play::Steps(steps) = &mut self.play {
            steps.push(Step { bytes, status: 200, kind: Some(JSON), holds: Vec::new(), patient: false });
        }
        self
    }

    pub(crate) fn get(self, path: &str) -> Self {
        self.ask(request("GET", path, &[], b""))
    }

    pub(crate) fn head(self, path: &str) -> Self {
        self.ask(request("HEAD", path, &[], b""))
    }

    pub(crate) fn post(self, path: &str, body: &str) -> Self {
        self.ask(post(path, body))
    }

    pub(crate) fn delete(self, path: &str, body: &str) -> Self {
        self.ask(request("DELETE", path, &[], body.as_bytes()))
    }

    /// With a header line.
    pub(crate) fn with(self, method: &str, path: &str, header: (&str, &str), body: &[u8]) -> Self {
        self.ask(request(method, path, &[header], body))
    }

    fn last(mut self, edit: impl FnOnce(&mut Step)) -> Self {
        if let Play::Steps(steps) = &mut self.play {
            edit(steps.last_mut().expect("a request first"));
        }
        self
    }

    /// Status and type of the answer.
    pub(crate) fn gives(self, status: u16, kind: &'static str) -> Self {
        self.last(|step| (step.status, step.kind) = (status, Some(kind)))
    }

    /// An answer without a type.
    pub(crate) fn gives_bare(self, status: u16) -> Self {
        self.last(|step| (step.status, step.kind) = (status, None))
    }

    /// Asked again until it holds.
    pub(crate) fn in_the_end(self) -> Self {
        self.last(|step| step.patient = true)
    }

    /// Something else that holds of the answer.
    pub(crate) fn that(self, what: &str, holds: impl Fn(&Answer) -> bool + Send + Sync + 'static) -> Self {
        self.last(|step| step.holds.push((what.to_owned(), Box::new(holds))))
    }

    /// The body, to the byte.
    pub(crate) fn body(self, body: &str) -> Self {
        let body = body.to_owned();
        self.that(&format!("the body is {body:?}"), move |answer| answer.text() == body)
    }

    /// The native error, to the byte.
    pub(crate) fn error(self, text: &str) -> Self {
        let body = serde_json::json!({ "error": text }).to_string();
        self.body(&body)
    }

    pub(crate) fn has(self, part: &str) -> Self {
        let part = part.to_owned();
        self.that(&format!("{part:?} is in the body"), move |answer| answer.text().contains(&part))
    }

    pub(crate) fn lacks(self, part: &str) -> Self {
        let part = part.to_owned();
        self.that(&format!("{part:?} is not in the body"), move |answer| !answer.text().contains(&part))
    }

    /// A header line; an empty value is none at all.
    pub(crate) fn line(self, name: &'static str, value: &'static str) -> Self {
        self.that(&format!("{name}: {value}"), move |answer| answer.header(name).unwrap_or("") == value)
    }

    /// A value of a JSON body.
    pub(crate) fn json(self, pointer: &'static str, value: impl Into<Value>) -> Self {
        let value = value.into();
        self.that(&format!("{pointer} is {value}"), move |answer| answer.json().pointer(pointer) == Some(&value))
    }

    /// Something that holds of a JSON body.
    pub(crate) fn json_that(self, what: &str, holds: fn(&Value) -> bool) -> Self {
        self.that(what, move |answer| holds(&answer.json()))
    }

    /// Something that holds of the lines of an NDJSON body.
    pub(crate) fn lines(self, what: &str, holds: fn(&[Value]) -> bool) -> Self {
        self.that(what, move |answer| holds(&answer.lines()))
    }

    /// Something that holds of the events of a stream.
    pub(crate) fn events(self, what: &str, holds: fn(&[Value]) -> bool) -> Self {
        self.that(what, move |answer| holds(&answer.events()))
    }
}
