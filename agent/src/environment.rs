//! The variables of a job: Batch AI's `AZ_BATCHAI_*`, those that frameworks read, and the user's, with `$NAME` expanded.
//!
//! Pure. Must never read the agent's own environment: what a task sees depends on the assignment and the node's facts
//! alone, and nothing of the agent (its secrets least of all) leaks into a task.
//!
//! The user may override everything (`PATH`, `GLOO_SOCKET_IFNAME`, `MASTER_PORT`, ...) but the reserved variables and,
//! where other jobs share the node, `CUDA_VISIBLE_DEVICES`.

use std::collections::BTreeMap;

/// Variables by name.
pub type Environment = BTreeMap<String, String>;

/// Replaces `$NAME` and `${NAME}` by `lookup`; an undefined variable becomes nothing, as in a shell. `\$` stands for a
/// dollar sign, and a dollar sign before anything else for itself.
#[must_use]
pub fn expand_with(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['$', '\\']) {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        if let Some(after) = tail.strip_prefix("\\$") {
            out.push('$');
            rest = after;
        } else if let Some(after) = tail.strip_prefix('\\') {
            out.push('\\');
            rest = after;
        } else if let Some((name, after)) = variable(tail) {
            out.push_str(&lookup(name).unwrap_or_default());
            rest = after;
        } else {
            out.push('$');
            rest = &tail[1..];
        }
    }
    out.push_str(rest);
    out
}

/// [`expand_with`] over a map.
#[must_use]
pub fn expand(text: &str, environment: &Environment) -> String {
    expand_with(text, |name| environment.get(name).cloned())
}

/// Splits `$NAME...` or `${NAME}...` (which `tail` starts with) into the name and what follows.
fn variable(tail: &str) -> Option<(&str, &str)> {
    let after_dollar = tail.strip_prefix('$')?;
    if let Some(braced) = after_dollar.strip_prefix('{') {
        let (name, after) = braced.split_once('}')?;
        return is_name(name).then_some((name, after));
    }
    let end = after_dollar
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(after_dollar.len());
    let (name, after) = after_dollar.split_at(end);
    is_name(name).then_some((name, after))
}

/// Whether a shell takes it as the name of a variable.
fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Whether a name is Trainyard's to set.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    name.starts_with("AZ_BATCHAI_")
        || name.starts_with("AZ_BATCH_")
        || name.starts_with("TRAINYARD_")
}

/// Adds the user's variables to `environment`, in order: each sees those before it. A reserved variable that is already
/// set keeps its value.
pub fn add_user_variables<'a>(
    environment: &mut Environment,
    variables: impl Iterator<Item = (&'a str, &'a str)>,
) {
    for (name, value) in variables {
        let forged = is_reserved(name) && environment.contains_key(name);
        if forged || name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            continue;
        }
        let value = expand(value, environment);
        environment.insert(name.to_owned(), value);
    }
}

/// The value of `CUDA_VISIBLE_DEVICES` for some GPUs of a node: their indexes as NVML counts them.
#[must_use]
pub fn visible_devices(gpus: &[u32]) -> String {
    gpus.iter()
        .map(u32::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        [("A", "1"), ("LONG_NAME", "two words"), ("EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    #[test]
    fn both_spellings_expand_and_undefined_is_empty() {
        let cases = [
            ("$A", "1"),
            ("${A}b", "1b"),
            ("$Ab", ""),
            ("x/$LONG_NAME/y", "x/two words/y"),
            ("$UNDEFINED/x", "/x"),
            ("$A$A", "11"),
            ("cost: 5$", "cost: 5$"),
            ("$1 $$ ${ ${A", "$1 $$ ${ ${A"),
            (r"\$A \n", r"$A \n"),
            ("ü$Aü", "ü1ü"),
        ];
        for (text, expected) in cases {
            assert_eq!(expand(text, &environment()), expected, "{text}");
        }
    }

    #[test]
    fn user_variables_see_the_ones_before_them_and_cannot_forge_reserved_ones() {
        let mut environment = environment();
        environment.insert("AZ_BATCHAI_TASK_INDEX".into(), "3".into());
        let variables = [
            ("FIRST", "$A"),
            ("SECOND", "${FIRST}-$AZ_BATCHAI_TASK_INDEX"),
            ("AZ_BATCHAI_TASK_INDEX", "9"),
            ("BAD=NAME", "x"),
        ];
        add_user_variables(&mut environment, variables.into_iter());
        assert_eq!(environment["SECOND"], "1-3");
        assert_eq!(environment["AZ_BATCHAI_TASK_INDEX"], "3");
        assert!(!environment.contains_key("BAD=NAME"));
    }
}
