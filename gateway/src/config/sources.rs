//! Where settings come from and which beats which: file < environment < flags. Knows no key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::reader::Mistake;

/// Variables with this prefix are settings: `CARILLON__REDIS__URL` is `redis.url`.
pub const ENVIRONMENT_PREFIX: &str = "CARILLON__";

/// The file that is read when none is named.
pub const DEFAULT_FILE: &str = "carillon.toml";

/// Everything that the configuration is made of. Reading it again is a reload.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Sources {
    /// The file, if there is one; a named file that cannot be read is a mistake.
    pub file: Option<PathBuf>,
    /// The process's environment.
    pub environment: BTreeMap<String, String>,
    /// `key=value` of flags, dotted keys, in order; later ones win.
    pub flags: Vec<(String, String)>,
}

impl std::fmt::Debug for Sources {
    /// The file alone: variables and flags may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("file", &self.file).finish_non_exhaustive()
    }
}

impl Sources {
    /// The process's environment, and `file`, else `CARILLON_CONFIG`, else `carillon.toml` where it exists.
    #[must_use]
    pub fn of_process(file: Option<PathBuf>, flags: Vec<(String, String)>) -> Self {
        // Variables that are not UTF-8 cannot be settings or secrets of ours.
        let environment: BTreeMap<String, String> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        let file = file
            .or_else(|| environment.get("CARILLON_CONFIG").map(PathBuf::from))
            .or_else(|| Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.exists()));
        Self { file, environment, flags }
    }

    /// The merged tree, and which key came from which variable or flag.
    pub(super) fn merge(&self) -> Result<Merged, Mistake> {
        let mut tree = match &self.file {
            Some(path) => read_file(path)?,
            None => Map::new(),
        };
        let mut origins = BTreeMap::new();
        // Sorted, so that `…__API_KEYS` (a JSON map) comes before `…__API_KEYS__NAME__KEY`.
        for (variable, value) in &self.environment {
            if let Some(name) = variable.strip_prefix(ENVIRONMENT_PREFIX) {
                let key = name.to_ascii_lowercase().replace("__", ".");
                insert(&mut tree, &key, value);
                origins.insert(key, format!("environment variable {variable}"));
            }
        }
        for (key, value) in &self.flags {
            insert(&mut tree, key, value);
            origins.insert(key.clone(), "a flag".to_owned());
        }
        Ok(Merged { tree, origins })
    }
}

/// See [`Sources::merge`].
pub(super) struct Merged {
    pub(super) tree: Map<String, Value>,
    pub(super) origins: BTreeMap<String, String>,
}

fn read_file(path: &Path) -> Result<Map<String, Value>, Mistake> {
    let fail = |reason: String| Mistake { key: path.display().to_string(), reason, origin: None };
    let text =
        std::fs::read_to_string(path).map_err(|error| fail(format!("cannot be read: {error}")))?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| fail(format!("is not TOML: {error}")))?;
    match serde_json::to_value(table) {
        Ok(Value::Object(fields)) => Ok(fields),
        _ => Err(fail("holds a value that no setting takes".to_owned())),
    }
}

/// Puts a text at a dotted key. A JSON map on the way is opened, anything else on the way gives way.
fn insert(tree: &mut Map<String, Value>, key: &str, value: &str) {
    let Some((section, rest)) = key.split_once('.') else {
        tree.insert(key.to_owned(), Value::String(value.to_owned()));
        return;
    };
    let inner = tree.entry(section).or_insert(Value::Null);
    if let Value::String(text) = inner {
        *inner = serde_json::from_str(text).unwrap_or_default();
    }
    if !inner.is_object() {
        *inner = Value::Object(Map::new());
    }
    if let Value::Object(fields) = inner {
        insert(fields, rest, value);
    }
}
