//! What the services have in common: reading one resource, paging through a list, deleting.
//!
//! A list takes the state in slices and lets go of it in between, so that neither a long list nor a filter that matches
//! little ever holds up what is being applied. Nothing here knows a kind of resource by itself.

use std::str::FromStr;
use std::time::{Duration, Instant};

use tonic::metadata::MetadataMap;
use tonic::{Response, Status};
use trainyard_core::filter::{Filter, FilterError, Kind as FilterKind, Order};
use trainyard_core::{ListCursor, Listed, Reply, State};
use trainyard_proto::store::v1::{self as store, command::Kind};
use trainyard_shared::names::NameError;

use super::{check_etag, name};
use crate::context::Context;
use crate::page::{Listing, Paged, Pager};
use crate::status;

/// Resources that are looked at while the state is held: well below a millisecond.
pub(super) const SCAN_BUDGET: usize = 256;
/// How long one page may take to be found. A page that is short, or empty, still has the token of the next.
const PAGE_TIME: Duration = Duration::from_secs(1);

/// Answers a read of one resource.
pub(super) async fn get<N, T>(
    context: &Context,
    metadata: &MetadataMap,
    wanted: &str,
    find: impl FnOnce(&State, &str) -> Option<T>,
) -> Result<Response<T>, Status>
where
    N: FromStr<Err = NameError>,
{
    context.catch_up(metadata).await?;
    let _: N = name("name", wanted)?;
    let found = find(&context.state(), wanted);
    found
        .map(Response::new)
        .ok_or_else(|| status::not_found(wanted))
}

/// A page, in the parts of every list's answer.
#[derive(Debug)]
pub(super) struct Page<T> {
    pub(super) items: Vec<T>,
    pub(super) next_page_token: String,
    pub(super) revision: u64,
}

/// Answers one page of a list. `slice` gives what comes after a cursor, at most so many items.
pub(super) async fn list<T: Paged>(
    context: &Context,
    metadata: &MetadataMap,
    listing: Listing<'_>,
    slice: impl Fn(&State, &ListCursor, usize) -> Listed<T>,
) -> Result<Page<T>, Status> {
    context.catch_up(metadata).await?;
    let mut pager = Pager::open(&listing)?;
    let began = Instant::now();
    loop {
        let (listed, index) = {
            let state = context.state();
            let index = state.index();
            (slice(&state, pager.cursor(), pager.room()), index)
        };
        pager.take(listed, index);
        if pager.is_done() || began.elapsed() > PAGE_TIME {
            break;
        }
        // Whoever waits to apply comes first.
        tokio::task::yield_now().await;
    }
    let (items, next_page_token, revision) = pager.finish();
    Ok(Page {
        items,
        next_page_token,
        revision,
    })
}

/// A slice of a list that is kept in order of name and never long: `read` gives at most so many after a name.
pub(super) fn by_name<T: Paged>(
    after: &ListCursor,
    limit: usize,
    read: impl FnOnce(&str, usize) -> Vec<T>,
) -> Listed<T> {
    let mut items = read(&after.name, limit.saturating_add(1));
    let more = items.len() > limit;
    items.truncate(limit);
    let next = if more {
        items.last().map(Paged::cursor)
    } else {
        None
    };
    Listed { items, next }
}

/// Reads `filter` of a list.
pub(super) fn filter(kind: FilterKind, text: &str) -> Result<Filter, Status> {
    Filter::parse(kind, text).map_err(|error| at_position("filter", &error))
}

/// Reads `order_by` of a list.
pub(super) fn order(kind: FilterKind, text: &str) -> Result<Order, Status> {
    Order::parse(kind, text).map_err(|error| at_position("order_by", &error))
}

fn at_position(field: &str, error: &FilterError) -> Status {
    status::invalid_field(
        field,
        format!("at character {}: {}", error.position, error.message),
    )
}

/// Proposes the deletion of one resource.
pub(super) async fn delete<N>(
    context: &Context,
    command: store::Delete,
    kind: impl FnOnce(store::Delete) -> Kind,
) -> Result<Reply, Status>
where
    N: FromStr<Err = NameError>,
{
    let _: N = name("name", &command.name)?;
    check_etag(&command.etag)?;
    context.propose(kind(command)).await
}
