//! Pages of lists: bounded sizes and opaque tokens.
//!
//! A token holds the last name of the page before and a sum over the parent, so that one that was made up or belongs to
//! another list is refused. A page is also bounded in bytes, so that it always fits a client's message limit.

use prost::Message;
use tonic::Status;

use crate::status;

/// Items of a page when the request names no size.
const DEFAULT_SIZE: usize = 100;
/// Most items of a page.
const MAX_SIZE: usize = 1000;
/// Bytes after which a page ends: clients take 4 MiB by default.
const MAX_BYTES: usize = 3 * 1024 * 1024;
/// Longest token: hexadecimal digits of a longest name and the head.
const MAX_TOKEN: usize = 2048;
/// Version of the token's form.
const VERSION: u8 = 1;

/// Where a page starts and how long it may be.
#[derive(Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Resource name after which the page starts; empty: the start.
    pub after: String,
    /// Items to ask for: one more than the page may have, to know whether there is another.
    pub limit: usize,
    parent: String,
}

impl Cursor {
    /// Reads `page_size` and `page_token` of a request for the list of `parent`.
    pub fn parse(parent: &str, page_size: u32, page_token: &str) -> Result<Self, Status> {
        let size = match usize::try_from(page_size).unwrap_or(MAX_SIZE) {
            0 => DEFAULT_SIZE,
            n => n.min(MAX_SIZE),
        };
        Ok(Self {
            after: decode(parent, page_token)?,
            limit: size + 1,
            parent: parent.to_owned(),
        })
    }

    /// Cuts what was found to the page and makes the token of the next one (empty: there is none).
    pub fn cut<T: Message>(
        &self,
        mut items: Vec<T>,
        name: impl Fn(&T) -> &str,
    ) -> (Vec<T>, String) {
        let mut bytes = 0;
        let mut keep = 0;
        for item in &items {
            bytes += item.encoded_len();
            if keep > 0 && bytes > MAX_BYTES || keep + 1 == self.limit {
                break;
            }
            keep += 1;
        }
        if keep == items.len() {
            return (items, String::new());
        }
        items.truncate(keep);
        let token = items
            .last()
            .map(|last| encode(&self.parent, name(last)))
            .unwrap_or_default();
        (items, token)
    }
}

fn encode(parent: &str, after: &str) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&sum(parent).to_be_bytes());
    bytes.extend_from_slice(after.as_bytes());
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

fn decode(parent: &str, token: &str) -> Result<String, Status> {
    if token.is_empty() {
        return Ok(String::new());
    }
    let wrong = || {
        status::invalid_field(
            "page_token",
            "is not a token of this list; send the next_page_token of its last page, or none to start anew",
        )
    };
    if token.len() > MAX_TOKEN || !token.is_ascii() {
        return Err(wrong());
    }
    let digits: Option<Vec<u8>> = token
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect();
    let bytes: Vec<u8> = digits
        .ok_or_else(wrong)?
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    let after = bytes
        .strip_prefix(&[VERSION])
        .and_then(|rest| rest.strip_prefix(&sum(parent).to_be_bytes()))
        .ok_or_else(wrong)?;
    String::from_utf8(after.to_vec()).map_err(|_| wrong())
}

/// FNV-1a, 32 bits: tells lists apart, nothing more.
fn sum(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |sum, byte| {
        (sum ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use trainyard_proto::v1::Experiment;

    fn experiments(count: usize) -> Vec<Experiment> {
        (0..count)
            .map(|i| Experiment {
                name: format!("workspaces/w/experiments/{i:04}"),
                ..Experiment::default()
            })
            .collect()
    }

    #[test]
    fn pages_join_without_gap() {
        let cursor = Cursor::parse("workspaces/w", 2, "").unwrap();
        assert_eq!((cursor.after.as_str(), cursor.limit), ("", 3));
        let (page, token) = cursor.cut(experiments(3), |e| &e.name);
        assert_eq!(page.len(), 2);
        let next = Cursor::parse("workspaces/w", 2, &token).unwrap();
        assert_eq!(next.after, "workspaces/w/experiments/0001");
        let (page, token) = next.cut(experiments(2), |e| &e.name);
        assert_eq!((page.len(), token.as_str()), (2, ""));
    }

    #[test]
    fn sizes_are_bounded() {
        assert_eq!(Cursor::parse("", 0, "").unwrap().limit, 101);
        assert_eq!(Cursor::parse("", u32::MAX, "").unwrap().limit, 1001);
    }

    #[test]
    fn a_page_is_bounded_in_bytes_but_never_empty() {
        let big = |i: usize| Experiment {
            name: format!("{i}"),
            etag: "x".repeat(2 * 1024 * 1024),
            ..Experiment::default()
        };
        let cursor = Cursor::parse("p", 10, "").unwrap();
        let (page, token) = cursor.cut(vec![big(1), big(2), big(3)], |e| &e.name);
        assert_eq!(page.len(), 1);
        assert_eq!(Cursor::parse("p", 10, &token).unwrap().after, "1");
    }

    #[test]
    fn foreign_tokens_are_refused() {
        let token = encode("workspaces/a", "workspaces/a/experiments/x");
        for (parent, token) in [
            ("workspaces/b", token.as_str()),
            ("p", "zz"),
            ("p", "01"),
            ("p", "é"),
        ] {
            assert!(Cursor::parse(parent, 0, token).is_err(), "{token}");
        }
    }
}
