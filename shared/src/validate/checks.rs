//! Collects what is wrong, and the checks of single values.

use std::collections::BTreeMap;

use super::{FieldViolation, MAX_COMMAND_BYTES, MAX_PATH_BYTES, MAX_RESOURCE_BYTES};

/// Where in the resource a check is, and what was found so far.
pub(super) struct Checker {
    path: String,
    found: Vec<FieldViolation>,
}

impl Checker {
    pub(super) fn new() -> Self {
        Self {
            path: String::new(),
            found: Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Vec<FieldViolation> {
        self.found
    }

    /// Path of a field of the object at hand.
    fn field(&self, key: &str) -> String {
        match (self.path.as_str(), key) {
            (path, "") => path.to_owned(),
            ("", key) => key.to_owned(),
            (path, key) => format!("{path}.{key}"),
        }
    }

    /// Something is wrong with a field; an empty key means the object at hand.
    pub(super) fn wrong(&mut self, key: &str, message: impl Into<String>) {
        let field = self.field(key);
        self.found.push(FieldViolation {
            field,
            message: message.into(),
        });
    }

    /// Checks inside an object.
    pub(super) fn within(&mut self, key: &str, check: impl FnOnce(&mut Self)) {
        let inner = self.field(key);
        let outer = std::mem::replace(&mut self.path, inner);
        check(self);
        self.path = outer;
    }

    /// Checks inside each object of a list.
    pub(super) fn each<T>(&mut self, key: &str, list: &[T], check: impl Fn(&mut Self, &T)) {
        for (index, item) in list.iter().enumerate() {
            self.within(&format!("{key}[{index}]"), |c| check(c, item));
        }
    }

    /// Each of `names` may stand once; `key` is the field of the list's objects that holds it.
    pub(super) fn unique<'a>(
        &mut self,
        list: &str,
        key: &str,
        names: impl Iterator<Item = &'a str>,
    ) {
        let mut first = BTreeMap::new();
        for (index, name) in names.enumerate() {
            if name.is_empty() {
                continue;
            }
            if let Some(earlier) = first.get(name) {
                let earlier = self.field(&format!("{list}[{earlier}]"));
                self.wrong(
                    &format!("{list}[{index}].{key}"),
                    format!("{name:?} stands already in {earlier}; choose another"),
                );
            } else {
                first.insert(name, index);
            }
        }
    }

    /// A text that must be there. `example` shows what to write.
    pub(super) fn required(&mut self, key: &str, value: &str, example: &str) -> bool {
        if value.trim().is_empty() {
            self.wrong(key, format!("required; write {example}"));
            return false;
        }
        self.plain(key, value, MAX_PATH_BYTES)
    }

    /// A text without NUL that is not too long. Empty is fine.
    pub(super) fn plain(&mut self, key: &str, value: &str, max_bytes: usize) -> bool {
        if value.contains('\0') {
            self.wrong(key, "holds a NUL character, which no process can be given");
            return false;
        }
        if value.len() > max_bytes {
            let length = value.len();
            self.wrong(
                key,
                format!("{length} bytes long; at most {max_bytes} are taken"),
            );
            return false;
        }
        true
    }

    /// A command line that must be there.
    pub(super) fn command(&mut self, key: &str, value: &str) {
        if value.trim().is_empty() {
            self.wrong(key, "required; write a command line for bash");
        } else {
            self.plain(key, value, MAX_COMMAND_BYTES);
        }
    }

    /// Arguments; may be empty.
    pub(super) fn arguments(&mut self, key: &str, value: &str) {
        self.plain(key, value, MAX_COMMAND_BYTES);
    }

    /// A path that must be there, absolute or beginning with a variable, without `..`.
    pub(super) fn rooted_path(&mut self, key: &str, value: &str) {
        const EXAMPLE: &str =
            "a path such as $AZ_BATCHAI_JOB_MOUNT_ROOT/logs, where logs is a relativeMountPath";
        if !self.required(key, value, EXAMPLE) {
            return;
        }
        if !value.starts_with(['/', '$']) {
            self.wrong(
                key,
                "begin with `/` or with a variable, such as $AZ_BATCHAI_JOB_MOUNT_ROOT/logs: there is no folder that \
                 every node would take it relative to",
            );
        } else if climbs(value) {
            self.wrong(key, "leave out `..`");
        }
    }

    /// A path below something else: relative, without `..`. Empty is fine.
    pub(super) fn relative_path(&mut self, key: &str, value: &str) {
        if !self.plain(key, value, MAX_PATH_BYTES) {
            return;
        }
        if value.starts_with('/') {
            self.wrong(
                key,
                "leave out the `/` at the beginning: the path is relative",
            );
        } else if climbs(value) {
            self.wrong(key, "leave out `..`");
        }
    }

    /// An absolute path without `..` and variables; may not be empty.
    pub(super) fn absolute_path(&mut self, key: &str, value: &str, example: &str) {
        if !self.required(key, value, example) {
            return;
        }
        if !value.starts_with('/') {
            self.wrong(key, format!("begin with `/`; write {example}"));
        } else if climbs(value) {
            self.wrong(key, "leave out `..`");
        }
    }

    /// The whole resource must not be too large.
    pub(super) fn size(&mut self, encoded_bytes: usize) {
        if encoded_bytes > MAX_RESOURCE_BYTES {
            self.wrong(
                "",
                format!(
                    "{encoded_bytes} bytes large; at most {MAX_RESOURCE_BYTES} are taken: put long texts into files"
                ),
            );
        }
    }
}

/// Whether a segment of the path is `..`.
pub(super) fn climbs(path: &str) -> bool {
    path.split('/').any(|segment| segment == "..")
}
