//! What `/proc` says of processes: parents, sessions, start times.
//!
//! Reads `/proc/PID/stat` alone, which never waits for the process; never `cmdline` or `environ`, which wait for the
//! memory of a process that hangs in the kernel.

use std::collections::{BTreeMap, BTreeSet};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    /// Process id.
    pub pid: i32,
    /// Letter of the state; `Z` has ended and waits for its parent.
    pub state: char,
    /// Parent.
    pub parent: i32,
    /// Session.
    pub session: i32,
    /// Clock ticks between boot and its start.
    pub start: u64,
}

/// One process, if it exists (even if only as a zombie).
#[must_use]
pub fn get(pid: i32) -> Option<Process> {
    parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Whether a process still runs: the number may by now belong to another one.
#[must_use]
pub fn is_alive(pid: i32, start: u64) -> bool {
    get(pid).is_some_and(|process| process.start == start && !matches!(process.state, 'Z' | 'X'))
}

/// All processes.
#[must_use]
pub fn all() -> Vec<Process> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(get)
        .collect()
}

/// Living descendants of `root`, without `root` and without `except` and its descendants.
#[must_use]
pub fn descendants(processes: &[Process], root: i32, except: Option<i32>) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = Vec::new();
    let mut seen = BTreeSet::from([root]);
    let mut queue = vec![root];
    while let Some(parent) = queue.pop() {
        for &&child in children.get(&parent).into_iter().flatten() {
            if Some(child.pid) != except && seen.insert(child.pid) {
                queue.push(child.pid);
                found.push(child);
            }
        }
    }
    found.retain(|process| !matches!(process.state, 'Z' | 'X'));
    found
}

/// Sends a signal to each; those that have ended meanwhile are passed over.
pub fn signal_all(processes: &[Process], signal: Signal) {
    for process in processes {
        let _ = kill(Pid::from_raw(process.pid), signal);
    }
}

fn parse(stat: &str) -> Option<Process> {
    // The name is in brackets and may itself hold brackets and spaces.
    let (head, tail) = stat.rsplit_once(')')?;
    let pid = head.split_once(' ')?.0.parse().ok()?;
    let mut fields = tail.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(15)?.parse().ok()?;
    Some(Process {
        pid,
        state,
        parent,
        session,
        start,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_look_like_anything() {
        let stat = "42 (a) b (c) S 7 42 41 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 200";
        assert_eq!(
            parse(stat),
            Some(Process {
                pid: 42,
                state: 'S',
                parent: 7,
                session: 41,
                start: 98765
            })
        );
    }

    #[test]
    fn this_process_is_alive_and_a_later_one_of_its_number_is_not_it() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let own = get(pid).unwrap();
        assert!(is_alive(pid, own.start));
        assert!(!is_alive(pid, own.start + 1));
    }

    #[test]
    fn descendants_leave_out_the_excepted_branch_and_zombies() {
        let process = |pid, parent, state| Process {
            pid,
            state,
            parent,
            session: 1,
            start: 0,
        };
        let tree = [
            process(1, 0, 'S'),
            process(2, 1, 'S'),
            process(3, 2, 'R'),
            process(4, 1, 'S'),
            process(5, 4, 'S'),
            process(6, 1, 'Z'),
            process(7, 0, 'S'),
        ];
        let mut found: Vec<i32> = descendants(&tree, 1, Some(4))
            .iter()
            .map(|p| p.pid)
            .collect();
        found.sort_unstable();
        assert_eq!(found, [2, 3]);
    }
}
