//! Checks of names and paths that come from outside: nothing may leave the place it is meant for.

use std::path::{Component, Path, PathBuf};

use super::LayoutError;
use crate::environment::{Environment, expand};

/// Last part of a resource name.
pub(crate) fn last_segment(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or(name)
}

/// Ids of `workspaces/W/clusters/C`.
pub(super) fn cluster_ids(name: &str) -> Result<[String; 2], LayoutError> {
    match name.split('/').collect::<Vec<_>>()[..] {
        ["workspaces", workspace, "clusters", cluster] => Ok([
            file_name("cluster", workspace)?,
            file_name("cluster", cluster)?,
        ]),
        _ => Err(LayoutError::new(
            "cluster",
            format!("`{name}` is not of the form workspaces/W/clusters/C"),
        )),
    }
}

/// A name that is safe as one part of a path.
pub(crate) fn file_name(field: &str, name: &str) -> Result<String, LayoutError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > 253 || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(LayoutError::new(
            field,
            format!("`{name}` cannot be part of a file name"),
        ));
    }
    Ok(name.to_owned())
}

/// An expanded path that must be absolute and stay where it is.
pub(crate) fn absolute(
    field: &str,
    text: &str,
    environment: &Environment,
) -> Result<PathBuf, LayoutError> {
    let expanded = expand(text, environment);
    let path = Path::new(&expanded);
    if !path.is_absolute() {
        return Err(LayoutError::new(
            field,
            format!(
                "`{text}` becomes `{expanded}`, which is not an absolute path; begin it with $AZ_BATCHAI_MOUNT_ROOT, \
                 $AZ_BATCHAI_JOB_MOUNT_ROOT or /"
            ),
        ));
    }
    without_parents(field, path)
}

/// A path that must be relative and stay below where it is joined to.
pub(crate) fn relative(field: &str, text: &str) -> Result<PathBuf, LayoutError> {
    let path = Path::new(text);
    if path.is_absolute() {
        return Err(LayoutError::new(
            field,
            format!("`{text}` must be relative"),
        ));
    }
    without_parents(field, path)
}

fn without_parents(field: &str, path: &Path) -> Result<PathBuf, LayoutError> {
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(LayoutError::new(
            field,
            format!("`{}` must not contain `..`", path.display()),
        ));
    }
    Ok(path
        .components()
        .filter(|part| *part != Component::CurDir)
        .collect())
}
