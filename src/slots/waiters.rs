//! Who waits for a slot: one FIFO per model name, late binding, bounded, cancellable.
/// Placeholder.
#[derive(Debug)]
pub struct Queue;
