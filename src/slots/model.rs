//! Loom models of the slots, and the twin without fences that must fail.

/// The twin: the same code without its pairing fences.
pub(super) fn without_fences() -> bool {
    false
}
