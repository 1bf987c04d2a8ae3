//! Remembers which create a client's request id made, so that a retry after a lost answer makes nothing twice.
//!
//! Bounded: the oldest ids are forgotten. It must stay large enough that no client still retries a forgotten id.

use std::collections::{BTreeMap, VecDeque};

use trainyard_proto::store::v1::RequestRecord;

/// Ids remembered. At 10,000 creates per second this is 10 s, longer than a client retries one create after the
/// group answered it; at ordinary rates it is days.
const CAPACITY: usize = 100_000;

/// The remembered creates, oldest first.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Requests {
    by_id: BTreeMap<String, (String, String)>,
    order: VecDeque<String>,
}

impl Requests {
    /// The resource name and UUID that `request_id` made for a resource of this kind.
    pub(crate) fn get(&self, request_id: &str) -> Option<(&str, &str)> {
        if request_id.is_empty() {
            return None;
        }
        self.by_id
            .get(request_id)
            .map(|(name, uid)| (name.as_str(), uid.as_str()))
    }

    /// Remembers a create. An empty id is not remembered.
    pub(crate) fn remember(&mut self, request_id: &str, name: &str, uid: &str) {
        if request_id.is_empty() {
            return;
        }
        let previous = self
            .by_id
            .insert(request_id.to_owned(), (name.to_owned(), uid.to_owned()));
        if previous.is_none() {
            self.order.push_back(request_id.to_owned());
        }
        while self.order.len() > CAPACITY {
            if let Some(oldest) = self.order.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }

    /// For the snapshot, oldest first.
    pub(crate) fn records(&self) -> Vec<RequestRecord> {
        self.order
            .iter()
            .filter_map(|id| {
                let (name, uid) = self.by_id.get(id)?;
                Some(RequestRecord {
                    request_id: id.clone(),
                    name: name.clone(),
                    uid: uid.clone(),
                })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_ids_are_forgotten_first() {
        let mut requests = Requests::default();
        for i in 0..=CAPACITY {
            requests.remember(&format!("id-{i}"), "name", "uid");
        }
        assert_eq!(requests.get("id-0"), None);
        assert_eq!(requests.get("id-1"), Some(("name", "uid")));
        assert_eq!(requests.records().len(), CAPACITY);
    }

    #[test]
    fn an_empty_id_is_never_remembered() {
        let mut requests = Requests::default();
        requests.remember("", "name", "uid");
        assert_eq!(requests.get(""), None);
    }
}
