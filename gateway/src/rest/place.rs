//! Where in a body something is wrong: the path of the field at a byte. Runs on refused bodies only.

/// The path of the value at `offset` in a JSON text, as `messages[2].exclude.users[0]`; empty at
/// the top. Malformed text gives the path as far as it goes.
pub(super) fn path_at(text: &str, offset: usize) -> String {
    let mut walk = Walk { open: Vec::new(), text, at: 0 };
    walk.run(offset.min(text.len()));
    walk.path()
}

enum Step<'a> {
    /// In an object, at this key (raw text between the quotes).
    Key(&'a str),
    /// In an array, at this index.
    Index(usize),
}

struct Walk<'a> {
    open: Vec<Step<'a>>,
    text: &'a str,
    at: usize,
}

impl Walk<'_> {
    fn run(&mut self, end: usize) {
        // Deeper than any body is read; what lies below has its ancestor's path.
        const DEPTH_MAX: usize = 128;
        let bytes = self.text.as_bytes();
        let mut at_key = false;
        while self.at < end {
            let byte = bytes[self.at];
            match byte {
                b'{' | b'[' if self.open.len() >= DEPTH_MAX => return,
                b'{' => {
                    self.open.push(Step::Key(""));
                    at_key = true;
                }
                b'[' => self.open.push(Step::Index(0)),
                b'}' | b']' => {
                    // The closing brace itself still belongs to what it closes.
                    if self.at + 1 >= end {
                        return;
                    }
                    self.open.pop();
                    at_key = false;
                }
                b',' => match self.open.last_mut() {
                    Some(Step::Index(index)) => *index += 1,
                    Some(Step::Key(key)) => {
                        *key = "";
                        at_key = true;
                    }
                    None => {}
                },
                b'"' => {
                    let from = self.at + 1;
                    self.skip_string();
                    if at_key {
                        if let Some(Step::Key(key)) = self.open.last_mut() {
                            *key = self.text.get(from..self.at).unwrap_or_default();
                        }
                        at_key = false;
                    }
                }
                _ => {}
            }
            self.at += 1;
        }
    }

    /// From an opening quote to its closing quote (or the end of the text).
    fn skip_string(&mut self) {
        let bytes = self.text.as_bytes();
        self.at += 1;
        while self.at < bytes.len() && bytes[self.at] != b'"' {
            self.at += if bytes[self.at] == b'\\' { 2 } else { 1 };
        }
        self.at = self.at.min(bytes.len());
    }

    fn path(&self) -> String {
        let mut path = String::new();
        for step in &self.open {
            match step {
                Step::Key("") => {}
                Step::Key(key) => {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(key);
                }
                Step::Index(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }
}

/// The byte that a line and a column (both from 1, as `serde_json` counts them) stand for.
pub(super) fn offset_of(text: &str, line: usize, column: usize) -> usize {
    let before: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    (before + column).min(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_named_by_keys_and_indexes() {
        let text = r#"{"a":1,"messages":[{"channel":"x"},{"channel":5}]}"#;
        let at = text.find('5').expect("there") + 1;
        assert_eq!(path_at(text, at), "messages[1].channel");
        assert_eq!(path_at(text, text.find("1,").expect("there") + 1), "a");
        assert_eq!(path_at(text, 0), "");
    }

    #[test]
    fn quotes_and_braces_inside_strings_are_text() {
        let text = r#"{"a":"{\"}[","b":7}"#;
        assert_eq!(path_at(text, text.find('7').expect("there")), "b");
    }

    #[test]
    fn any_text_at_any_place_is_survived() {
        for text in ["", "\"", "{\"a", "\\", "]]}}", "{\"ü\":\"\\", "[[[[{\"a\":"] {
            for offset in 0..=text.len() + 2 {
                let _ = path_at(text, offset);
            }
        }
    }
}
