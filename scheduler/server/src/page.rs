//! Pages of lists: bounded sizes and opaque tokens.
//!
//! A token holds where the page before ended and a sum over what is listed (collection, parent, filter, order), so that
//! one that was made up or belongs to another list is refused. It also carries the revision of the first page, which is
//! what a watch has to start from. A page is bounded in bytes as well, so that it always fits a client's message limit.

use prost::Message;
use tonic::Status;
use trainyard_core::{ListCursor, Listed};
use trainyard_proto::v1::{Cluster, Experiment, FileServer, Job, Node, NodeClass, Workspace};

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
const VERSION: u8 = 2;
/// Bytes before the name: version, sum, revision, sequence, index.
const HEAD: usize = 1 + 8 + 8 + 8 + 4;

/// What can stand on a page.
pub trait Paged: Message {
    /// Where a list goes on after this item.
    fn cursor(&self) -> ListCursor;
}

macro_rules! paged_by_name {
    ($($type:ty),*) => {$(
        impl Paged for $type {
            fn cursor(&self) -> ListCursor {
                ListCursor { name: self.name.clone(), ..ListCursor::default() }
            }
        }
    )*};
}
paged_by_name!(Workspace, Cluster, FileServer, Experiment, Node, NodeClass);

impl Paged for Job {
    fn cursor(&self) -> ListCursor {
        ListCursor {
            sequence: self.sequence,
            index: self.array.as_ref().map_or(0, |array| array.index),
            name: self.name.clone(),
        }
    }
}

/// A request for one page of a list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Listing<'a> {
    /// What is listed: `jobs`.
    pub collection: &'static str,
    /// Below what.
    pub parent: &'a str,
    /// As the request has it.
    pub filter: &'a str,
    /// As the request has it.
    pub order_by: &'a str,
    /// As the request has it.
    pub page_size: u32,
    /// As the request has it.
    pub page_token: &'a str,
}

impl Listing<'_> {
    /// Tells lists apart, nothing more: FNV-1a, 64 bits.
    fn sum(&self) -> u64 {
        [self.collection, self.parent, self.filter, self.order_by]
            .iter()
            .flat_map(|part| part.bytes().chain([0]))
            .fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
                (sum ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            })
    }
}

/// Fills one page, slice by slice.
#[derive(Debug)]
pub struct Pager<T> {
    sum: u64,
    size: usize,
    cursor: ListCursor,
    revision: Option<u64>,
    items: Vec<T>,
    bytes: usize,
    /// No more of this page is wanted.
    done: bool,
    /// There may be another page.
    more: bool,
}

impl<T: Paged> Pager<T> {
    /// Reads size and token.
    pub fn open(listing: &Listing<'_>) -> Result<Self, Status> {
        let size = match usize::try_from(listing.page_size).unwrap_or(MAX_SIZE) {
            0 => DEFAULT_SIZE,
            n => n.min(MAX_SIZE),
        };
        let sum = listing.sum();
        let (revision, cursor) = match listing.page_token {
            "" => (None, ListCursor::default()),
            token => decode(sum, token).map(|(r, c)| (Some(r), c))?,
        };
        Ok(Self {
            sum,
            size,
            cursor,
            revision,
            items: Vec::new(),
            bytes: 0,
            done: false,
            more: true,
        })
    }

    /// Where the next slice starts.
    pub fn cursor(&self) -> &ListCursor {
        &self.cursor
    }

    /// Items that the next slice may have.
    pub fn room(&self) -> usize {
        self.size.saturating_sub(self.items.len())
    }

    /// Whether the page is full or the list at its end.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Takes a slice of the state at this index of the log.
    pub fn take(&mut self, listed: Listed<T>, index: u64) {
        self.revision.get_or_insert(index);
        for item in listed.items {
            self.bytes += item.encoded_len();
            if !self.items.is_empty() && self.bytes > MAX_BYTES {
                // The cursor stands behind the last item that was taken.
                self.done = true;
                return;
            }
            self.cursor = item.cursor();
            self.items.push(item);
        }
        match listed.next {
            Some(next) => self.cursor = next,
            None => self.more = false,
        }
        self.done = !self.more || self.items.len() >= self.size || self.bytes >= MAX_BYTES;
    }

    /// The items, the token of the next page (empty: there is none) and the revision of the first page.
    pub fn finish(self) -> (Vec<T>, String, u64) {
        let revision = self.revision.unwrap_or_default();
        let token = if self.more {
            encode(self.sum, revision, &self.cursor)
        } else {
            String::new()
        };
        (self.items, token, revision)
    }
}

fn encode(sum: u64, revision: u64, cursor: &ListCursor) -> String {
    let mut bytes = vec![VERSION];
    bytes.extend_from_slice(&sum.to_be_bytes());
    bytes.extend_from_slice(&revision.to_be_bytes());
    bytes.extend_from_slice(&cursor.sequence.to_be_bytes());
    bytes.extend_from_slice(&cursor.index.to_be_bytes());
    bytes.extend_from_slice(cursor.name.as_bytes());
    bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .filter_map(|digit| char::from_digit(u32::from(digit), 16))
        .collect()
}

fn decode(sum: u64, token: &str) -> Result<(u64, ListCursor), Status> {
    read(sum, token).ok_or_else(|| {
        status::invalid_field(
            "page_token",
            "is not a token of this list with this filter and order; send the next_page_token of its last page, or none to \
             start anew",
        )
    })
}

fn read(sum: u64, token: &str) -> Option<(u64, ListCursor)> {
    if token.len() > MAX_TOKEN || !token.len().is_multiple_of(2) || !token.is_ascii() {
        return None;
    }
    let digits: Vec<u8> = token
        .chars()
        .map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok()))
        .collect::<Option<_>>()?;
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect();
    let (head, name) = bytes.split_at_checked(HEAD)?;
    let number = |from: usize| {
        head.get(from..from + 8)
            .and_then(|bytes| bytes.try_into().ok())
            .map(u64::from_be_bytes)
    };
    let index = head.get(25..).and_then(|bytes| bytes.try_into().ok());
    if head.first() != Some(&VERSION) || number(1)? != sum {
        return None;
    }
    let cursor = ListCursor {
        sequence: number(17)?,
        index: u32::from_be_bytes(index?),
        name: String::from_utf8(name.to_vec()).ok()?,
    };
    Some((number(9)?, cursor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experiments(range: std::ops::Range<usize>) -> Vec<Experiment> {
        range
            .map(|i| Experiment {
                name: format!("workspaces/w/experiments/{i:04}"),
                ..Experiment::default()
            })
            .collect()
    }

    fn slice(items: Vec<Experiment>, more: bool) -> Listed<Experiment> {
        let next = items.last().filter(|_| more).map(Paged::cursor);
        Listed { items, next }
    }

    fn listing(page_token: &str) -> Listing<'_> {
        Listing {
            collection: "experiments",
            parent: "workspaces/w",
            page_size: 2,
            page_token,
            ..Listing::default()
        }
    }

    #[test]
    fn pages_join_without_gap_and_keep_the_revision_of_the_first() {
        let mut pager = Pager::open(&listing("")).unwrap();
        assert_eq!((pager.cursor().name.as_str(), pager.room()), ("", 2));
        pager.take(slice(experiments(0..1), true), 7);
        assert!(!pager.is_done());
        assert_eq!(pager.room(), 1);
        pager.take(slice(experiments(1..2), true), 9);
        assert!(pager.is_done());
        let (page, token, revision) = pager.finish();
        assert_eq!((page.len(), revision), (2, 7));
        let mut next = Pager::open(&listing(&token)).unwrap();
        assert_eq!(next.cursor().name, "workspaces/w/experiments/0001");
        next.take(slice(experiments(2..3), false), 12);
        let (page, token, revision) = next.finish();
        assert_eq!((page.len(), token.as_str(), revision), (1, "", 7));
    }

    #[test]
    fn a_slice_that_found_nothing_goes_on_where_it_stopped() {
        let mut pager = Pager::<Experiment>::open(&listing("")).unwrap();
        let next = ListCursor {
            sequence: 5,
            index: 3,
            name: "n".into(),
        };
        let listed = Listed {
            items: Vec::new(),
            next: Some(next.clone()),
        };
        pager.take(listed, 1);
        assert!(!pager.is_done());
        let (items, token, _) = pager.finish();
        assert!(items.is_empty());
        let again = Pager::<Experiment>::open(&listing(&token)).unwrap();
        assert_eq!(*again.cursor(), next);
    }

    #[test]
    fn sizes_are_bounded() {
        for (page_size, room) in [(0, 100), (7, 7), (u32::MAX, 1000)] {
            let listing = Listing {
                page_size,
                ..Listing::default()
            };
            assert_eq!(Pager::<Job>::open(&listing).unwrap().room(), room);
        }
    }

    #[test]
    fn a_page_is_bounded_in_bytes_but_never_empty() {
        let big = |i: usize| Experiment {
            name: format!("{i}"),
            etag: "x".repeat(2 * 1024 * 1024),
            ..Experiment::default()
        };
        let listing = Listing {
            page_size: 10,
            ..Listing::default()
        };
        let mut pager = Pager::open(&listing).unwrap();
        pager.take(slice(vec![big(1), big(2), big(3)], false), 1);
        assert!(pager.is_done());
        let (page, token, _) = pager.finish();
        assert_eq!(page.len(), 1);
        let next = Pager::<Experiment>::open(&Listing {
            page_token: &token,
            ..listing
        });
        assert_eq!(next.unwrap().cursor().name, "1");
    }

    #[test]
    fn tokens_of_another_list_filter_or_order_are_refused() {
        let own = Listing {
            collection: "jobs",
            parent: "a",
            filter: "state = queued",
            order_by: "name",
            ..Listing::default()
        };
        let token = encode(own.sum(), 1, &ListCursor::default());
        let with = |listing: Listing<'static>, token: &str| {
            Pager::<Job>::open(&Listing {
                page_token: token,
                ..listing
            })
        };
        assert!(with(own, &token).is_ok());
        for other in [
            Listing {
                collection: "nodes",
                ..own
            },
            Listing { parent: "b", ..own },
            Listing { filter: "", ..own },
            Listing {
                order_by: "name desc",
                ..own
            },
        ] {
            let refused = with(other, &token).unwrap_err();
            assert!(refused.message().contains("page_token"), "{refused}");
        }
        let cut = &token[..token.len() - 2];
        for bad in ["zz", "01", "é", "0", cut] {
            assert!(with(own, bad).is_err(), "{bad}");
        }
    }
}
