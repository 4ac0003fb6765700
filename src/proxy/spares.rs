//! Boxes that are used again: what lives as long as an answer and is too large to be moved about costs no allocation
//! once the worker is warm. One thread only.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

/// Boxes kept at most; the rest go back to the allocator.
const KEPT_MAX: usize = 256;

/// Empty boxes of one worker.
#[derive(Debug)]
pub struct Spares<T> {
    boxes: RefCell<Vec<Box<Option<T>>>>,
}

impl<T> Default for Spares<T> {
    fn default() -> Self {
        Self { boxes: RefCell::new(Vec::new()) }
    }
}

impl<T> Spares<T> {
    /// Puts a value into a box, a used one if there is any.
    #[must_use]
    pub fn hold(self: &Rc<Self>, value: T) -> Kept<T> {
        let mut place = self.boxes.borrow_mut().pop().unwrap_or_default();
        *place = Some(value);
        Kept { place: Some(place), home: self.clone() }
    }
}

/// A value in a box that goes back to its [`Spares`].
#[derive(Debug)]
pub struct Kept<T> {
    /// Full for as long as this lives; [`Drop`] alone empties it.
    place: Option<Box<Option<T>>>,
    home: Rc<Spares<T>>,
}

impl<T> Deref for Kept<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.place.as_deref().and_then(Option::as_ref).expect("a kept value is taken only on drop")
    }
}

impl<T> DerefMut for Kept<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.place.as_deref_mut().and_then(Option::as_mut).expect("a kept value is taken only on drop")
    }
}

impl<T> Drop for Kept<T> {
    fn drop(&mut self) {
        let Some(mut place) = self.place.take() else { return };
        // The value first: its own drop may hold another one.
        *place = None;
        let mut boxes = self.home.boxes.borrow_mut();
        if boxes.len() < KEPT_MAX {
            boxes.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_box_is_used_again_and_its_value_dropped_at_once() {
        let spares = Rc::new(Spares::default());
        let value = Rc::new(7);
        let kept = spares.hold(value.clone());
        let place = std::ptr::from_ref(&*kept);
        drop(kept);
        assert_eq!(Rc::strong_count(&value), 1);
        let again = spares.hold(value.clone());
        assert_eq!(std::ptr::from_ref(&*again), place);
        assert!(spares.boxes.borrow().is_empty());
    }
}
