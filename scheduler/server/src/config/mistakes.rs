//! Where a mistake in a TOML text is, and what was probably meant. Words only: it must never correct anything.

/// Line and column, both from 1, of a byte offset.
pub(super) fn position(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().map_or(0, |l| l.chars().count()) + 1;
    (line, column)
}

/// Adds to the parser's words which known key was probably meant.
pub(super) fn explain(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((unknown, known)) if message.starts_with("unknown field") => {
            let best = known
                .iter()
                .map(|k| (distance(unknown, k), *k))
                .min()
                .filter(|(d, k)| *d <= 2.max(k.len() / 3));
            match best {
                Some((_, meant)) => {
                    format!("{unknown}: there is no such key; did you mean `{meant}`?")
                }
                None => format!(
                    "{unknown}: there is no such key; the keys here are {}",
                    known.join(", ")
                ),
            }
        }
        _ => message.trim_end().to_owned(),
    }
}

/// Levenshtein's distance.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, cb) in row[1..].iter_mut().zip(&b) {
            let substituted = diagonal + usize::from(ca != *cb);
            diagonal = *cell;
            left = substituted.min(*cell + 1).min(left + 1);
            *cell = left;
        }
        row[0] = i + 1;
    }
    row[b.len()]
}
