//! A slot that is held, and the counters of the (node, model name) it is held for.
use crate::slots::Cell;
use crate::sync::Arc;
/// Placeholder.
#[derive(Debug)]
pub struct ModelWord;
/// Slot word and counters of one (node, model name).
#[derive(Debug)]
pub struct Pair {
    /// The capacity word.
    pub cell: Arc<Cell>,
}
/// Placeholder.
#[derive(Debug)]
pub struct Permit;
