//! One connection to a simulated node: what it is reading, what it is sending.
//!
//! Called by `backend` alone.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::time::Duration;

use crate::node::Pieces;

/// A request that is being read.
pub(super) enum Reading {
    Head,
    /// The first bytes of a body, until they tell the model.
    Start {
        path: String,
        length: usize,
    },
    Body {
        answer: usize,
        at: usize,
        length: usize,
        bent: bool,
    },
}

/// An answer on its way: the pieces, which one is next, how much of that one is out. Nothing out of a piece that is not
/// the first means that it waits for its time.
pub(super) type Sending = (Pieces, usize, usize);

pub(super) struct Conn {
    pub(super) stream: TcpStream,
    pub(super) reading: Reading,
    /// Bytes that were read and not understood yet.
    pub(super) held: Vec<u8>,
    /// What is being sent, and how far.
    pub(super) sending: Option<Sending>,
    pub(super) every: Duration,
    pub(super) endless: bool,
    /// Tells a timer of this connection from one of an earlier connection in its place.
    pub(super) born: u64,
}

/// Sends what is due: one piece, or the rest of one; all of them where they have no pace. False when the connection is
/// broken.
pub(super) fn push(conn: &mut Conn) -> bool {
    loop {
        let whole = push_one(conn);
        if !whole || !conn.every.is_zero() || !matches!(conn.sending, Some((_, _, 0))) {
            return whole;
        }
    }
}

fn push_one(conn: &mut Conn) -> bool {
    let Some((pieces, piece, offset)) = &mut conn.sending else { return true };
    let Some(bytes) = pieces.get(*piece) else {
        conn.sending = None;
        return true;
    };
    match conn.stream.write(&bytes[*offset..]) {
        Ok(n) if *offset + n == bytes.len() => {
            *offset = 0;
            *piece += 1;
            if conn.endless && *piece + 1 >= pieces.len() {
                // Held streams never reach their last record: the one before it comes again and again.
                *piece = pieces.len().saturating_sub(2).max(1);
            }
            if *piece >= pieces.len() {
                conn.sending = None;
            }
            true
        }
        Ok(n) => {
            *offset += n;
            true
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => {
            // Offset 0 would read as "sent": a piece that could not even start is rare enough to be dropped with its
            // connection, and loud at the client.
            *offset > 0
        }
        Err(_) => false,
    }
}
