//! What a simulated node answers to questions about itself: version, tags, ps, show.
//!
//! Called by `backend`. Prepared once as bytes; every node of a fleet answers the same.

use std::collections::HashMap;
use std::rc::Rc;

/// One prepared answer, in the pieces that `backend` sends.
pub(crate) type Pieces = Rc<Vec<Vec<u8>>>;

/// All prepared answers.
pub(crate) struct Questions {
    by_path: HashMap<&'static str, Pieces>,
    shows: HashMap<String, Pieces>,
    unknown: Pieces,
}

impl Questions {
    /// Nodes that have these models loaded, and `more` on disk.
    pub(crate) fn new(loaded: &[String], more: usize) -> Self {
        let others = (0..more).map(|n| format!("filler-{n:03}:latest"));
        let all: Vec<String> = loaded.iter().cloned().chain(others).collect();
        let tags = list(all.iter().map(|name| entry(name, "")));
        let ps = list(loaded.iter().map(|name| {
            entry(name, ",\"expires_at\":\"2030-01-01T00:00:00Z\",\"size_vram\":2019393189,\"context_length\":4096")
        }));
        let by_path = HashMap::from([
            ("/api/version", Self::json(b"{\"version\":\"0.33.0\"}")),
            ("/api/tags", Self::json(tags.as_bytes())),
            ("/api/ps", Self::json(ps.as_bytes())),
            ("/", Self::json(b"\"Ollama is running\"")),
        ]);
        let shows = all.into_iter().map(|name| {
            let show = show(&name);
            (name, Self::json(show.as_bytes()))
        });
        Self { by_path, shows: shows.collect(), unknown: answer("404 Not Found", b"{\"error\":\"not found\"}") }
    }

    /// A 200 with this JSON.
    pub(crate) fn json(body: &[u8]) -> Pieces {
        answer("200 OK", body)
    }

    /// A 400 that says what is wrong.
    pub(crate) fn error(text: &str) -> Pieces {
        answer("400 Bad Request", format!("{{\"error\":\"{text}\"}}").as_bytes())
    }

    /// The answer to a GET.
    pub(crate) fn get(&self, path: &str) -> Pieces {
        Rc::clone(self.by_path.get(path).unwrap_or(&self.unknown))
    }

    /// The answer to `/api/show`.
    pub(crate) fn show(&self, body: &[u8]) -> Pieces {
        let asked: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
        let name = asked["model"].as_str().unwrap_or("");
        Rc::clone(self.shows.get(name).unwrap_or(&self.unknown))
    }

    /// A 404.
    pub(crate) fn unknown(&self) -> Pieces {
        Rc::clone(&self.unknown)
    }
}

fn answer(status: &str, body: &[u8]) -> Pieces {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json; charset=utf-8\r\nDate: Wed, 25 Nov 2026 10:00:00 GMT\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Rc::new(vec![[head.as_bytes(), body].concat()])
}

fn list(entries: impl Iterator<Item = String>) -> String {
    format!("{{\"models\":[{}]}}", entries.collect::<Vec<_>>().join(","))
}

fn entry(name: &str, more: &str) -> String {
    let digest = digest(name, 1);
    format!(
        "{{\"name\":\"{name}\",\"model\":\"{name}\",\"modified_at\":\"2026-11-20T09:30:00.5+01:00\",\"size\":2019393189,\"digest\":\"{digest}\",\
         \"details\":{{\"parent_model\":\"\",\"format\":\"gguf\",\"family\":\"llama\",\"families\":[\"llama\"],\"parameter_size\":\"3.2B\",\
         \"quantization_level\":\"Q4_K_M\"}}{more}}}"
    )
}

fn show(name: &str) -> String {
    let blob = digest(name, 2);
    format!(
        "{{\"modelfile\":\"FROM /models/blobs/sha256-{blob}\\nTEMPLATE x\",\"template\":\"x\",\"details\":{{\"format\":\"gguf\"}},\"capabilities\":[\"completion\",\"embedding\",\"vision\"]}}"
    )
}

/// 64 hex digits that are the name's own (FNV-1a, four times).
fn digest(name: &str, seed: u64) -> String {
    (0..4u64)
        .map(|part| {
            let start = 0xcbf2_9ce4_8422_2325 ^ (seed * 4 + part);
            let hash = name.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
            format!("{hash:016x}")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(pieces: &Pieces) -> serde_json::Value {
        let text = String::from_utf8(pieces.concat()).unwrap();
        serde_json::from_str(text.split_once("\r\n\r\n").unwrap().1).unwrap()
    }

    #[test]
    fn listings_are_json_and_every_model_has_weights_of_its_own() {
        let questions = Questions::new(&["short:latest".to_owned()], 3);
        assert_eq!(body(&questions.get("/api/tags"))["models"].as_array().unwrap().len(), 4);
        assert_eq!(body(&questions.get("/api/ps"))["models"].as_array().unwrap().len(), 1);
        let shown =
            |name: &str| body(&questions.show(format!("{{\"model\":\"{name}\"}}").as_bytes()))["modelfile"].clone();
        assert_ne!(shown("short:latest"), shown("filler-001:latest"));
        assert_eq!(body(&questions.get("/nothing"))["error"], "not found");
    }
}
