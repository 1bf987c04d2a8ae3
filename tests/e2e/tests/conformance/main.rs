//! Walks the specification of Batch AI row by row on a real cluster, and prints what holds: workspaces, experiments, file servers,
//! clusters, jobs, paths, life cycle, and the corpus of job files. Each check names its row.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a scenario stops at the first surprise"
)]

mod clusters;
mod corpus;
mod jobs;
mod life;
mod resources;
mod sheet;

use sheet::Sheet;
use trainyard_e2e::cluster::Cluster;

#[test]
fn the_specification_holds_row_by_row() {
    let cluster = Cluster::builder().nodes(3).start().unwrap();
    cluster.open_workspace(2).unwrap();
    let mut sheet = Sheet::default();
    resources::names_and_hierarchy(&cluster, &mut sheet);
    resources::workspaces_experiments_file_servers(&cluster, &mut sheet);
    jobs::fields(&cluster, &mut sheet);
    jobs::several_nodes(&cluster, &mut sheet);
    life::states_and_errors(&cluster, &mut sheet);
    life::queue(&cluster, &mut sheet);
    clusters::refused_fields(&cluster, &mut sheet);
    clusters::shrink(&cluster, &mut sheet);
    clusters::auto_scale(&cluster, &mut sheet);
    clusters::delete(&cluster, &mut sheet);
    corpus::recipes(&cluster, &mut sheet);
    resources::cascade(&cluster, &mut sheet);
    sheet.finish(&["§1", "§2", "§3", "§4", "§5", "§6", "§12"]);
}
