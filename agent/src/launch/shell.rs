//! Command lines for bash.

/// The shell of command lines.
const BASH: &str = "/bin/bash";

/// `bash -c COMMAND`.
pub(super) fn bash(command: String) -> Vec<String> {
    vec![BASH.to_owned(), "-c".to_owned(), command]
}

/// A word that bash takes as it is.
pub(super) fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_@%+=:,./-".contains(c);
    // A leading `=` or `~` would mean something; the first is harmless, the second is not in the list.
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Arguments as written, on one line: line breaks outside quotes become spaces. A break after a backslash is bash's
/// own continuation and stays.
pub(super) fn arguments(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut quote: Option<char> = None;
    let mut chars = text.trim().chars();
    while let Some(c) = chars.next() {
        match (quote, c) {
            (None | Some('"'), '\\') => {
                out.push(c);
                out.extend(chars.next());
            }
            (None, '\n' | '\r') => out.push(' '),
            (None, '\'' | '"') => {
                quote = Some(c);
                out.push(c);
            }
            (Some(open), c) if open == c => {
                quote = None;
                out.push(c);
            }
            (_, c) => out.push(c),
        }
    }
    out
}

/// Joins quoted words and arguments as written.
pub(super) fn command(words: &[&str], written: &str) -> String {
    let mut command = words
        .iter()
        .map(|word| quote(word))
        .collect::<Vec<_>>()
        .join(" ");
    let written = arguments(written);
    if !written.is_empty() {
        command.push(' ');
        command.push_str(&written);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_only_where_needed() {
        let cases = [
            ("/a/b-c.py", "/a/b-c.py"),
            ("", "''"),
            ("a b", "'a b'"),
            ("it's", r"'it'\''s'"),
            ("$HOME", "'$HOME'"),
            ("~x", "'~x'"),
            ("ü", "'ü'"),
        ];
        for (word, expected) in cases {
            assert_eq!(quote(word), expected, "{word}");
        }
    }

    #[test]
    fn line_breaks_between_arguments_are_spaces() {
        assert_eq!(arguments("--a 1\n--b 2\n"), "--a 1 --b 2");
        assert_eq!(
            arguments("--a 'x\ny' \"p\\\"\nq\"\r\n-z"),
            "--a 'x\ny' \"p\\\"\nq\"  -z"
        );
        assert_eq!(arguments("--a \\\n --b"), "--a \\\n --b");
    }

    #[test]
    fn bash_sees_the_words_that_were_meant() {
        let command = command(
            &["printf", "%s|", "a b", "it's"],
            "\"$X y\" $UNSET z\n'q r'",
        );
        let output = std::process::Command::new(BASH)
            .args(["-c", &command])
            .env("X", "1 2")
            .output()
            .unwrap();
        assert_eq!(
            String::from_utf8(output.stdout).unwrap(),
            "a b|it's|1 2 y|z|q r|"
        );
    }
}
