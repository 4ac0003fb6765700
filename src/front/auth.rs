//! Router keys: where a request carries one, and whose it is.
//!
//! The key is read from `Authorization: Bearer`, `x-api-key` or `?api_key=`, in this order; it never reaches a log or
//! a node. How it is compared: [`KeyRing`]. Must never decide what a route needs.

use crate::ids::KeyId;
use crate::proxy::headers::Known;
use crate::proxy::keyring::KeyRing;

/// What the request's key is worth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// No key is configured, or the key is right.
    Granted(KeyId),
    /// A key is needed and none came.
    Missing,
    /// The key that came is not one of ours.
    Wrong,
}

/// Checks the key of a request.
#[must_use]
pub fn check(keys: &KeyRing, known: &Known<'_>, query: Option<&str>) -> Access {
    if keys.is_empty() {
        return Access::Granted(KeyId::NONE);
    }
    let Some(given) = given_key(known, query) else { return Access::Missing };
    keys.find(&given).map_or(Access::Wrong, Access::Granted)
}

fn given_key<'r>(known: &Known<'r>, query: Option<&'r str>) -> Option<std::borrow::Cow<'r, [u8]>> {
    if let Some(bearer) = known.authorization.and_then(bearer) {
        return Some(bearer.into());
    }
    if let Some(key) = known.api_key.map(<[u8]>::trim_ascii).filter(|key| !key.is_empty()) {
        return Some(key.into());
    }
    let value = query?.split('&').find_map(|pair| pair.strip_prefix("api_key="))?;
    Some(percent_decode(&value.replace('+', " ")).into())
}

/// The token of a Bearer header, trimmed; `None` for another scheme or an empty token.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    let token = token.trim_ascii();
    (scheme.eq_ignore_ascii_case(b"bearer ") && !token.is_empty()).then_some(token)
}

/// Decodes `%xx` of a path or query; malformed escapes stay as they are.
#[must_use]
pub fn percent_decode(value: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let hex = |at: usize| tail.get(at).and_then(|digit| char::from(*digit).to_digit(16));
        match (byte, hex(0), hex(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                rest = &tail[2..];
                continue;
            }
            _ => out.push(byte),
        }
        rest = tail;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;
    use crate::proxy::keyring::Key;

    fn keys() -> KeyRing {
        KeyRing::of([(1, "alpha"), (2, "beta")].map(|(id, key)| Key { id: KeyId(id), secret: Secret(key.to_owned()) }))
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> Known<'static> {
        Known::read(pairs.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())))
    }

    #[test]
    fn no_key_configured_grants_everything() {
        assert_eq!(check(&KeyRing::of([]), &Known::default(), None), Access::Granted(KeyId::NONE));
    }

    #[test]
    fn each_place_works_and_either_key() {
        assert_eq!(check(&keys(), &headers(&[("authorization", "bEARER  beta ")]), None), Access::Granted(KeyId(2)));
        assert_eq!(check(&keys(), &headers(&[("x-api-key", "alpha")]), None), Access::Granted(KeyId(1)));
        assert_eq!(check(&keys(), &Known::default(), Some("a=b&api_key=bet%61")), Access::Granted(KeyId(2)));
    }

    #[test]
    fn missing_and_wrong_differ() {
        assert_eq!(check(&keys(), &Known::default(), Some("a=b")), Access::Missing);
        assert_eq!(check(&keys(), &headers(&[("authorization", "Basic xyz")]), None), Access::Missing);
        assert_eq!(check(&keys(), &headers(&[("authorization", "Bearer alph")]), None), Access::Wrong);
        // A wrong Bearer hides the query, as it did in the ancestor.
        assert_eq!(check(&keys(), &headers(&[("authorization", "Bearer x")]), Some("api_key=beta")), Access::Wrong);
        assert_eq!(check(&keys(), &headers(&[("authorization", "Bearer \u{e9}")]), None), Access::Wrong);
    }
}
