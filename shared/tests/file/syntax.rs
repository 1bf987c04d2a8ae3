//! Texts that are no JSON or YAML, unusual ones, hostile ones and random ones.

use trainyard_proto::v1::{Cluster, FileServer, Workspace};
use trainyard_shared::file::{self, Format};

use super::{job, read, yaml};

#[test]
fn syntax_errors_say_where_and_what() {
    for (format, text, expected) in [
        (Format::Json, "", "job:1:1: the file is empty"),
        (Format::Json, "  \n", "job:1:1: the file is empty"),
        (
            Format::Json,
            "{\n\"a\": 1,\n}",
            "job:2:7: not valid JSON: remove the comma",
        ),
        (Format::Json, "{\n\"a\": 1\n\"b\": 2}", "a comma is missing"),
        (
            Format::Json,
            "{'a': 1}",
            "job:1:2: not valid JSON: write double quotes",
        ),
        (
            Format::Json,
            "{a: 1}",
            "job:1:2: not valid JSON: put the key in double quotes",
        ),
        (
            Format::Json,
            "{\"a\": x}",
            "job:1:7: not valid JSON: this cannot stand here; strings",
        ),
        (
            Format::Json,
            "// c\n{}",
            "job:1:1: not valid JSON: JSON has no comments",
        ),
        (
            Format::Json,
            "{\"a\": 1",
            "the `}` that closes this `{` is missing",
        ),
        (
            Format::Json,
            "nodeCount: 2",
            "job:1:1: not valid JSON: the file begins like YAML; name it .yaml",
        ),
        (
            Format::Json,
            "{\"a\" 1}",
            "a `:` must stand between key and value",
        ),
        (Format::Json, "{\"a\": }", "a value is missing before it"),
        (
            Format::Json,
            "{\"a\": 1, {",
            "a key in double quotes must stand here",
        ),
        (Format::Json, "{} {}", "remove what follows"),
        (
            Format::Json,
            "[]",
            "job:1:1: expected an object, found a list; write an object with",
        ),
        (Format::Yaml, "", "job:1:1: the file is empty"),
        (Format::Yaml, "# nothing\n", "job:1:1: the file is empty"),
        (Format::Yaml, "a: [1", "not valid YAML"),
        (Format::Yaml, "a: b: c", "job:1:5: not valid YAML"),
        (
            Format::Yaml,
            "a: 1\n---\nb: 2",
            "job:2:1: the file holds a second document",
        ),
        (
            Format::Yaml,
            "- a",
            "job:1:1: expected an object, found a list; write an object with",
        ),
        (Format::Yaml, "? [a]\n: b", "a key must be a string"),
        (
            Format::Yaml,
            "nodeCount: !mine 2",
            "tags are not understood",
        ),
        (
            Format::Yaml,
            "nodeCount: !!int two",
            "not what its tag says",
        ),
        (Format::Yaml, "nodeCount: &a [*a]", "alias"),
    ] {
        let shown = read(text, format).unwrap_err().to_string();
        assert!(shown.contains(expected), "{text:?} gave {shown}");
    }
}

#[test]
fn yaml_says_the_same_in_its_own_ways() {
    let text = "
nodeCount: 0x2   # hexadecimal
customToolkitSettings: {commandLine: 'echo $HOME'}
jobPreparation:
  commandLine: |
    first
    second
stdOutErrPathPrefix: &prefix $AZ_BATCHAI_JOB_MOUNT_ROOT/logs
outputDirectories:
  - id: MODEL
    pathPrefix: *prefix
environmentVariables:
- {name: A, value: !!str 5}
- {name: YES, value: yes}
constraints: ~
";
    let spec = read(text, Format::Yaml).unwrap().message;
    assert_eq!(spec.node_count, 2);
    assert_eq!(
        spec.job_preparation.unwrap().command_line,
        "first\nsecond\n"
    );
    assert_eq!(
        spec.output_directories[0].path_prefix,
        spec.std_out_err_path_prefix
    );
    let values: Vec<_> = spec
        .environment_variables
        .iter()
        .map(|v| v.value.as_str())
        .collect();
    assert_eq!(values, ["5", "yes"]);
    assert_eq!(spec.constraints, None);
}

#[test]
fn bombs_are_refused_quickly() {
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    let shown = read(&bomb, Format::Yaml).unwrap_err().to_string();
    assert!(shown.contains("grows too large"), "{shown}");
    for (open, format) in [
        ("[", Format::Json),
        ("{\"a\":", Format::Json),
        ("[", Format::Yaml),
        ("{a: ", Format::Yaml),
        ("- ", Format::Yaml),
    ] {
        let deep = open.repeat(100_000);
        assert!(read(&deep, format).is_err(), "{open}");
    }
    let long = format!("{{\"x\": \"{}\"}}", "y".repeat(file::MAX_FILE_BYTES));
    assert!(
        read(&long, Format::Json)
            .unwrap_err()
            .to_string()
            .contains("at most")
    );
    let many: String = (0..40_000).map(|n| format!("k{n}: 1\n")).collect();
    let parsed = read(&many, Format::Yaml).unwrap();
    assert_eq!(parsed.warnings.len(), 50);
    assert!(parsed.warnings[49].message.contains("and more"));
}

#[test]
fn random_files_never_panic() {
    // More rounds for a long run; the seed makes a failure come back.
    let number = |name: &str, default| match std::env::var(name) {
        Ok(text) => text.parse().unwrap(),
        Err(_) => default,
    };
    let rounds = number("TRAINYARD_FUZZ_ROUNDS", 400);
    let mut random = fastrand::Rng::with_seed(number("TRAINYARD_FUZZ_SEED", 7));
    let good = [serde_json::to_string_pretty(&job()).unwrap(), yaml(&job())];
    let pieces = [
        "{", "}", "[", "]", ":", ",", "\"", "'", "\n", "  ", "- ", "&a ", "*a", "!!str ", "? ",
        "| ", "> ", "---\n", "#", "null", "1e999", "-0", "0x", "\u{feff}", "é", "\u{0}", "\\u",
        "\\ud800", "%", "@", "`", "<<", "\t", "\r",
    ];
    for round in 0..rounds as usize {
        let mut text: Vec<char> = if round % 4 == 0 {
            (0..random.usize(..200)).map(|_| random.char(..)).collect()
        } else {
            good[round % 2].chars().collect()
        };
        for _ in 0..random.usize(1..8) {
            let at = random.usize(..=text.len());
            match random.u8(..3) {
                0 => {
                    let end = (at + random.usize(..30)).min(text.len());
                    text.drain(at..end);
                }
                1 => {
                    let piece = pieces[random.usize(..pieces.len())];
                    text.splice(at..at, piece.chars());
                }
                _ => {
                    let from = random.usize(..=at);
                    let part: Vec<char> = text[from..at.min(from + 40)].to_vec();
                    let to = random.usize(..=text.len());
                    text.splice(to..to, part);
                }
            }
        }
        let text: String = text.into_iter().collect();
        for format in [Format::Json, Format::Yaml] {
            match file::job_file("f", &text, format) {
                Ok(parsed) => assert!(parsed.locate("nodeCount").is_some()),
                Err(refused) => {
                    assert!(!refused.errors.is_empty());
                    assert!(refused.errors.iter().all(|e| e.line >= 1 && e.column >= 1));
                }
            }
            let _ = file::read::<Cluster>("f", &text, format);
            let _ = file::read::<Workspace>("f", &text, format);
            let _ = file::read::<FileServer>("f", &text, format);
        }
    }
}
