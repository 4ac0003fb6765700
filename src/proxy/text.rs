//! Text that shares the bytes it was read from: a name or a path kept beyond its request's buffer costs no copy.

use bytes::Bytes;

/// UTF-8 text in shared bytes.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Text(Bytes);

impl Text {
    /// The part `text` of `whole`: shared where it lies in it, copied where not.
    #[must_use]
    pub fn part_of(whole: &Bytes, text: &str) -> Self {
        let (from, start) = (text.as_ptr() as usize, whole.as_ptr() as usize);
        let at = from.checked_sub(start).filter(|at| at + text.len() <= whole.len());
        match at {
            Some(at) if !text.is_empty() => Self(whole.slice(at..at + text.len())),
            _ => Self(Bytes::copy_from_slice(text.as_bytes())),
        }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Made of a str in every constructor.
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl From<&'static str> for Text {
    fn from(text: &'static str) -> Self {
        Self(Bytes::from_static(text.as_bytes()))
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_shared_and_anything_else_is_copied() {
        let whole = Bytes::from_static(b"POST /api/chat");
        let text = std::str::from_utf8(&whole).unwrap();
        let part = Text::part_of(&whole, &text[5..]);
        assert_eq!(part.as_str(), "/api/chat");
        assert_eq!(part.0.as_ptr(), whole[5..].as_ptr());
        let foreign = String::from("elsewhere");
        let copy = Text::part_of(&whole, &foreign);
        assert_eq!(copy.as_str(), "elsewhere");
        assert_ne!(copy.0.as_ptr(), foreign.as_ptr());
        assert_eq!(Text::part_of(&whole, "").as_str(), "");
    }
}
