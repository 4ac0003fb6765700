//! One client: a request on a connection of its own, and what it saw, in the terms that the verdict needs.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::faults::Dice;
use crate::http::Answers;

/// Models that every node has.
pub(crate) const MODELS: [&str; 3] = ["chaos-a", "chaos-b", "chaos-c"];
/// A client waits so long for a first byte; then it has waited in vain.
const PATIENCE: Duration = Duration::from_secs(20);
/// Nothing takes longer than this in all.
const WHOLE: Duration = Duration::from_secs(60);

/// What a client is about to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Errand {
    path: &'static str,
    body: String,
    streamed: bool,
    /// It leaves after so many bytes of the body.
    leaves_after: Option<usize>,
}

/// How it went.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Seen {
    /// A whole answer.
    Whole,
    /// The node was lost after the first byte, and the answer said so: in words in a stream, by its framing otherwise.
    Lost,
    /// It left, as planned.
    Left,
    /// No byte came for as long as it waited.
    InVain,
    /// 503 with `Retry-After`, and when to come back.
    ComeBack,
    /// Anything else.
    Error(String),
}

impl Errand {
    /// The next one.
    pub(crate) fn draw(dice: &mut Dice) -> Self {
        let model = MODELS[usize::try_from(dice.below(MODELS.len() as u64)).unwrap_or(0)];
        let streamed = dice.below(3) != 0;
        let leaves = streamed && dice.below(25) == 0;
        // Who leaves does so early in an answer that would take a minute: however busy the machine is, the node cannot have
        // sent all of it, and counted it as sent, before the proxy hears of the leave.
        let tokens = if leaves { 20_000 } else { 5 + dice.below(40) };
        let sim =
            format!(r#""sim":{{"tokens":{tokens},"prompt":{},"pace_ms":{}}}"#, 5 + dice.below(60), 2 + dice.below(5));
        let (path, rest) = match dice.below(4) {
            0 => ("/api/generate", r#""prompt":"x""#),
            1 => ("/v1/chat/completions", r#""messages":[{"role":"user","content":"x"}]"#),
            _ => ("/api/chat", r#""messages":[{"role":"user","content":"x"}]"#),
        };
        let body = format!(r#"{{"model":"{model}",{rest},"stream":{streamed},{sim}}}"#);
        Self { path, body, streamed, leaves_after: leaves.then_some(200) }
    }

    /// Runs it against the proxy at this port.
    pub(crate) fn run(&self, port: u16) -> Seen {
        match self.exchange(port) {
            Ok(seen) => seen,
            Err(why) => Seen::Error(format!("{}: {why}", self.path)),
        }
    }

    fn exchange(&self, port: u16) -> Result<Seen, String> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(failed("connect"))?;
        let _ = stream.set_nodelay(true);
        let head = format!(
            "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            self.path,
            self.body.len()
        );
        stream.write_all([head.as_bytes(), self.body.as_bytes()].concat().as_slice()).map_err(failed("send"))?;
        let began = Instant::now();
        let (mut answers, mut body, mut buffer) = (Answers::new(), Vec::new(), vec![0; 16 * 1024]);
        let (mut any, mut head) = (false, Vec::new());
        loop {
            let limit = if any { WHOLE } else { PATIENCE };
            let Some(left) = limit.checked_sub(began.elapsed()).filter(|left| !left.is_zero()) else {
                return if any { Err("an answer that does not end".to_owned()) } else { Ok(Seen::InVain) };
            };
            stream.set_read_timeout(Some(left)).map_err(failed("time-out"))?;
            let read = match stream.read(&mut buffer) {
                Ok(read) => read,
                Err(error) if is_timeout(&error) => continue,
                Err(error) if any => return Ok(self.broken_off(&answers, &body, &error.to_string())),
                Err(error) => return Err(format!("read: {error}")),
            };
            if read == 0 {
                return if any {
                    Ok(self.broken_off(&answers, &body, "closed"))
                } else {
                    Err("closed unanswered".to_owned())
                };
            }
            if !std::mem::replace(&mut any, true) {
                head = buffer[..read].to_ascii_lowercase();
            }
            let (_, whole) = answers.feed(&buffer[..read], &mut |bytes| body.extend_from_slice(bytes))?;
            if whole {
                let comes_back = memchr::memmem::find(&head, b"retry-after").is_some();
                return Ok(self.judge(answers.status(), comes_back, &body));
            }
            if self.leaves_after.is_some_and(|bytes| body.len() >= bytes) && answers.status() == 200 {
                return Ok(Seen::Left);
            }
        }
    }

    /// The connection ended within an answer: allowed where nothing else can tell, which is an answer in one piece.
    fn broken_off(&self, answers: &Answers, body: &[u8], why: &str) -> Seen {
        if answers.status() == 200 && !self.streamed {
            return Seen::Lost;
        }
        Seen::Error(format!("{}: {} breaks off ({why}) after {}", self.path, answers.status(), tail(body)))
    }

    fn judge(&self, status: u16, comes_back: bool, body: &[u8]) -> Seen {
        let text = String::from_utf8_lossy(body);
        if status == 503 && comes_back {
            return Seen::ComeBack;
        }
        if status != 200 {
            return Seen::Error(format!("{}: {status} {}", self.path, tail(body)));
        }
        let last = text.trim_end().lines().next_back().unwrap_or_default();
        let ended = match (self.streamed, self.path.starts_with("/v1/")) {
            (true, true) => last == "data: [DONE]",
            (false, true) => text.contains("\"usage\""),
            _ => last.contains("\"done\":true"),
        };
        let told = self.streamed && last_words(&text).contains("\"error\"");
        match (ended, told) {
            (true, false) => Seen::Whole,
            (_, true) => Seen::Lost,
            (false, false) => Seen::Error(format!("{}: an answer without its end: {}", self.path, tail(body))),
        }
    }
}

/// The last two lines: an error of a stream may be followed by the dialect's own end.
fn last_words(text: &str) -> String {
    let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty()).collect();
    lines[lines.len().saturating_sub(2)..].join("\n")
}

fn tail(body: &[u8]) -> String {
    String::from_utf8_lossy(&body[body.len().saturating_sub(300)..]).into_owned()
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errand(path: &'static str, streamed: bool) -> Errand {
        Errand { path, body: String::new(), streamed, leaves_after: None }
    }

    #[test]
    fn answers_are_judged_by_their_ends() {
        let native = errand("/api/chat", true);
        assert_eq!(native.judge(200, false, b"{\"done\":false}\n{\"done\":true}\n"), Seen::Whole);
        assert_eq!(native.judge(200, false, b"{\"done\":false}\n{\"error\":\"lost\"}\n"), Seen::Lost);
        assert!(matches!(native.judge(200, false, b"{\"done\":false}\n"), Seen::Error(_)));
        assert!(matches!(native.judge(503, false, b"{\"error\":\"busy\"}"), Seen::Error(_)));
        assert_eq!(native.judge(503, true, b"{\"error\":\"busy\"}"), Seen::ComeBack);
        let events = errand("/v1/chat/completions", true);
        assert_eq!(events.judge(200, false, b"data: {}\n\ndata: [DONE]\n\n"), Seen::Whole);
        assert_eq!(events.judge(200, false, b"data: {}\n\ndata: {\"error\":{}}\n\n"), Seen::Lost);
        assert_eq!(errand("/v1/chat/completions", false).judge(200, false, b"{\"usage\":{}}"), Seen::Whole);
    }

    #[test]
    fn errands_come_from_the_dice_and_are_of_all_kinds() {
        let draw = |seed| {
            let mut dice = Dice::new(seed);
            (0..500).map(|_| Errand::draw(&mut dice)).collect::<Vec<_>>()
        };
        let errands = draw(3);
        assert_eq!(errands, draw(3));
        for path in ["/api/generate", "/api/chat", "/v1/chat/completions"] {
            assert!(errands.iter().any(|errand| errand.path == path && errand.streamed));
            assert!(errands.iter().any(|errand| errand.path == path && !errand.streamed));
        }
        assert!(errands.iter().any(|errand| errand.leaves_after.is_some()));
        assert!(errands.iter().all(|errand| serde_json::from_str::<serde_json::Value>(&errand.body).is_ok()));
    }
}
