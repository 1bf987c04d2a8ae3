//! The rows that were checked and what was seen. A row that does not hold does not end the walk; the end does.

use std::fmt::Debug;

use trainyard_e2e::cluster::Finished;

/// What was checked so far.
#[derive(Default)]
pub(crate) struct Sheet {
    rows: Vec<(String, Option<String>)>,
}

impl Sheet {
    /// Notes whether a row holds; `seen` is shown if not.
    pub(crate) fn row(&mut self, row: &str, holds: bool, seen: &impl Debug) {
        let fault = (!holds).then(|| format!("{seen:#?}"));
        self.rows.push((row.to_owned(), fault));
    }

    /// A row that says what a value is.
    pub(crate) fn equal<T: Debug + PartialEq<U>, U: Debug>(
        &mut self,
        row: &str,
        found: T,
        expected: U,
    ) {
        let holds = found == expected;
        self.row(row, holds, &(&found, "is not", &expected));
    }

    /// A row that says that something is refused, in words that hold all of these.
    pub(crate) fn refused(&mut self, row: &str, done: &Finished, words: &[&str]) {
        let holds = done.status != 0 && words.iter().all(|word| done.stderr.contains(word));
        self.row(row, holds, &(done, words));
    }

    /// Prints the table. Fails unless all rows hold and each of these sections has some.
    pub(crate) fn finish(self, sections: &[&str]) {
        for (row, fault) in &self.rows {
            let verdict = if fault.is_none() { "holds" } else { "FAILS" };
            println!("{verdict}  spec {row}");
        }
        let faults: Vec<String> = self
            .rows
            .iter()
            .filter_map(|(row, fault)| Some(format!("spec {row}: {}", fault.as_ref()?)))
            .collect();
        for section in sections {
            let begins = |row: &str| {
                row.strip_prefix(section)
                    .is_some_and(|rest| rest.starts_with(['.', ' ']))
            };
            assert!(
                self.rows.iter().any(|(row, _)| begins(row)),
                "nothing of {section} was checked"
            );
        }
        let (failed, count) = (faults.len(), self.rows.len());
        assert!(
            faults.is_empty(),
            "{failed} of {count} rows fail:\n{}",
            faults.join("\n")
        );
    }
}
