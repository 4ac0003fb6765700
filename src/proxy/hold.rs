//! What an exchange with a node holds for as long as the node may be working: the slot, if the request needs one.

use crate::clock::Millis;
use crate::proxy::upstream::{Detached, Held};
use crate::slots::Permit;

/// A slot, or none (listings of details, unloads).
pub struct Hold(pub Option<Permit>);

impl Held for Hold {
    fn is_loaded(&self) -> bool {
        self.0.as_ref().is_none_or(|permit| permit.pair().cell.view().loaded)
    }

    fn detached(&mut self, how: Detached, now: Millis) {
        let Some(permit) = &mut self.0 else { return };
        match how {
            Detached::Answered(status) if status.is_success() => permit.succeeded(now),
            Detached::Loaded => permit.succeeded(now),
            Detached::Answered(_) | Detached::Failed | Detached::GaveUp => permit.load_failed(),
        }
    }
}
