//! Faulty files generated from Batch AI's own schemas: for each property a wrong type, numbers out of range, and its absence
//! where it is required. Each must be refused with line, column and field.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use trainyard_shared::file::{self, FileErrors, Format, Issue};

/// Required in Batch AI and not here, with the reason; by the name of the definition and property.
const OPTIONAL: &[(&str, &str, &str)] = &[
    (
        "JobBaseProperties",
        "cluster",
        "the command names it with -c",
    ),
    (
        "AzureFileShareReference",
        "accountName",
        "the address holds it",
    ),
    (
        "AzureBlobFileSystemReference",
        "accountName",
        "a binding may be for any account",
    ),
    ("EnvironmentVariable", "value", "empty by default"),
    ("ClusterBaseProperties", "vmSize", "any class by default"),
    (
        "ClusterBaseProperties",
        "userAccountSettings",
        "the agents' task user by default",
    ),
    (
        "UserAccountSettings",
        "adminUserName",
        "the agents' task user by default",
    ),
    (
        "ImageReference",
        "publisher",
        "what is not named is not compared",
    ),
    (
        "ImageReference",
        "offer",
        "what is not named is not compared",
    ),
    ("ImageReference", "sku", "what is not named is not compared"),
    ("FileServerBaseProperties", "vmSize", "any class by default"),
    ("FileServerBaseProperties", "sshConfiguration", "refused"),
    (
        "FileServerBaseProperties",
        "dataDisks",
        "any capacity by default",
    ),
    ("DataDisks", "diskCount", "one by default"),
    ("DataDisks", "storageAccountType", "refused"),
];
/// Left out with a warning, whatever they hold: a binding of the workspace replaces them.
const DROPPED: &[&str] = &["credentials"];

/// A property of a schema and where it stands in a file.
struct Property<'a> {
    /// Definition that has it.
    of: String,
    key: String,
    schema: &'a Value,
    required: bool,
    /// Keys and, for entries of lists, a zero: `mountVolumes`, `azureFileShares`, `0`.
    parents: Vec<String>,
}

impl Property<'_> {
    /// Its path as messages have it.
    fn field(&self) -> String {
        let mut field = String::new();
        for part in self.parents.iter().chain([&self.key]) {
            if part == "0" {
                field.push_str("[0]");
            } else {
                if !field.is_empty() {
                    field.push('.');
                }
                field.push_str(part);
            }
        }
        field
    }
}

struct Schemas {
    definitions: Map<String, Value>,
}

impl Schemas {
    /// The definition behind references and alternatives (`expression` stands for templates, not for files).
    fn resolve<'a>(&'a self, schema: &'a Value) -> (Option<&'a str>, &'a Value) {
        if let Some(first) = schema.pointer("/oneOf/0") {
            return self.resolve(first);
        }
        match schema["$ref"].as_str() {
            Some(reference) => {
                let name = reference.strip_prefix("#/definitions/").unwrap();
                (Some(name), &self.definitions[name])
            }
            None => (None, schema),
        }
    }

    fn walk<'a>(
        &'a self,
        of: &str,
        object: &'a Value,
        parents: &[String],
        found: &mut Vec<Property<'a>>,
    ) {
        let required: BTreeSet<&str> = object["required"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        for (key, schema) in object["properties"].as_object().unwrap() {
            let (name, schema) = self.resolve(schema);
            let mut inside = parents.to_vec();
            inside.push(key.clone());
            found.push(Property {
                of: of.to_owned(),
                key: key.clone(),
                schema,
                required: required.contains(key.as_str()),
                parents: parents.to_vec(),
            });
            if schema["properties"].is_object() {
                self.walk(name.unwrap_or(key), schema, &inside, found);
            } else if schema["type"] == "array" {
                let (name, item) = self.resolve(&schema["items"]);
                if item["properties"].is_object() {
                    inside.push("0".to_owned());
                    self.walk(name.unwrap_or(key), item, &inside, found);
                }
            }
        }
    }

    /// A value of the right type with everything that is required.
    fn sample(&self, schema: &Value) -> Value {
        let (_, schema) = self.resolve(schema);
        match schema["type"].as_str() {
            Some("integer") => json!(1),
            Some("array") => json!([self.sample(&schema["items"])]),
            Some("string") => match schema["enum"].get(0) {
                Some(first) => first.clone(),
                None if schema["format"] == "duration" => json!("P1D"),
                None => json!("text"),
            },
            _ => {
                let mut object = Map::new();
                for key in schema["required"].as_array().into_iter().flatten() {
                    let key = key.as_str().unwrap();
                    object.insert(key.to_owned(), self.sample(&schema["properties"][key]));
                }
                Value::Object(object)
            }
        }
    }

    /// A file that has everything required around the property, with `value` in its place; null leaves it out.
    fn file(&self, root: &Value, property: &Property<'_>, value: Value) -> Value {
        let mut file = self.sample(root);
        let mut schema = root;
        let mut place = &mut file;
        for part in &property.parents {
            if part == "0" {
                schema = self.resolve(&schema["items"]).1;
                place = &mut place[0];
                continue;
            }
            schema = self.resolve(&schema["properties"][part]).1;
            let object = place.as_object_mut().unwrap();
            place = object.entry(part).or_insert_with(|| self.sample(schema));
        }
        let object = place.as_object_mut().unwrap();
        if value.is_null() {
            object.remove(&property.key);
            // An object of nothing would say nothing about the place.
            object.insert("comment".to_owned(), json!("x"));
        } else {
            object.insert(property.key.clone(), value);
        }
        json!({"properties": file})
    }
}

type Judge = fn(&str, &str) -> (Vec<Issue>, Vec<Issue>);

fn issues<M>(result: Result<file::Parsed<M>, FileErrors>) -> (Vec<Issue>, Vec<Issue>) {
    match result {
        Ok(parsed) => (vec![], parsed.warnings),
        Err(refused) => (refused.errors, refused.warnings),
    }
}

const KINDS: &[(&str, &str, Judge)] = &[
    ("job", "JobBaseProperties", |n, t| {
        issues(file::job_file(n, t, Format::Json))
    }),
    ("cluster", "ClusterBaseProperties", |n, t| {
        issues(file::cluster_file(n, t, Format::Json))
    }),
    ("nfs", "FileServerBaseProperties", |n, t| {
        issues(file::file_server_file(n, t, Format::Json))
    }),
];

/// Whether the error is about the field or about an object around it, which is refused as a whole.
fn about(error: &Issue, field: &str) -> bool {
    let around = field.strip_prefix(error.field.as_str());
    !error.field.is_empty()
        && around.is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

#[test]
fn every_property_of_the_schemas_is_known_and_its_mistakes_have_places() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/schemas");
    let (mut properties, mut faults) = (0, 0);
    let mut used = BTreeSet::new();
    for (kind, definition, judge) in KINDS {
        let text = fs::read_to_string(folder.join(format!("{kind}.json"))).unwrap();
        let schema: Value = serde_json::from_str(&text).unwrap();
        let schemas = Schemas {
            definitions: schema["definitions"].as_object().unwrap().clone(),
        };
        // The definition says what is required; the file's own schema has the same properties.
        let root = &schemas.definitions[*definition];
        let mut found = Vec::new();
        schemas.walk(definition, root, &[], &mut found);
        for key in schema
            .pointer("/properties/properties/properties")
            .unwrap()
            .as_object()
            .unwrap()
            .keys()
        {
            assert!(
                found
                    .iter()
                    .any(|one| one.parents.is_empty() && one.key == *key),
                "{kind}: {key}"
            );
        }
        for property in &found {
            properties += 1;
            let field = property.field();
            let dropped =
                DROPPED.contains(&property.key.as_str()) && property.of.starts_with("Azure");
            let inside_dropped = property
                .parents
                .iter()
                .any(|part| DROPPED.contains(&part.as_str()))
                && property
                    .parents
                    .iter()
                    .any(|part| part.starts_with("azure"));

            let good = schemas.file(root, property, schemas.sample(property.schema));
            let (_, warnings) = judge("f", &good.to_string());
            let unknown = warnings
                .iter()
                .find(|one| one.message.contains("unknown key"));
            assert_eq!(unknown, None, "{kind}");
            if dropped {
                assert!(
                    warnings.iter().any(|one| one.field == field),
                    "{kind} {field}: {warnings:?}"
                );
            }
            if dropped || inside_dropped {
                continue;
            }

            let wrong: Vec<Value> = match property.schema["type"].as_str() {
                Some("integer") => vec![
                    json!("two"),
                    json!([1]),
                    json!(-1),
                    json!(1.5),
                    json!(4_294_967_296_u64),
                ],
                Some("array") => vec![json!("text"), json!({}), json!([7])],
                Some("string") if property.schema["enum"].is_array() => {
                    vec![json!("nonsense"), json!(1)]
                }
                Some("string") => vec![json!(5), json!(true), json!(["text"]), json!({})],
                _ => vec![json!("text"), json!(7), json!([])],
            };
            for value in wrong {
                faults += 1;
                let faulty = schemas.file(root, property, value.clone());
                let text = serde_json::to_string_pretty(&faulty).unwrap();
                let (errors, _) = judge("f", &text);
                let error = errors
                    .iter()
                    .find(|error| about(error, &field) || error.field == format!("{field}[0]"));
                let error = error.unwrap_or_else(|| panic!("{kind} {field} = {value}: {errors:?}"));
                let line = text.lines().nth(error.line - 1).unwrap();
                let named = error
                    .field
                    .rsplit('.')
                    .next()
                    .unwrap()
                    .split('[')
                    .next()
                    .unwrap();
                assert!(
                    line.contains(named) || error.field.ends_with(']'),
                    "{error} points at {line:?}"
                );
                assert!(error.column > 1, "{error}");
            }

            if !property.required {
                continue;
            }
            faults += 1;
            let absent = schemas.file(root, property, Value::Null);
            let text = serde_json::to_string_pretty(&absent).unwrap();
            let (errors, _) = judge("f", &text);
            let error = errors.iter().find(|error| {
                about(error, &field) || error.field.starts_with(&format!("{field}."))
            });
            let optional = OPTIONAL
                .iter()
                .position(|(of, key, _)| *of == property.of && *key == property.key);
            match (error, optional) {
                (Some(error), _) => {
                    assert!(error.line > 1 || property.parents.is_empty(), "{error}")
                }
                (None, Some(index)) => {
                    used.insert(index);
                }
                (None, None) => panic!("{kind} {field} may be missing: {errors:?}"),
            }
        }
    }
    let unused: Vec<_> = (0..OPTIONAL.len())
        .filter(|index| !used.contains(index))
        .map(|index| OPTIONAL[index])
        .collect();
    assert_eq!(unused, [], "required after all");
    assert!(
        properties > 200 && faults > 700,
        "{properties} properties, {faults} faults"
    );
}
