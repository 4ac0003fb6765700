//! A node that has nothing, and takes the body of an upload without looking at it: faster than any that hashes.

use herdgate::sync::{Arc, AtomicU64, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// Serves for as long as it is polled. An upload is answered with 201 once `enough` bytes of its body have come (counted
/// as `taken`, framing included), or its last chunk; the first one is not read before `go_on`.
pub async fn sink(listener: TcpListener, enough: u64, mut go_on: Option<oneshot::Receiver<()>>, taken: Arc<AtomicU64>) {
    let mut connections = JoinSet::new();
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let head = head_of(&mut stream).await;
        if head.starts_with(b"POST /api/blobs/") {
            let (go_on, taken) = (go_on.take(), taken.clone());
            connections.spawn(async move {
                if let Some(go_on) = go_on {
                    go_on.await.unwrap();
                }
                take(&mut stream, enough, &taken).await;
            });
            continue;
        }
        let body = match head.get(..13) {
            Some(b"GET /api/vers") => r#"{"version":"0.33.0"}"#,
            _ => r#"{"models":[]}"#,
        };
        let status = if head.starts_with(b"HEAD") { "404 Not Found" } else { "200 OK" };
        let mut answer = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len());
        answer += if head.starts_with(b"HEAD") { "" } else { body };
        let _ = stream.write_all(answer.as_bytes()).await;
    }
}

async fn take(stream: &mut TcpStream, enough: u64, taken: &AtomicU64) {
    const END: &[u8] = b"\r\n0\r\n\r\n";
    let mut buffer = vec![0; 64 * 1024];
    // The last bytes that came: the last chunk may come alone, or in pieces.
    let mut last = Vec::new();
    while last != END && taken.load(Ordering::Relaxed) < enough {
        let read = stream.read(&mut buffer).await.unwrap();
        assert_ne!(read, 0, "the body breaks off");
        taken.fetch_add(read as u64, Ordering::Relaxed);
        last.extend_from_slice(&buffer[read.saturating_sub(END.len())..read]);
        last.drain(..last.len().saturating_sub(END.len()));
    }
    stream.write_all(b"HTTP/1.1 201 Created\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").await.unwrap();
}

/// A request's head, its blank line included; cut short where the client leaves.
pub async fn head_of(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    head
}
