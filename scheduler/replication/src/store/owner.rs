//! A note beside the database that says whose data directory it is, so that a wrong one can be refused before the database is
//! opened: opening rearranges its file. The note can only refuse. It must never let anybody in: that is up to the record
//! inside the database, which is read when the note has no objection, is missing or makes no sense. A note without a database
//! means that the database was lost: it is never begun anew.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use super::Owner;
use crate::error::{StartError, StoreError};

const NAME: &str = "owner";

/// Refuses a directory whose note names somebody else, and one of which only the note is left. Changes nothing.
pub(crate) fn check(data_dir: &Path, owner: &Owner) -> Result<(), StartError> {
    let Ok(text) = std::fs::read_to_string(data_dir.join(NAME)) else {
        return Ok(());
    };
    let Some((cluster, member)) = text.trim().split_once(' ') else {
        return Ok(());
    };
    let Ok(member) = member.parse::<u64>() else {
        return Ok(());
    };
    if cluster == owner.cluster_id && member == owner.member_id {
        return has_a_store(data_dir);
    }
    Err(StartError::WrongOwner {
        path: data_dir.to_owned(),
        found_cluster: cluster.to_owned(),
        found_member: member,
        cluster: owner.cluster_id.clone(),
        member: owner.member_id,
    })
}

/// A member that has run here must find its store: started empty, it could vote against what it acknowledged.
fn has_a_store(data_dir: &Path) -> Result<(), StartError> {
    let there = |name: &str| data_dir.join(name).exists();
    if there("log/db") || there("high-water") {
        return Ok(());
    }
    Err(StartError::Store(StoreError::Damaged {
        place: data_dir.display().to_string(),
        record: "the files log/db and high-water".to_owned(),
        why: "both are missing, though this member has run here".to_owned(),
    }))
}

/// Leaves the note, once the database has said that the directory is this member's.
pub(crate) fn note(data_dir: &Path, owner: &Owner) -> std::io::Result<()> {
    let path = data_dir.join(NAME);
    let text = format!("{} {}\n", owner.cluster_id, owner.member_id);
    if std::fs::read_to_string(&path).is_ok_and(|known| known == text) {
        return Ok(());
    }
    let unfinished = data_dir.join("owner.new");
    let mut file = File::create(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&unfinished, &path)?;
    File::open(data_dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(cluster: &str, member_id: u64) -> Owner {
        Owner {
            cluster_id: cluster.to_owned(),
            member_id,
        }
    }

    #[test]
    fn only_a_clear_note_of_somebody_else_refuses() {
        let folder = tempfile::tempdir().unwrap();
        let mine = owner("yard", 1);
        check(folder.path(), &mine).unwrap();
        note(folder.path(), &mine).unwrap();
        std::fs::write(folder.path().join("high-water"), "").unwrap();
        check(folder.path(), &mine).unwrap();
        for other in [owner("yard", 2), owner("other", 1)] {
            let error = check(folder.path(), &other).unwrap_err();
            assert!(
                error.to_string().contains("member 1 of cluster yard"),
                "{error}"
            );
        }
        std::fs::write(folder.path().join(NAME), "\0torn").unwrap();
        check(folder.path(), &owner("other", 9)).unwrap();
    }
}
